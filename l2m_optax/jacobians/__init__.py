"""Squared Jacobians without Jacobians, and the moments of the gradients of single examples."""

from l2m_optax.jacobians._drawn import fisher_gradients
from l2m_optax.jacobians._examples import ExampleMoments, second_moment_of_examples
from l2m_optax.jacobians._fisher import empirical_fisher

__all__ = [
    "ExampleMoments",
    "empirical_fisher",
    "fisher_gradients",
    "second_moment_of_examples",
]
