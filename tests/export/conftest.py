"""The exported model of the scorer's tests."""

from tests.score.conftest import exported

__all__ = ["exported"]
