"""The second moment of every parameter, out of what one probe recorded."""

from __future__ import annotations

from l2m_optax.moments._identification import recurrence as _recurrence
from l2m_optax.moments._identification.match import Matcher
from l2m_optax.moments._identification.probe import Probe
from l2m_optax.moments._identification.verdict import LeafMoment


def assign(probe: Probe) -> dict[str, LeafMoment | None] | str:
    """The moment of every parameter that was probed, by its path, or why there is none."""
    matcher = Matcher(probe)
    found = {path: list(matcher.moments(path)) for path in probe.means}
    if not any(found.values()):
        whole = matcher.whole()
        if whole is None:
            return "no array that is a mean of squared gradients"
        return dict.fromkeys(found, whole)
    roots = {m.path.removesuffix(path) for path, moments in found.items() for m in moments}
    leaves: dict[str, LeafMoment | None] = {}
    for path, moments in found.items():
        leaf = _only(path, moments, [r + path for r in roots if r + path in probe.states], probe)
        if isinstance(leaf, str):
            return leaf
        leaves[path] = leaf
    return leaves


def _only(
    path: str, moments: list[LeafMoment], held: list[str], probe: Probe
) -> LeafMoment | str | None:
    """The one moment of a parameter; `None` where no gradient ever reaches what is held for it."""
    if len(moments) > 1:
        return f"several for params{path}: " + ", ".join(m.path for m in moments)
    if moments:
        return moments[0]
    if not all(_recurrence.is_idle(probe.states[where]) for where in held):
        return f"one for some leaves, but {held[0]} is no second moment of params{path}"
    return None
