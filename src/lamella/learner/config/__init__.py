"""Configurations: TOML documents, overrides, names of methods, and the objects that they describe."""
