"""L-BFGS over the summed loss of all rows, by SciPy, on the fixed sorted set of the keys that occur.

The driver holds the weights as one f64 vector; partitions get f32 weights of their own keys, and compute in f32.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from penstock.batch import Floats, Keys
from penstock.errors import ConfigError
from penstock.models import Model
from penstock.train.progress import Progress
from penstock.version import the_extra

if TYPE_CHECKING:
    from penstock.train.tree.fit import TreeSession

__all__ = ["check_solver", "minimise"]

Vector = NDArray[np.float64]


def check_solver(model: Model, *, passes: int, resume: bool) -> None:
    """L-BFGS can train this model so.

    Raises:
        ConfigError: SciPy is missing; an l1; an optimizer that does not keep the weight itself; passes or resume.
    """
    _scipy_minimize()
    for optimizer in (table.optimizer for table in model.tables().values()):
        l1 = getattr(optimizer, "l1", 0.0)
        if l1:
            raise ConfigError(f"solver lbfgs: optimizer {optimizer.name} has l1 {l1}, allowed: 0 (l2 alone)")
        if "w" not in optimizer.states:
            raise ConfigError(
                f"solver lbfgs: optimizer {optimizer.name} keeps {', '.join(optimizer.states)} instead of "
                "weights; allowed: one that keeps w, such as sgd or adagrad"
            )
    if passes != 1:
        raise ConfigError(f"solver lbfgs: passes must be 1, got {passes}; give TreeAggregate iterations instead")
    if resume:
        raise ConfigError("solver lbfgs cannot be resumed: what SciPy knows of the path so far is not saved")


def minimise(session: TreeSession, progress: Progress) -> Iterator[None]:
    """Run L-BFGS from the model's weights, and put the optimum's there."""
    session.begin_pass()
    problem = _Problem(session, progress)
    found = _scipy_minimize()(
        problem.loss_and_gradient,
        problem.start(),
        jac=True,
        method="L-BFGS-B",
        # Gradients are f32 sums: what SciPy asks for by default (1e-5) may lie below their rounding.
        options={"maxiter": session.strategy.iterations, "maxfun": 20 * session.strategy.iterations},
    )
    problem.finish(found.x)
    session.state.pass_ = session.passes
    session.tell(progress)
    yield


class _Problem:
    """The loss as a function of one vector: the tables' rows, one table after the other."""

    def __init__(self, session: TreeSession, progress: Progress) -> None:
        self._session, self._progress = session, progress
        self._tables = session.model.tables()
        self._wanted = session.executor.keys()
        self._keys: dict[str, Keys] = {}
        self._bounds: dict[str, tuple[int, int]] = {}
        self._first = True
        end = 0
        for name, table in self._tables.items():
            keys = [wanted[name] for wanted in self._wanted if wanted is not None]
            self._keys[name] = np.unique(np.concatenate([np.empty(0, np.uint64), *keys]))
            begin, end = end, end + len(self._keys[name]) * table.dim
            self._bounds[name] = begin, end
        # Where the weights of each partition's keys stand; they are the same in every evaluation.
        self._places = [
            None
            if wanted is None
            else {name: np.searchsorted(self._keys[name], keys) for name, keys in wanted.items()}
            for wanted in self._wanted
        ]
        self._l2 = float(getattr(session.model.optimizer, "l2", 0.0))

    def start(self) -> Vector:
        """The model's weights."""
        rows = [table.pull(self._keys[name]).reshape(-1) for name, table in self._tables.items()]
        return np.concatenate(rows).astype(np.float64)

    def loss_and_gradient(self, x: Vector) -> tuple[float, Vector]:
        """Sum of log losses and l2/2 |x|², and its gradient."""
        rows = {name: self._rows(name, x).astype(np.float32) for name in self._tables}
        weights: list[dict[str, Floats] | None] = [
            None if places is None else {name: rows[name][place] for name, place in places.items()}
            for places in self._places
        ]
        partials, total = self._session.aggregate(weights)
        if self._first:
            self._session.account(partials)
            self._first = False
        self._session.tell(self._progress)
        self._session.check_stop(self._progress)
        gradient = self._l2 * x
        for name, (keys, grads) in total.items():
            part = self._rows(name, gradient)
            part[np.searchsorted(self._keys[name], keys)] += grads
        loss = sum(partial.loss for partial in partials if partial is not None)
        return loss + 0.5 * self._l2 * float(np.square(x).sum()), gradient

    def finish(self, x: Vector) -> None:
        """Make ``x`` the model's weights, with the optimizer's other states at 0."""
        for name, table in self._tables.items():
            words = np.zeros((len(self._keys[name]), table.width), np.float32)
            begin = table.optimizer.states.index("w") * table.dim
            words[:, begin : begin + table.dim] = self._rows(name, x)
            table.insert(self._keys[name], words)

    def _rows(self, name: str, x: Vector) -> Vector:
        begin, end = self._bounds[name]
        return x[begin:end].reshape(-1, self._tables[name].dim)


def _scipy_minimize() -> Any:
    try:
        from scipy.optimize import minimize
    except ImportError as error:
        raise ConfigError(f"solver lbfgs needs SciPy, {the_extra('lbfgs')}") from error
    return minimize
