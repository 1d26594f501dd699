"""The front door: from a trained network to a posterior that predicts no worse than it does."""

from l2m_optax.fitting._report import Candidate, Report

__all__ = ["Candidate", "Report"]
