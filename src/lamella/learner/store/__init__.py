"""A model on disk: a folder of immutable versions and one file that points to the current version."""
