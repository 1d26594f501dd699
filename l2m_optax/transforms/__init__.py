"""Optax transformations that expose, track or use a running mean of squared gradients."""

from l2m_optax._support.groups import by_module
from l2m_optax.transforms._evidence_state import EvidenceRecord, EvidenceWeightDecayState
from l2m_optax.transforms._expose import ExposedState
from l2m_optax.transforms._structure import Stacked
from l2m_optax.transforms._track import TrackSecondMomentState

__all__ = [
    "EvidenceRecord",
    "EvidenceWeightDecayState",
    "ExposedState",
    "Stacked",
    "TrackSecondMomentState",
    "by_module",
]
