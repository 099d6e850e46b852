"""A role as a process: ``python -m penstock.engine``, told what to be by one line of JSON on its standard
input.

Standard input stays open: when it ends, whoever started this is gone, and this ends too. Standard output has one
line of JSON with the coordinator's address; errors are one line on standard error.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from typing import Any

import msgspec

from penstock.engine.coordinator import CoordinatorSpec, run_coordinator
from penstock.engine.node import Access
from penstock.engine.server import ServerSpec, run_server
from penstock.engine.spec import RunSpec
from penstock.engine.worker import WorkerSpec, run_worker
from penstock.errors import PenstockError

__all__ = ["RoleSpec", "main"]

ORPHANED = 3
"""Exit status of a role whose starter is gone."""


class RoleSpec(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What one process is to be."""

    role: str
    name: str
    cluster: str
    token: str
    join: str = ""
    run: dict[str, Any] | None = None


def main() -> None:
    """Be a role until the run is over."""
    line = sys.stdin.buffer.readline()
    if not line:
        sys.exit(ORPHANED)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    spec = msgspec.json.decode(line, type=RoleSpec)
    threading.Thread(target=_end_with_starter, name="starter", daemon=True).start()
    access = Access(cluster=spec.cluster, token=spec.token.encode())
    try:
        if spec.role == "coordinator":
            assert spec.run is not None
            run = RunSpec.from_dict(spec.run)
            run_coordinator(CoordinatorSpec(run=run, access=access, on_listening=_say_address))
        elif spec.role == "server":
            run_server(ServerSpec(join=spec.join, access=access, name=spec.name))
        else:
            run_worker(WorkerSpec(join=spec.join, access=access, name=spec.name))
    except PenstockError as error:
        sys.stderr.write(f"penstock: {error}\n")
        sys.exit(error.exit_status)
    except KeyboardInterrupt:
        sys.exit(130)


def _say_address(address: str) -> None:
    sys.stdout.write(json.dumps({"address": address}) + "\n")
    sys.stdout.flush()


def _end_with_starter() -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    # Not sys.exit: other threads may be in the middle of anything, and nobody waits for them.
    os._exit(ORPHANED)
