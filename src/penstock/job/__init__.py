"""A job: data, features, model, training and output in one value, from a TOML file or from options."""

from penstock.job.job import Data, Job, Output, Training, read_job

__all__ = ["Data", "Job", "Output", "Training", "read_job"]
