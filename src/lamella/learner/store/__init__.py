"""A model folder on disk: immutable versions under one pointer."""
