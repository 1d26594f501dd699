"""A moment that changes its law as updates are counted, as with a schedule: read off a probe."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from l2m_optax.moments._identification.neighbours import Neighbours
from l2m_optax.moments._identification.plan import SIZES
from l2m_optax.moments._identification.probe import Probe
from l2m_optax.moments._identification.recurrence import one_update, tolerance

_LARGE = 0.5
_UPDATES = [t for t, size in enumerate(SIZES) if t > 0 and size >= _LARGE]
"""Updates whose squares are large enough beside the moment to show what multiplies them."""
_SPREAD = 1e-2
"""Relative changes above this are no rounding."""


def changing_law(probe: Probe) -> str | None:
    """The first moment whose decay or scale changes, and between what; `None` if none does."""
    if probe.waits:  # no gradient ever entered what moves
        return None
    by_leaf = Neighbours(probe).by_leaf
    for path, gradients in probe.means.items():
        for where in by_leaf[path]:
            changes = list(_changes(probe.states[where], np.square(gradients), probe.micro_steps))
            if changes:
                return f"a moment, opt_state{where}, whose {', and whose '.join(changes)}"
    return None


def _changes(n: np.ndarray, x: np.ndarray, micro_steps: int) -> Iterator[str]:
    """What differs between the laws of the updates, if each has a law that all runs obey."""
    if n.shape[1:] != x.shape[1:] or n.dtype.kind != "f":
        return
    allowed = tolerance(rounded=micro_steps > 1)  # MultiSteps gathers in float32
    laws = [one_update(n[t], n[t + 1], x[t], allowed) for t in _UPDATES]
    known = np.array([law for law in laws if law is not None])
    if len(known) < len(laws):
        return
    decay, share = known.T
    forgotten = np.where(1.0 - decay > 10 * allowed, 1.0 - decay, 0.0)
    scale = share / np.where(forgotten > 0.0, forgotten, 1.0)  # a sum forgets nothing
    if _differ(forgotten):
        yield f"decay changes {_between(decay)}, as with a schedule of b2"
    if _differ(scale):
        before = "as with a schedule, or a step size that is adapted, in front of it"
        yield f"scale changes {_between(scale)}, {before}"


def _differ(values: np.ndarray) -> bool:
    return bool(np.ptp(values) > _SPREAD * np.max(values))


def _between(values: np.ndarray) -> str:
    return f"from update to update (between {values.min():.4g} and {values.max():.4g})"
