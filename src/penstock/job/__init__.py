"""A job: data, features, model, training and output in one value, from a TOML file or from options."""

from penstock.job.compare import compare, parse_straggler, strategies_of
from penstock.job.dispatch import fit
from penstock.job.job import Data, Job, Output, Training, read_job

__all__ = [
    "Data",
    "Job",
    "Output",
    "Training",
    "compare",
    "fit",
    "parse_straggler",
    "read_job",
    "strategies_of",
]
