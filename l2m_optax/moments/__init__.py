"""From any optimizer state to the running mean of squared gradients that it holds."""

from l2m_optax.moments._basis import Basis
from l2m_optax.moments._identification.verdict import Identification, LeafMoment
from l2m_optax.moments._moment import debiased

__all__ = [
    "Basis",
    "Identification",
    "LeafMoment",
    "debiased",
]
