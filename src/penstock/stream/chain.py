"""A pipeline's examples as a stream of the log: so one pipeline can feed another.

Each piece is appended once, in order, by the number of the piece; whoever dies in between, or is run twice at
once, changes nothing. The stream's events are the examples with the columns of ``EXTRA`` under names that a
stream can have:
``example_kind`` says whether an event is a first label, a correction, or takes one back.
"""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from penstock.errors import ConfigError
from penstock.log import EventStream, Log, PositionMoved
from penstock.stream.evaluator import EXTRA
from penstock.stream.feed import Feed
from penstock.stream.replay import Examples, Replay
from penstock.stream.spec import Pipeline

__all__ = ["feed_stream"]

_NAMES = {name: f"example{name}" for name in EXTRA.names}


def feed_stream(
    pipeline: Pipeline, *, from_us: int | None = None, to_us: int | None = None, follow: bool
) -> Iterator[tuple[Feed, Examples | None]]:
    """Append to the stream that ``pipeline.output`` names; yields each piece once it is there, and None while
    waiting.

    Raises:
        ConfigError: the output is one of the pipeline's own inputs.
    """
    if pipeline.output in pipeline.streams:
        raise ConfigError(f"pipeline.output: {pipeline.output!r} is one of the pipeline's inputs")
    log = Log(pipeline.log)
    producer = f"pipeline/{pipeline.name}/{pipeline.fingerprint}/{from_us}/{to_us}"
    stream = _stream(log, pipeline)
    start = stream.position(producer)
    with Feed(pipeline.log, pipeline, from_us=from_us, to_us=to_us, start=start, follow=follow) as feed:
        for examples in feed:
            if examples is None:
                yield feed, None
                continue
            index = examples.piece.index
            events = examples.rows.rename_columns([_NAMES.get(name, name) for name in examples.rows.column_names])
            try:
                stream.append(
                    events, producer=producer, start=start, end=index + 1, source=f"pipeline/{pipeline.name}"
                )
                start = index + 1
            except PositionMoved as moved:
                if moved.position <= index:
                    raise
                start = moved.position  # another process has brought this piece
            yield feed, examples


def _stream(log: Log, pipeline: Pipeline) -> EventStream:
    replay = Replay(log, pipeline)
    fields = [pa.field(_NAMES.get(field.name, field.name), field.type) for field in replay.schema]
    replay.close()
    return log.create(pipeline.output, fields, time=_NAMES["_time"])
