"""Where a cluster's roles run: processes of this machine, or of any others that are started by hand.

Roles are plain functions of a spec: ``run_coordinator``, ``run_server``, ``run_worker``.
"""

from penstock.engine.fit import fit_cluster
from penstock.engine.local import LocalProcesses
from penstock.engine.strategy import ParameterServer
from penstock.engine.tables import TableClient

__all__ = ["LocalProcesses", "ParameterServer", "TableClient", "fit_cluster"]
