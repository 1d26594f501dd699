"""What a posterior says about new inputs."""

from l2m_optax.predictive.linearized import linearized
from l2m_optax.predictive.plan import Plan, plan
from l2m_optax.predictive.predict import monte_carlo, predict
from l2m_optax.predictive.summaries import (
    Classification,
    Regression,
    classification,
    regression,
)
from l2m_optax.predictive.variance import output_covariance, output_variance

__all__ = [
    "Classification",
    "Plan",
    "Regression",
    "classification",
    "linearized",
    "monte_carlo",
    "output_covariance",
    "output_variance",
    "plan",
    "predict",
    "regression",
]
