"""What a posterior says about new inputs."""

from l2m_optax.predictive.closed_form import (
    laplace_bridge,
    mean_field_0,
    mean_field_1,
    mean_field_2,
    probit,
)
from l2m_optax.predictive.exact import linearized_regression
from l2m_optax.predictive.linearized import linearized
from l2m_optax.predictive.plan import Plan, plan
from l2m_optax.predictive.predict import monte_carlo, predict
from l2m_optax.predictive.summaries import (
    Classification,
    Regression,
    classification,
    heteroscedastic_regression,
    regression,
)
from l2m_optax.predictive.variance import output_covariance, output_variance

__all__ = [
    "Classification",
    "Plan",
    "Regression",
    "classification",
    "heteroscedastic_regression",
    "laplace_bridge",
    "linearized",
    "linearized_regression",
    "mean_field_0",
    "mean_field_1",
    "mean_field_2",
    "monte_carlo",
    "output_covariance",
    "output_variance",
    "plan",
    "predict",
    "probit",
    "regression",
]
