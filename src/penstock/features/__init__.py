"""Columns to keys: the user's spec, the plan that travels with the model, and the encoder."""

from penstock.features.encode import Encoder
from penstock.features.spec import ColumnPlan, FeaturePlan, Features, Numeric, unknown_column
from penstock.features.values import ValueEncoder

__all__ = ["ColumnPlan", "Encoder", "FeaturePlan", "Features", "Numeric", "ValueEncoder", "unknown_column"]
