"""What stands near a moment in the state: the count, the running mean, the injected decay."""

from __future__ import annotations

import re
from functools import cached_property
from typing import Any

import numpy as np

from l2m_optax.moments._identification import recurrence as _recurrence
from l2m_optax.moments._identification.plan import UNDISTURBED
from l2m_optax.moments._identification.probe import Probe
from l2m_optax.moments._identification.trace import suffixes
from l2m_optax.moments._identification.verdict import LeafMoment

_LAST_KEY = re.compile(r"(\.\w+|\[[^\[\]]*\])$")


class Neighbours:
    """The arrays of a probe, sorted by where they lie.

    A *node* is the part of a state that one transformation keeps, such as a `ScaleByAdamState`: in
    ``[0].nu['w']`` the node is ``[0]``, the field ``.nu``, and ``['w']`` the path of the parameter.
    """

    def __init__(self, probe: Probe) -> None:
        self._probe = probe

    @cached_property
    def by_leaf(self) -> dict[str, list[str]]:
        """For the path of every parameter the paths into the state that end with it."""
        found: dict[str, list[str]] = {path: [] for path in self._probe.means}
        for where in self._probe.states:
            for suffix in suffixes(where):
                if suffix in found:
                    found[suffix].append(where)
        return found

    @cached_property
    def counts(self) -> dict[str, int]:
        """The numbers that count updates, with their first values; a stack has one a member."""
        return {p: int(n.flat[0]) for p, n in self._probe.states.items() if _counts(n)}

    @cached_property
    def hyperparameters(self) -> dict[str, float]:
        """The numbers that `optax.inject_hyperparams` keeps in the state."""
        numbers = {p: n for p, n in self._probe.states.items() if ".hyperparams[" in p}
        return {p: float(n[0, 0]) for p, n in numbers.items() if n.ndim == 2}

    def running_mean(
        self, where: str, path: str, g: np.ndarray, allowed: float
    ) -> tuple[str, float] | None:
        """The running mean of the gradients of the parameter at `path`, and its decay."""
        node, shape = _node(where, path), self._probe.states[where].shape
        for other in self.by_leaf.get(path, self._probe.states):
            m = self._probe.states[other]
            if other != where and m.shape == shape and _is_field(other, node, path):
                decay = _recurrence.first_order(m, g, allowed)
                if decay is not None:
                    return other, decay
        return None

    def count(self, where: str, path: str) -> str | None:
        """The count in the node, or else that of a wrapper around it."""
        node = _node(where, path)
        beside = [other for other in self.counts if _is_field(other, node, "")]
        around = [other for other in self.counts if _is_wrappers(other, node)]
        return next(iter(beside + around), None)

    def injected(self, moment: LeafMoment) -> str | None:
        """The hyperparameter around the moment that has the value of its decay."""
        hits = [
            path
            for path, value in self.hyperparameters.items()
            if _is_around(path, moment.path) and _is_near(value, moment.decay)
        ]
        # The decay of the gradients' mean may have the same value.
        return min(hits, key=lambda path: path.endswith("['b1']"), default=None)


def _node(where: str, path: str) -> str:
    return _LAST_KEY.sub("", where[: len(where) - len(path)])


def _is_field(other: str, node: str, path: str) -> bool:
    """Whether `other` is ``node``, one key, ``path``."""
    if not (other.startswith(node) and other.endswith(path)):
        return False
    key = other[len(node) : len(other) - len(path)]
    return bool(key) and not _LAST_KEY.sub("", key)


def _is_wrappers(other: str, node: str) -> bool:
    """Whether `other` is the count of a state, such as an `ExposedState`, around the node."""
    wrapper, is_count, _ = other.rpartition(".count")
    return bool(is_count) and node.startswith(f"{wrapper}.inner_state")


def _is_around(path: str, where: str) -> bool:
    """Whether `path` is a hyperparameter injected into the states under which `where` lies."""
    node, inside, _ = path.partition(".hyperparams[")
    return bool(inside) and where.startswith(f"{node}.inner_state")


def _is_near(value: Any, decay: float | None) -> bool:
    """Whether `value` is `decay` up to rounding to float32."""
    return decay is not None and abs(float(value) - decay) < 1e-7


def _counts(n: np.ndarray) -> bool:
    """Whether numbers go up by 1 with every update, until the probe makes them jump."""
    whole = np.issubdtype(n.dtype, np.integer) and n.size and np.all(n[0] == n.flat[0])
    return bool(whole and np.all(np.diff(n[: UNDISTURBED + 1], axis=0) == 1))
