"""Configurations: documents, overrides, names of methods, and the objects they describe."""
