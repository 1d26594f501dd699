"""How much clipping in front of a second moment takes away, read off a probe."""

from __future__ import annotations

import numpy as np

from l2m_optax.moments._identification.plan import SCALES
from l2m_optax.moments._identification.probe import Arrays, Probe
from l2m_optax.moments._identification.verdict import Moments


def clipping_effect(probe: Probe, behind: Moments) -> str:
    r"""The norms of the largest gradients that were given, and that reached the moments behind.

    The first update leaves $n_1 = c \sum \tilde g^2$, where $\tilde g$ is the clipped gradient; the
    run with the smallest gradients, which nothing clips, gives $c$. Parameters whose moment is not
    known are taken to lose the same share.
    """
    given, known = _norm(probe.means), _norm({path: probe.means[path] for path in behind})
    states = [probe.states[path] for path in sorted({m.path for m in behind.values() if m})]
    grown = sum((n[1] - n[0]).reshape(len(SCALES), -1).sum(axis=1) for n in states)
    small, large = int(np.argmin(SCALES)), int(np.argmax(SCALES))
    if np.any(grown <= 0):  # a mean that started from something else forgets some of it
        return "how much is left of them cannot be told"
    held = np.sqrt(grown)
    reached = held / held[small] * known[small] * given / known
    return f"gradients of norm {given[large]:.3g} reach it with {reached[large]:.3g}"


def _norm(gradients: Arrays) -> np.ndarray:
    """The norm of the first gradients of each run."""
    return np.asarray(np.sqrt(sum(_per_run(g[0]) ** 2 for g in gradients.values())))


def _per_run(values: np.ndarray) -> np.ndarray:
    """The norm over all but the leading axis."""
    return np.asarray(np.linalg.norm(values.reshape(len(values), -1), axis=1))
