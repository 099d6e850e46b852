"""Models: what they predict, how they learn, how they are kept on disk."""

from penstock.models.base import Model, model_from_spec, register_model, table_layouts
from penstock.models.commit import commit_manifest, discard_version, new_version
from penstock.models.dense import DenseSlices
from penstock.models.files import write_arrays, write_names, write_removed, write_rows
from penstock.models.folder import load_model, load_shell, load_version, read_rows, save_model
from penstock.models.history import KeepVersions, pin_version, read_pin, read_version
from penstock.models.linear import Linear
from penstock.models.manifest import build_manifest, read_manifest, table_files, table_layers
from penstock.models.publish import CheckpointPublisher, Publisher

__all__ = [
    "CheckpointPublisher",
    "DenseSlices",
    "KeepVersions",
    "Linear",
    "Model",
    "Publisher",
    "build_manifest",
    "commit_manifest",
    "discard_version",
    "load_model",
    "load_shell",
    "load_version",
    "model_from_spec",
    "new_version",
    "pin_version",
    "read_manifest",
    "read_pin",
    "read_rows",
    "read_version",
    "register_model",
    "save_model",
    "table_files",
    "table_layers",
    "table_layouts",
    "write_arrays",
    "write_names",
    "write_removed",
    "write_rows",
]
