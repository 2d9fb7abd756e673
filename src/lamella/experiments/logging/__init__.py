"""Live curves of a run: what is measured when, and the loggers that people already use."""
