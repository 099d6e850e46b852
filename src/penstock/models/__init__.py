"""Models: what they predict, how they learn, how they are kept on disk."""

from penstock.models.folder import load_model, read_manifest, save_model
from penstock.models.linear import Linear

__all__ = ["Linear", "load_model", "read_manifest", "save_model"]
