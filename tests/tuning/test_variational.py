"""The evidence lower bound against conjugate regression, where it is the evidence itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import network
from scipy import stats

import l2m_optax as l2m

NOISE, PRIOR = 0.4, 2.0
KEY = jax.random.key(0)
"""Also that of the draws in `tune`."""


INPUTS, LABELS = jnp.ones((4, 4)), jnp.array([0, 1, 2, 0])


def linear(params, x):
    return x @ params


@pytest.fixture(scope="module")
def conjugate():
    """Orthogonal columns: the exact posterior of y = X w + noise is diagonal."""
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.normal(size=(60, 3)))
    x = basis * np.array([2.0, 5.0, 9.0])
    y = x @ rng.normal(size=3) + np.sqrt(NOISE) * rng.normal(size=60)
    precision = np.sum(np.square(x), axis=0) / NOISE
    mode = (x.T @ y / NOISE) / (precision + PRIOR)
    moment = l2m.SecondMoment(nu=jnp.asarray(precision[:, None], jnp.float32))
    posterior = l2m.laplace(
        jnp.asarray(mode[:, None], jnp.float32),
        moment,
        num_data=60,
        batch_size=1,
        prior_precision=PRIOR,
    )
    posterior = posterior._replace(
        noise_variance=jnp.float32(NOISE), data_scale=jnp.float32(NOISE**2)
    )
    return posterior, jnp.asarray(x, jnp.float32), jnp.asarray(y[:, None], jnp.float32)


def evidence(x, y):
    covariance = np.asarray(x @ x.T, np.float64) / PRIOR + NOISE * np.eye(len(y))
    return stats.multivariate_normal(np.zeros(len(y)), covariance).logpdf(np.ravel(y))


def test_elbo_is_the_evidence_where_the_posterior_is_exact(conjugate):
    posterior, x, y = conjugate
    np.testing.assert_allclose(
        l2m.tuning.elbo(KEY, linear, posterior, x, y), evidence(x, y), atol=1e-3
    )
    log_likelihood = jnp.sum(l2m.likelihoods.gaussian(linear(posterior.mean, x), y, NOISE))
    laplace = l2m.tuning.log_evidence(posterior, log_likelihood)
    np.testing.assert_allclose(l2m.tuning.elbo(KEY, linear, posterior, x, y), laplace, atol=1e-3)


@pytest.mark.parametrize(("name", "factor"), [("temperature", 3.0), ("temperature", 0.3)])
def test_elbo_is_a_lower_bound_otherwise(conjugate, name, factor):
    posterior, x, y = conjugate
    off = posterior._replace(**{name: factor * getattr(posterior, name)})
    assert l2m.tuning.elbo(KEY, linear, off, x, y) < evidence(x, y) - 0.1


def test_draws_and_loaders_estimate_the_same(conjugate):
    posterior, x, y = conjugate

    def likelihood(outputs, targets):
        return l2m.likelihoods.gaussian(outputs, targets, NOISE)

    loader = [(x[:40], y[:40]), (x[40:], y[40:])]
    by_draws = l2m.tuning.elbo(
        KEY, linear, posterior, loader, likelihood=likelihood, num_samples=4000
    )
    np.testing.assert_allclose(by_draws, evidence(x, y), atol=0.2)


def test_tuning_by_elbo_finds_the_exact_posterior(conjugate):
    posterior, x, y = conjugate
    info = l2m.tune(linear, posterior, x, y, objective="elbo").info
    np.testing.assert_allclose(info.value, 1.0, rtol=2e-3)


def test_tuning_by_elbo_is_the_best_of_elbo_for_labels(posterior):
    inputs = jax.random.normal(jax.random.key(2), (100, 4))
    labels = jax.random.categorical(jax.random.key(3), network(posterior.mean, inputs))
    fitted, info = l2m.tune(network, posterior, inputs, labels, objective="elbo", num_samples=16)
    best = l2m.tuning.elbo(KEY, network, fitted, inputs, labels, num_samples=16)
    assert not info.edge
    for factor in (0.9, 1.1):
        other = fitted._replace(temperature=factor * fitted.temperature)
        assert l2m.tuning.elbo(KEY, network, other, inputs, labels, num_samples=16) < best


def test_divergence_is_the_mean_of_log_densities(posterior):
    draws = l2m.sample(jax.random.key(0), posterior, 20_000)
    flat = [np.reshape(leaf, (20_000, -1)) for leaf in jax.tree.leaves(draws)]
    prior = stats.norm(0, 1 / np.sqrt(posterior.prior_precision)).logpdf(np.hstack(flat)).sum(1)
    own = jax.vmap(lambda draw: l2m.log_prob(posterior, draw))(draws)
    np.testing.assert_allclose(l2m.tuning.kl_divergence(posterior), np.mean(own - prior), rtol=2e-3)


def test_divergence_counts_from_the_prior_mean(posterior):
    around = posterior._replace(prior_mean=posterior.mean)
    shift = 0.5 * 2.0 * sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(posterior.mean))
    difference = l2m.tuning.kl_divergence(posterior) - l2m.tuning.kl_divergence(around)
    np.testing.assert_allclose(difference, shift, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f, p: (p, f, INPUTS, LABELS), "posterior: expected a Posterior, got a"),
        (lambda f, p: (f, p, INPUTS, LABELS), "apply_fn: expected a function, got a Posterior"),
        (lambda f, p: (KEY, p, f, INPUTS, LABELS), "apply_fn: expected a function, got a Post"),
    ],
    ids=["no key", "no key, swapped", "swapped"],
)
def test_another_order_of_arguments_is_refused(posterior, change, message):
    with pytest.raises(TypeError, match=message):
        l2m.tuning.elbo(*change(network, posterior))


def test_the_bound_of_the_mode_itself_is_minus_infinity(posterior):
    cold = posterior._replace(temperature=jnp.float32(0.0))
    assert l2m.tuning.elbo(KEY, network, cold, INPUTS, LABELS) == -jnp.inf
