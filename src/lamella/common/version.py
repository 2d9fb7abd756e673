"""The version of lamella."""

__all__ = ["__version__"]

__version__ = "0.1.0"
