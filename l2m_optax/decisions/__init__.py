"""From predictions to decisions: what to keep, what to label, which interval to state."""

from l2m_optax.decisions._conformal import (
    Interval,
    conformal_interval,
    conformal_quantile,
    conformal_set,
    label_scores,
    prediction_interval,
    residual_scores,
)
from l2m_optax.decisions._novelty import novelty
from l2m_optax.decisions._scores import (
    OutOfDistributionScores,
    bald_scores,
    out_of_distribution_scores,
    regression_bald_scores,
)
from l2m_optax.decisions._selective import SelectiveThreshold, selective_threshold

__all__ = [
    "Interval",
    "OutOfDistributionScores",
    "SelectiveThreshold",
    "bald_scores",
    "conformal_interval",
    "conformal_quantile",
    "conformal_set",
    "label_scores",
    "novelty",
    "out_of_distribution_scores",
    "prediction_interval",
    "regression_bald_scores",
    "residual_scores",
    "selective_threshold",
]
