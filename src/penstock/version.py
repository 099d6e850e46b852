"""The version of the package; on its own, so that any room may name it."""

__version__ = "0.1.0"
