"""The tuned temperature against a dense search with the same draws, and its edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import network
from scipy import optimize

import l2m_optax as l2m


@pytest.fixture
def labelled(posterior):
    inputs = jax.random.normal(jax.random.key(2), (300, 4))
    logits = 0.3 * network(posterior.mean, inputs)
    return inputs, jax.random.categorical(jax.random.key(3), logits)


def test_temperature_minimises_the_validation_loss(posterior, labelled):
    inputs, labels = labelled
    key = jax.random.key(9)
    fitted, info = l2m.tune(posterior, network, inputs, labels, key=key, num_samples=64)
    assert info.converged
    assert not info.edge

    def loss(log_temperature):
        candidate = posterior._replace(temperature=jnp.exp(log_temperature))
        logits = l2m.linearized(key, network, candidate, inputs, num_samples=64, antithetic=True)
        return float(l2m.metrics.negative_log_likelihood(l2m.classification(logits).probs, labels))

    best = optimize.minimize_scalar(loss, bounds=(-8, 6), method="bounded")
    np.testing.assert_allclose(loss(np.log(info.value)), best.fun, atol=1e-4)
    assert float(fitted.temperature) == float(info.value)


def test_own_temperature_plays_no_part_and_draws_repeat(posterior, labelled):
    first = l2m.tune(posterior, network, *labelled).info.value
    hotter = posterior._replace(temperature=jnp.float32(30.0))
    assert float(l2m.tune(hotter, network, *labelled).info.value) == float(first)


def test_regression_targets_use_the_exact_variance(posterior, inputs):
    x = jax.random.normal(jax.random.key(2), (200, 4))
    posterior = posterior._replace(noise_variance=jnp.float32(0.1), temperature=jnp.float32(1.0))
    unit = l2m.output_variance(network, posterior, x)
    mean = network(posterior.mean, x)
    noise = jax.random.normal(jax.random.key(8), mean.shape)
    targets = mean + jnp.sqrt(0.1 + 4.0 * unit) * noise
    info = l2m.tune(posterior, network, x, targets).info
    assert info.converged
    np.testing.assert_allclose(info.value, 4.0, rtol=0.4)


def test_a_bound_is_reported_and_not_returned(posterior):
    inputs = jax.random.normal(jax.random.key(2), (50, 4))
    sure = jnp.argmax(network(posterior.mean, inputs), axis=-1)
    fitted, info = l2m.tune(posterior, network, inputs, sure, bounds=(1e-3, 1e-1))
    assert info.edge
    assert not info.converged
    assert float(fitted.temperature) == float(posterior.temperature)


def test_nan_outputs_never_win(posterior, labelled):
    def broken(params, x):
        return network(params, x) * jnp.nan

    assert l2m.tune(posterior, broken, *labelled).info.edge
