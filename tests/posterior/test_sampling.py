"""Draws against the moments they should have; densities against SciPy's dense Gaussian."""

import jax
import jax.numpy as jnp
import numpy as np
from helpers import flat
from scipy import stats

import l2m_optax as l2m


def test_sample_moments(posterior):
    draws = l2m.sample(jax.random.key(0), posterior, 20_000)
    stacked = np.concatenate([np.reshape(d, (20_000, -1)) for d in jax.tree.leaves(draws)], axis=1)
    variance = flat(l2m.variance(posterior))
    error = (stacked.mean(0) - flat(posterior.mean)) / np.sqrt(variance / 20_000)
    assert np.max(np.abs(error)) < 4.5
    np.testing.assert_allclose(stacked.var(0), variance, rtol=0.06)
    correlation = np.corrcoef(stacked.T) - np.eye(len(variance))
    assert np.max(np.abs(correlation)) < 0.04


def test_antithetic_draws_mirror_one_another(posterior):
    draws = l2m.sample(jax.random.key(0), posterior, 6, antithetic=True)
    for leaf, mean in zip(jax.tree.leaves(draws), jax.tree.leaves(posterior.mean), strict=True):
        np.testing.assert_allclose(leaf[:3] + leaf[3:], jnp.stack([2 * mean] * 3), atol=1e-5)
    assert (
        l2m.sample(jax.random.key(0), posterior, 5, antithetic=True)["head"]["bias"].shape[0] == 5
    )


def test_density_and_entropy_are_the_dense_gaussians(posterior):
    gaussian = stats.multivariate_normal(
        flat(posterior.mean), np.diag(flat(l2m.variance(posterior)))
    )
    np.testing.assert_allclose(l2m.posterior.entropy(posterior), gaussian.entropy(), rtol=1e-5)
    theta = l2m.sample(jax.random.key(3), posterior, 1)
    theta = jax.tree.map(lambda x: x[0], theta)
    np.testing.assert_allclose(
        l2m.log_prob(posterior, theta), gaussian.logpdf(flat(theta)), rtol=1e-5
    )


def test_entropy_is_the_mean_negative_log_density(posterior):
    draws = l2m.sample(jax.random.key(4), posterior, 4000)
    log_probs = jax.vmap(lambda theta: l2m.log_prob(posterior, theta))(draws)
    error = -jnp.mean(log_probs) - l2m.posterior.entropy(posterior)
    assert abs(float(error)) < 5 * float(jnp.std(log_probs)) / np.sqrt(4000)
