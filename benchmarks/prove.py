"""Batch = stream = Lambda on a log that was followed live: how long the proof takes, and that no row differs."""

from __future__ import annotations

import time

from benchmarks.eventlog import event_log, pipeline
from benchmarks.harness import Goal, Options, Result, machine, note, table
from penstock.stream.prove import prove

__all__ = ["run"]


def run(options: Options) -> Result:
    """One proof: what it finds does not depend on chance."""
    events = 200_000 if options.quick else 10_000_000
    place = event_log(events, steps=True)
    began = time.perf_counter()
    told = began

    def tell(way: str, rows: int) -> None:
        nonlocal told
        if time.perf_counter() - told > 5:
            told = time.perf_counter()
            note(f"{way:8} {rows:>12,} rows")

    proof = prove(pipeline(place), on_progress=tell)
    seconds = time.perf_counter() - began
    result = Result(
        name="prove",
        options=options,
        conditions={"events": events, "steps": proof.steps, "cut": proof.cut, **machine("duckdb", "deltalake")},
        figures={
            "seconds": seconds,
            "examples": proof.examples,
            "corrections": proof.corrections,
            "differing": proof.differing,
            "impressions_missing": events * 4 // 5 - proof.examples,
        },
        goals=(
            Goal(what="differing", most=0),
            Goal(what="impressions_missing", most=0),
            Goal(what="seconds", most=300),
        ),
    )
    result.text.append(
        table(
            ("", ""),
            [
                ("examples", f"{proof.examples:,}"),
                ("corrected on the way", f"{proof.corrections:,}"),
                ("steps", f"{proof.steps:,}"),
                ("Lambda goes over at step", f"{proof.cut}"),
                ("rows that differ", f"{proof.differing:,}"),
                ("seconds", f"{seconds:.1f}"),
            ],
        )
    )
    return result
