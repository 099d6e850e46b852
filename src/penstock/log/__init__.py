"""The durable log: raw events as they came, in Delta tables, with positions, quarantine and progress.

Nothing here knows windows, joins or models. ``deltalake`` is imported in ``delta`` alone, when it is needed.
"""

from penstock.log.events import Appended, EventStream, PositionMoved, StreamSettings
from penstock.log.log import Log, check_name
from penstock.log.progress import Progress, Step
from penstock.log.quarantine import Quarantine, Rejected

__all__ = [
    "Appended",
    "EventStream",
    "Log",
    "PositionMoved",
    "Progress",
    "Quarantine",
    "Rejected",
    "Step",
    "StreamSettings",
    "check_name",
]
