"""Measures of predictions: accuracy, likelihood, calibration, ranking, intervals.

Each takes arrays and returns a scalar or a curve.
"""

from l2m_optax.metrics._calibration import (
    ReliabilityCurve,
    adaptive_calibration_error,
    classwise_calibration_error,
    expected_calibration_error,
    maximum_calibration_error,
    reliability_curve,
)
from l2m_optax.metrics._classification import accuracy, brier_score, negative_log_likelihood
from l2m_optax.metrics._ranking import aupr, auroc, fpr_at_95_tpr
from l2m_optax.metrics._regression import (
    gaussian_crps,
    gaussian_interval,
    gaussian_negative_log_likelihood,
    interval_coverage,
    mean_interval_width,
    picp,
    root_mean_squared_error,
)
from l2m_optax.metrics._samples import energy_score, sample_crps
from l2m_optax.metrics._selective import RiskCoverageCurve, aurc, risk_coverage_curve

__all__ = [
    "ReliabilityCurve",
    "RiskCoverageCurve",
    "accuracy",
    "adaptive_calibration_error",
    "aupr",
    "aurc",
    "auroc",
    "brier_score",
    "classwise_calibration_error",
    "energy_score",
    "expected_calibration_error",
    "fpr_at_95_tpr",
    "gaussian_crps",
    "gaussian_interval",
    "gaussian_negative_log_likelihood",
    "interval_coverage",
    "maximum_calibration_error",
    "mean_interval_width",
    "negative_log_likelihood",
    "picp",
    "reliability_curve",
    "risk_coverage_curve",
    "root_mean_squared_error",
    "sample_crps",
]
