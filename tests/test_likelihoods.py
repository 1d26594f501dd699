"""Log-likelihoods against scipy, and what is made of networks that say their own noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import network
from scipy import special, stats

import l2m_optax as l2m
from l2m_optax import likelihoods


def test_categorical_is_scipys():
    logits = np.random.default_rng(0).normal(size=(3, 5, 4))
    labels = np.array([0, 3, 1, 1, 2])
    expected = special.log_softmax(logits, axis=-1)[:, np.arange(5), labels]
    np.testing.assert_allclose(likelihoods.categorical(logits, labels), expected, rtol=1e-5)


def test_gaussian_is_scipys():
    mean, targets = np.random.default_rng(0).normal(size=(2, 5, 4))
    expected = stats.norm(mean, np.sqrt(0.3)).logpdf(targets)
    np.testing.assert_allclose(likelihoods.gaussian(mean, targets, 0.3), expected, rtol=1e-5)


def test_heteroscedastic_gaussian_is_scipys():
    mean, log_variance, targets = np.random.default_rng(0).normal(size=(3, 6, 5))
    expected = stats.norm(mean, np.exp(0.5 * log_variance)).logpdf(targets[0])
    outputs = np.stack([mean, log_variance], axis=-1)
    found = likelihoods.heteroscedastic_gaussian(outputs, targets[0])
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_heteroscedastic_summary_is_the_variance_of_what_is_drawn():
    rng = np.random.default_rng(0)
    samples = rng.normal(size=(40, 3, 2))
    prediction = l2m.predict.heteroscedastic_regression(samples)
    drawn = samples[..., 0] + np.exp(0.5 * samples[..., 1]) * rng.normal(size=(20_000, 40, 3))
    np.testing.assert_allclose(prediction.total, drawn.var(axis=(0, 1)), rtol=0.04)
    np.testing.assert_allclose(prediction.mean, samples[..., 0].mean(0), rtol=1e-5)
    np.testing.assert_allclose(prediction.aleatoric, np.exp(samples[..., 1]).mean(0), rtol=1e-5)


def test_heteroscedastic_needs_pairs():
    with pytest.raises(ValueError, match="2 entries"):
        l2m.predict.heteroscedastic_regression(jnp.ones((4, 3, 3)))


def test_a_heteroscedastic_network_is_tuned_by_its_own_likelihood(posterior):
    inputs = jax.random.normal(jax.random.key(2), (300, 4))

    def pairs(params, x):
        return network(params, x)[:, :2]

    kwargs = {"likelihood": likelihoods.heteroscedastic_gaussian, "num_samples": 8}
    mean, log_variance = pairs(posterior.mean, inputs).T
    noise = jax.random.normal(jax.random.key(3), mean.shape)
    targets = mean + 1.5 * jnp.exp(0.5 * log_variance) * noise
    info = l2m.tune(pairs, posterior, inputs, targets, **kwargs).info
    key = jax.random.key(0)

    def loss(temperature):
        candidate = posterior._replace(temperature=temperature)
        draws = l2m.linearized(key, pairs, candidate, inputs, num_samples=8, antithetic=True)
        each = stats.norm(draws[..., 0], np.exp(0.5 * draws[..., 1])).logpdf(targets)
        return -np.mean(special.logsumexp(each, axis=0) - np.log(8))

    assert info.converged
    assert loss(info.value) < min(loss(0.8 * info.value), loss(1.25 * info.value))


def test_regress_is_what_many_draws_tend_to(posterior, inputs):
    posterior = posterior._replace(noise_variance=jnp.float32(0.3))
    exact = l2m.regress(network, posterior, inputs)
    draws = l2m.linearized(jax.random.key(0), network, posterior, inputs, num_samples=20_000)
    sampled = l2m.regression(draws, 0.3)
    np.testing.assert_allclose(exact.mean, network(posterior.mean, inputs))
    np.testing.assert_allclose(exact.epistemic, sampled.epistemic, rtol=0.06)
    np.testing.assert_allclose(exact.total, exact.epistemic + 0.3, rtol=1e-6)


BROADCAST = {
    "row against a column": lambda y: likelihoods.gaussian(jnp.ones((5, 1)), y),
    "row against columns of draws": lambda y: likelihoods.gaussian(jnp.ones((3, 5, 1)), y),
    "column against a row": lambda y: likelihoods.gaussian(jnp.ones(5), y[:, None]),
    "pairs": lambda y: likelihoods.heteroscedastic_gaussian(jnp.ones((5, 1, 2)), y),
    "labels": lambda y: likelihoods.categorical(jnp.ones((5, 1, 3)), y.astype(int)),
    "column of labels": lambda y: likelihoods.categorical(jnp.ones((5, 3)), y[:, None].astype(int)),
}


@pytest.mark.parametrize("case", BROADCAST)
def test_targets_that_would_be_broadcast_are_refused(case):
    with pytest.raises(ValueError, match=r"(targets|labels): expected shape \("):
        BROADCAST[case](jnp.zeros(5))


def test_axes_of_draws_are_not_broadcasting():
    assert likelihoods.gaussian(jnp.ones((3, 2, 5, 1)), jnp.ones((5, 1))).shape == (3, 2, 5, 1)
    labels = jnp.ones((5, 4), int)
    assert likelihoods.categorical(jnp.ones((3, 5, 4, 2)), labels).shape == (3, 5, 4)
