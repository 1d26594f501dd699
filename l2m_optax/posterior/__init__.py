"""The posterior: its parts, its scale, draws from it, and how far to trust it."""

from l2m_optax.posterior._posterior import Posterior, data_precision, precision
from l2m_optax.posterior._report import Diagnosis
from l2m_optax.posterior._sampling import entropy

__all__ = [
    "Diagnosis",
    "Posterior",
    "data_precision",
    "entropy",
    "precision",
]
