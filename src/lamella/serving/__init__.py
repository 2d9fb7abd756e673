"""A model over HTTP: `lamella serve`. Needs the extra `serve`; nothing here is imported before it is asked for."""
