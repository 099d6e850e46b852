"""Other ways out of a trained model: a file for NumPy alone, ONNX, MLflow. Each is checked against ``predict``."""

from penstock.export.npz import NpzExport, write_npz
from penstock.export.onnx import OnnxExport, write_onnx

__all__ = ["NpzExport", "OnnxExport", "write_npz", "write_onnx"]
