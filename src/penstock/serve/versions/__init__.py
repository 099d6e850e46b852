"""Versions of a model: where they come from, how they are loaded, whether they may answer."""
