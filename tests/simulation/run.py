"""One seed: a run of one or more lives of a cluster, to the end, and what must hold then."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from penstock.parameter_server.consistency import ASP, BSP, SSP
from tests.simulation import faults as faults_
from tests.simulation.checks import Wrong
from tests.simulation.cluster import Cluster, Disk, Event, Machines, Role, Settings
from tests.simulation.model import make_data

LIVES_MAX = 3
FAMILIES = 24


@dataclass(frozen=True)
class Outcome:
    """Of a seed that went well."""

    lives: list[str]
    events: int
    seconds: float


def simulate(
    seed: int,
    *,
    machines: Machines | None = None,
    theme: str | None = None,
    trace: Callable[[str], None] | None = None,
) -> Outcome:
    """Run a seed; ``theme`` is of ``faults.THEMES``, None draws one for each life.

    Raises:
        Wrong: the protocol did what it must not; says how to replay it.
    """
    r = random.Random(seed)
    family = r.randrange(FAMILIES)
    data = make_data(family)
    consistency = r.choice([BSP(), BSP(), SSP(0), SSP(1), SSP(3), ASP()])
    settings = Settings(
        family=family,
        data=data,
        consistency=consistency,
        depth=r.choice([1, 2, 3, 4]),
        known=r.random() < 0.5,
        machines=machines if machines is not None else Machines(),
    )
    disk, lives, events, now = Disk(), list[str](), 0, 0.0
    if trace:
        trace(f"seed {seed}: {consistency}, data {family}, {data.lanes} lanes, depth {settings.depth}")
    survivors: list[Role] = []
    pending: list[Event] = []
    try:
        while True:
            faults = faults_.draw(r, last=len(lives) >= LIVES_MAX - 1, theme=theme)
            servers, workers = r.choice([1, 1, 2, 2, 3, 4]), r.choice([1, 2, 2, 3, 5])
            if trace:
                trace(f"{now:8.3f} life {len(lives)}: {servers} servers, {workers} workers, {faults}")
            cluster = Cluster(
                settings,
                disk,
                faults,
                r,
                servers=servers,
                workers=workers,
                now=now,
                survivors=survivors,
                pending=pending,
                trace=trace,
            )
            lives.append(cluster.run())
            events += cluster.events
            now = cluster.now + 1.0
            if lives[-1] == "done":
                break
            if len(lives) > LIVES_MAX + 2:
                raise Wrong("deadline", f"does not come to an end: {lives}")
            # Some workers outlive a cluster that was killed, and go on as if nothing had happened.
            survivors = [
                w
                for w in cluster.workers
                if w.alive and w.ended == "" and w.member is not None and r.random() < 0.6
            ]
            pending = cluster.pending(survivors)
        assert disk.committed is not None
        cluster.checks.end_of_run(disk.committed)
    except Exception as error:
        of = "" if theme is None else f" --theme {theme}"
        error.add_note(f"replay: python -m tests.simulation --seed {seed}{of} --trace")
        raise
    return Outcome(lives, events, now)
