"""Columns to keys: the user's spec, the plan that travels with the model, and the encoder."""

from penstock.features.encode import Encoder
from penstock.features.spec import ColumnPlan, FeaturePlan, Features, Numeric, unknown_column

__all__ = ["ColumnPlan", "Encoder", "FeaturePlan", "Features", "Numeric", "unknown_column"]
