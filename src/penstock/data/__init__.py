"""Readers: Parquet, Arrow, CSV, libsvm and tables in memory, each as a source cut into chunks.

A reader yields columns as they stand in the data; what becomes of them is in ``features``.
"""

from penstock.data.delimited import CsvOptions
from penstock.data.open import open_source
from penstock.data.source import BATCH_ROWS, Chunk, Source

__all__ = ["BATCH_ROWS", "Chunk", "CsvOptions", "Source", "open_source"]
