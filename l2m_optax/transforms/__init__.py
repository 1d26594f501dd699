"""Optax transformations that expose, or track, a running mean of squared gradients."""

from l2m_optax.transforms._expose import ExposedState
from l2m_optax.transforms._structure import Stacked
from l2m_optax.transforms._track import TrackSecondMomentState

__all__ = [
    "ExposedState",
    "Stacked",
    "TrackSecondMomentState",
]
