"""Windows over the log."""
