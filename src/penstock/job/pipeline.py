"""A job whose data are a pipeline over a log: the sections of a job, beside those that say the pipeline."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.errors import ConfigError
from penstock.job.job import Job, read_sections
from penstock.models import Linear
from penstock.stream.replay import EXTRA
from penstock.stream.source import PipelineSource
from penstock.stream.spec import Pipeline
from penstock.train import Online, Run
from penstock.train.live import fit_live

__all__ = ["PipelineJob", "is_pipeline", "read_pipeline"]

_SECTIONS = ("streams", "pipeline", "aggregates")


@dataclass(frozen=True, kw_only=True)
class PipelineJob:
    """A pipeline, and what is done with its examples."""

    pipeline: Pipeline
    job: Job
    sections: Mapping[str, Any]
    """As they stood in the file, so that a resumed run knows them."""

    @staticmethod
    def from_dict(sections: Mapping[str, Any], where: str) -> PipelineJob:
        """Of plain values.

        Raises:
            ConfigError: with the place.
        """
        pipeline = Pipeline.from_dict(sections, where)
        rest = {name: value for name, value in sections.items() if name not in _SECTIONS}
        if "data" in rest:
            raise ConfigError(f"{where}: [data] is for files; a pipeline reads the log that pipeline.log names")
        job = Job.from_dict({**rest, "data": {"train": pipeline.log}}, where)
        return PipelineJob(pipeline=pipeline, job=job, sections=sections)

    def model(self, source: PipelineSource) -> Linear:
        """The untrained model of the source's examples; ids of events are no features."""
        ids = [spec.id for spec in self.pipeline.streams.values() if spec.id in source.schema.names]
        section = self.job.features
        ignore = list(dict.fromkeys([*section.ignore, *(id_ for id_ in ids if id_ is not None), *EXTRA.names]))
        return dataclasses.replace(self.job, features=dataclasses.replace(section, ignore=ignore)).model()

    def source(
        self, *, from_us: int | None = None, to_us: int | None = None, follow: bool = False
    ) -> PipelineSource:
        """Its examples, bound to the log."""
        return PipelineSource(self.pipeline, from_us=from_us, to_us=to_us, follow=follow)

    def run(
        self,
        model: Linear,
        source: PipelineSource,
        *,
        resume: bool = False,
        progress: bool | None = None,
        as_called: Mapping[str, Any] | None = None,
    ) -> Run:
        """Train in one process, on what is there and, where the source follows the log, on what comes;
        ``as_called`` goes to checkpoints."""
        strategy = self.job.strategy()
        if not isinstance(strategy, Online):
            raise ConfigError(
                "a pipeline is followed in one process; for a cluster write its examples to a folder first: "
                "penstock examples JOB --changes -o examples/"
            )
        return fit_live(
            model,
            source,
            strategy=strategy,
            output=self.job.output.path,
            resume=resume,
            checkpoint_every_s=self.job.train.checkpoint_every_s,
            publish_every_s=self.job.output.publish_every_s,
            progress=progress,
            job={"pipeline_job": {**self.sections, "run": dict(as_called or {})}},
        )


def is_pipeline(sections: Mapping[str, Any]) -> bool:
    """Whether a job file's sections are those of a pipeline."""
    return "pipeline" in sections


def read_pipeline(path: str | Path) -> PipelineJob:
    """Read a job file with a pipeline.

    Raises:
        ConfigError: it is missing, not TOML, or none.
    """
    return PipelineJob.from_dict(read_sections(path), str(path))
