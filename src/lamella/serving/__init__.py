"""A model over HTTP: `lamella serve`. It needs the extra `serve` and is imported only when it is used."""
