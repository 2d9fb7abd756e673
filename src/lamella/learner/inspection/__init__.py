"""Reports on a learned model: its facts, its evaluation on labelled data, as text, pages and figures."""
