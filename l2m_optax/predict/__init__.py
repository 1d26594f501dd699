"""From a posterior to predictions: draws, exact variances, integrals over a softmax, serving."""

from l2m_optax.predict._draws import apply_ensemble
from l2m_optax.predict._integral import softmax_integral
from l2m_optax.predict._laplace_bridge import laplace_bridge
from l2m_optax.predict._mean_field import mean_field, probit
from l2m_optax.predict._serving import Predictive
from l2m_optax.predict._summaries import Classification, Regression, heteroscedastic_regression
from l2m_optax.predict._tabulate import VarianceTable, tabulate

__all__ = [
    "Classification",
    "Predictive",
    "Regression",
    "VarianceTable",
    "apply_ensemble",
    "heteroscedastic_regression",
    "laplace_bridge",
    "mean_field",
    "probit",
    "softmax_integral",
    "tabulate",
]
