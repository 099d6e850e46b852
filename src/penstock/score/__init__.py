"""Scores of an exported model with NumPy and the standard library alone, to be embedded in another program.

``Scorer`` reads a file of ``penstock export`` and takes rows as a server does. Nothing here imports Numba, Arrow
or what else training needs, so it also runs where only NumPy is installed beside this package.
"""

from penstock.score.encode import Encoded, RowEncoder
from penstock.score.scorer import Scorer

__all__ = ["Encoded", "RowEncoder", "Scorer"]
