"""Penstock trains very large sparse models from event logs, and serves them while they learn."""

__version__ = "0.1.0"
