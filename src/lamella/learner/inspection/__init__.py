"""What a learned model is like: facts, evaluation on labelled data, text, pages and figures."""
