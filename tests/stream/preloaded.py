"""What each process of some tests would do first, done once in the process that they are forked from: imports, and
a kernel called, for which Numba sets itself up.

It starts no threads, so that a fork is whole.
"""

import deltalake
import duckdb
import pyarrow.parquet
import sqlglot

import penstock.job.pipeline
import penstock.stream.chain
import penstock.train.live
from penstock.features.categories import seed_of

__all__ = ["deltalake", "duckdb", "penstock", "pyarrow", "sqlglot"]

seed_of("")
