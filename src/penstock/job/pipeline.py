"""A job whose data are a pipeline over a log: the sections of a job, beside those that say the pipeline."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.data import open_source
from penstock.errors import ConfigError
from penstock.job.job import Data, Job, read_sections
from penstock.models import Linear
from penstock.stream.evaluator import EXTRA
from penstock.stream.output import write_chunks
from penstock.stream.source import PipelineSource
from penstock.stream.spec import Pipeline
from penstock.train import Online, Run
from penstock.train.live import fit_live

__all__ = ["PipelineJob", "is_pipeline", "read_pipeline"]

_SECTIONS = ("streams", "pipeline", "aggregates", "views")


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
        allowed = sorted({*_SECTIONS, *(f.name for f in dataclasses.fields(Job))} - {"data"})
        for name in rest:
            if name not in allowed and name != "data":
                raise ConfigError(f"{where}: {name} is not known; allowed: {', '.join(allowed)}")
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
        fork: bool = False,
        on_swap: Callable[[Path], None] | None = None,
        as_called: Mapping[str, Any] | None = None,
    ) -> Run:
        """Train in one process, on what is there and, where the source follows the log, on what comes;
        ``as_called`` goes to checkpoints."""
        strategy = self.job.strategy()
        if not isinstance(strategy, Online):
            if fork:
                raise ConfigError("a fork is trained in one process, not by servers and workers")
            return self._run_on_files(model, source, resume=resume, progress=progress)
        return fit_live(
            model,
            source,
            strategy=strategy,
            output=self.job.output.path,
            resume=resume,
            checkpoint_every_s=self.job.train.checkpoint_every_s,
            publish=self.job.output.publish(every_s=60.0),
            fork=fork,
            on_swap=on_swap,
            progress=progress,
            job={"pipeline_job": {**self.sections, "run": dict(as_called or {})}},
        )

    def _run_on_files(self, model: Linear, source: PipelineSource, *, resume: bool, progress: bool | None) -> Run:
        """Train by the job's strategy on what a live run would learn of what is sealed now, written to files.

        Raises:
            ConfigError: the run would follow the log, or weights would depend on predictions.
        """
        if source.follow and source.to_us is None:
            raise ConfigError("servers and workers learn what is sealed: give --once or --to")
        late = self.pipeline.late
        if late.needs_predictions or late.negatives < 1:
            raise ConfigError(
                f"late_positives {late.mode!r} with negatives {late.negatives:g} is for one process; "
                "allowed with servers and workers: none or wait, and all negatives"
            )
        folder = Path(self.job.output.path) / "examples"
        if not resume:
            write_chunks(source, folder)
        return dataclasses.replace(self.job, data=Data(train=str(folder))).run(
            model, open_source(str(folder)), resume=resume, progress=progress
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
