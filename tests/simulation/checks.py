"""What must hold, checked against ground truth while the cluster runs and after it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from penstock.parameter_server.consistency import Consistency
from penstock.parameter_server.effects import Commit, Compute
from penstock.parameter_server.history import from_runs
from penstock.parameter_server.messages import BatchName, Grant, Record
from tests.simulation.model import DIMS, Data, counts_before, oracle

if TYPE_CHECKING:
    from tests.simulation.cluster import Cluster, Manifest, Role


class Wrong(AssertionError):
    """The protocol did what it must not; ``check`` says which check found it."""

    def __init__(self, check: str, what: str) -> None:
        super().__init__(f"[{check}] {what}")
        self.check, self.what = check, what


class Checks:
    """Of one life of a cluster."""

    def __init__(self, family: int, data: Data, consistency: Consistency, cluster: Cluster) -> None:
        self.data, self.consistency, self.cluster = data, consistency, cluster
        self.before_clock = counts_before(family)
        self.family = family

    def grant(self, grant: Grant) -> None:
        """A clock depends on the data alone, whoever computes it."""
        place = self.data.places.get(grant.name)
        if place is not None and place != (grant.lane, grant.clock):
            raise Wrong("clock", f"{grant} must be in lane and at clock {place}")

    def compute(self, role: Role, compute: Compute) -> None:
        """The rows that a micro-batch is computed from are as new as they must be."""
        grant, bound = compute.grant, self.consistency.bound
        batch = self.data.batch(grant.name)
        assert batch is not None
        seen, at = compute.rows["count"][:, 0], self.data.at(batch.keys)
        if bound is None:
            return
        needed = self.before_clock[max(0, grant.clock - bound)][at]
        if (seen < needed).any():
            raise Wrong("staleness", f"{role.name} computes {grant} from rows that lack clocks: {seen} {needed}")
        if self.consistency.together:
            expected = oracle(self.family)[grant.clock]
            same = all((compute.rows[t] == expected[t][at]).all() for t in DIMS)
            # Only where the clock is applied everywhere may rows be newer: nothing is done with the result.
            if not same and not self._applied_everywhere(grant.clock):
                raise Wrong("bsp pull", f"{role.name} computes {grant} from other rows than the oracle")

    def _applied_everywhere(self, clock: int) -> bool:
        servers = [server.machine for server in self.cluster.servers if server.machine is not None]
        return all(server._clocks.complete > clock for server in servers)

    def checkpoint(self, manifest: Manifest, commit: Commit) -> None:
        """Rows have exactly what the record lists, and what the names beside them say."""
        record = listed(manifest.record, self.data)
        if manifest.metrics != record:
            raise Wrong("figures", f"metrics of {len(manifest.metrics)} micro-batches, record of {len(record)}")
        counts = {int(k): int(v[0]) for k, v in manifest.rows["count"].items()}
        for part in manifest.names:
            finished = from_runs(part["names"]["finished"])
            partial = {int(chunk): from_runs(runs) for chunk, runs in part["names"]["partial"].items()}
            names = record | listed(
                Record(finished=[(c, c) for c in finished], partial=partial, lengths={}, lanes=0), self.data
            )
            expected = self.data.counts(names)
            segments = set(part["segments"])
            for key, count in zip(self.data.universe.tolist(), expected.tolist(), strict=True):
                if key >> 60 in segments and counts.get(key, 0) != count:
                    raise Wrong("checkpoint", f"key {key:#x} has {counts.get(key, 0)} of {count} examples")
        if self.consistency.together:
            clock = self.data.clocks
            if commit.record is not None and len(record) < len(self.data.places):
                clock = min(self.data.places[n][1] for n in self.data.places if n not in record)
            self.equals_oracle(manifest, clock)

    def equals_oracle(self, manifest: Manifest, clock: int) -> None:
        """Bit for bit."""
        for table, expected in oracle(self.family)[clock].items():
            for key, row in zip(self.data.universe.tolist(), expected, strict=True):
                got = manifest.rows[table].get(key, np.zeros(DIMS[table], np.float32))
                if got.tobytes() != row.tobytes() and not (not got.any() and not row.any()):
                    raise Wrong("bsp oracle", f"clock {clock}, {table} of key {key:#x}: {got}, oracle {row}")

    def expected(self, error: str) -> None:
        """Only what was done to the cluster may go wrong."""
        if not any(excuse in error for excuse in self.cluster.excused):
            raise Wrong("error", f"{error} (excused: {sorted(self.cluster.excused)})")

    def end(self, error: str | None) -> None:
        """The coordinator has ended the run."""
        if error is not None:
            self.expected(error)
        if self.cluster.killed_server is not None:
            name, when = self.cluster.killed_server
            paused = self.cluster.roles["coordinator"].paused
            joined = not (error or "").startswith("waited")
            if joined and self.cluster.now > max(when, paused) + 10.0:
                raise Wrong("deadline", f"{name} died at {when:.1f}, the run ended at {self.cluster.now:.1f}")

    def end_of_life(self) -> None:
        """Of a life that was not cut off."""
        for _, event in self.cluster.coordinator.events:
            if "not saved after" in event:
                raise Wrong("deadline", event)
        if self.cluster.coordinator.phase == "done":
            names = self.cluster.metrics.names - self.cluster.metrics.before
            rows = sum(batch.rows for name in names if (batch := self.data.batch(name)) is not None)
            if self.cluster.coordinator.rows != rows:
                raise Wrong("figures", f"{self.cluster.coordinator.rows} rows were counted, of {rows}")
        for server in self.cluster.servers:
            machine = server.machine
            if machine is None:
                continue
            if not self.consistency.together and sum(machine.staleness.values()) != machine.version:
                raise Wrong("histogram", f"{machine.staleness} is of other than {machine.version} updates")
            whole = self.cluster.fresh and self.cluster.coordinator.phase == "done"
            if whole and sum(machine.staleness.values()) != len(self.data.places):
                raise Wrong("histogram", f"{machine.staleness} of {len(self.data.places)} micro-batches")
            if any(s != 0 for s in machine.staleness) and self.consistency.together:
                raise Wrong("histogram", f"staleness under BSP: {machine.staleness}")
            if any(s < 0 for s in machine.staleness):
                raise Wrong("histogram", f"{machine.staleness}")

    def end_of_run(self, manifest: Manifest) -> None:
        """Everything is learnt, once."""
        record = listed(manifest.record, self.data)
        if record != set(self.data.places):
            raise Wrong("record", f"{len(record)} of {len(self.data.places)} micro-batches are learnt")
        if manifest.metrics != record:
            raise Wrong("figures", f"{len(manifest.metrics)} of {len(record)} micro-batches are counted")
        expected = self.data.counts(record)
        got = [float(manifest.rows["count"].get(key, [0.0])[0]) for key in self.data.universe.tolist()]
        if got != expected.tolist():
            raise Wrong("exactly once", f"examples by key {got}, should be {expected.tolist()}")
        if self.consistency.together:
            self.equals_oracle(manifest, self.data.clocks)


def listed(record: Record, data: Data) -> set[BatchName]:
    """All micro-batches of a record, by the real lengths of chunks."""
    names = {BatchName(chunk, batch) for chunk, batches in record.partial.items() for batch in batches}
    for chunk in from_runs(record.finished):
        names.update(BatchName(chunk, batch) for batch in range(len(data.chunks[chunk % len(data.chunks)])))
    return names
