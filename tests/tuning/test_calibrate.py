"""Noise and temperature on validation data, against scipy and against made-up noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import moment_of, network, network_params
from scipy import optimize

import l2m_optax as l2m


@pytest.fixture(scope="module")
def problem():
    params = network_params(jax.random.key(0))
    posterior = l2m.laplace(params, moment_of(params), num_data=50, batch_size=5)
    x = jax.random.normal(jax.random.key(1), (300, 4))
    v = l2m.output_variance(network, posterior, x)
    noise = jnp.sqrt(0.5 + 0.2 * v) * jax.random.normal(jax.random.key(2), v.shape)
    return posterior, x, network(params, x) + noise, np.asarray(v, np.float64)


def test_both_are_what_scipy_finds(problem):
    posterior, x, y, v = problem
    squares = np.square(np.asarray(y - network(posterior.mean, x), np.float64))

    def loss(logs):
        total = np.exp(logs[0]) + np.exp(logs[1]) * v
        return np.mean(0.5 * (np.log(total) + squares / total))

    best = optimize.minimize(loss, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-6})
    fitted, info = l2m.tuning.calibrate_noise(network, posterior, x, y)
    found = np.log([info.value["noise_variance"], info.value["temperature"]])
    np.testing.assert_allclose(loss(found), best.fun, atol=1e-5)
    np.testing.assert_allclose(found, best.x, atol=0.1)
    assert info.converged and not info.edge
    # What regress says is s² + T v, and F is as it was.
    p = l2m.regress(network, fitted, x)
    np.testing.assert_allclose(p.total, np.exp(found[0]) + np.exp(found[1]) * v, rtol=1e-4)


def test_where_the_variance_says_nothing_it_is_the_mode(problem):
    posterior, x, _, v = problem
    spread = 1.0 / np.sqrt(1.0 + v)  # larger errors where the posterior is surer
    y = network(posterior.mean, x) + spread * jax.random.normal(jax.random.key(3), v.shape)
    fitted, info = l2m.tuning.calibrate_noise(network, posterior, x, y)
    assert float(fitted.temperature) == 0.0 and info.edge and not info.converged
    residuals = np.asarray(y - network(posterior.mean, x))
    np.testing.assert_allclose(fitted.noise_variance, np.mean(np.square(residuals)), rtol=1e-4)


def test_without_residuals_nothing_changes(problem):
    posterior, x, _, _ = problem
    exact = jax.jit(network)(posterior.mean, x)
    compiled = jax.jit(network)
    with pytest.warns(UserWarning, match="residuals that differ from 0"):
        fitted, info = l2m.tuning.calibrate_noise(compiled, posterior, x, exact)
    assert info.edge and float(fitted.noise_variance) == float(posterior.noise_variance)


def test_noise_that_the_variance_leaves_no_room_for_is_warned_of(problem):
    """Errors that grow faster than the posterior's own deviation, and vanish with it."""
    posterior, x, _, v = problem
    errors = v * jax.random.rademacher(jax.random.key(3), v.shape)
    with pytest.warns(UserWarning, match="temperature: .* got the upper bound, and keeps it"):
        fitted, info = l2m.tuning.calibrate_noise(
            network, posterior, x, network(posterior.mean, x) + errors
        )
    assert info.edge and not info.converged
    share = fitted.temperature * np.mean(v) / fitted.noise_variance
    np.testing.assert_allclose(share, np.exp(7.0), rtol=1e-3)


def test_targets_that_broadcast_are_refused(problem):
    posterior, x, y, _ = problem
    with pytest.raises(ValueError, match="targets"):
        l2m.tuning.calibrate_noise(lambda p, x: network(p, x)[:, :1], posterior, x, y[:, 0])


@pytest.fixture(scope="module")
def labelled():
    """A network that is too sure: labels are drawn from its logits divided by 2."""
    params = jax.tree.map(lambda x: 2.0 * x, network_params(jax.random.key(0)))
    posterior = l2m.laplace(params, moment_of(params), num_data=50, batch_size=5)
    x = jax.random.normal(jax.random.key(1), (200, 4))
    labels = jax.random.categorical(jax.random.key(4), 0.5 * network(params, x))
    return posterior, x, labels


def test_the_temperature_is_the_best_for_classify(labelled):
    posterior, x, labels = labelled
    fitted, info = l2m.tuning.calibrate_temperature(network, posterior, x, labels)

    def loss(temperature):
        at = posterior._replace(temperature=jnp.asarray(temperature, jnp.float32))
        return l2m.metrics.negative_log_likelihood(l2m.classify(network, at, x).probs, labels)

    found = float(info.value)
    assert 0 < found < 100 and float(fitted.temperature) == found and not info.edge
    assert loss(found) < min(loss(found * 2.0), loss(found / 2.0), loss(0.0))


def test_the_highest_temperature_is_kept_with_a_warning(labelled):
    """A posterior a million times too narrow, and labels that the network does not know."""
    posterior, x, _ = labelled
    narrow = posterior._replace(data_scale=1e6 * posterior.data_scale, prior_precision=1e6)
    labels = jax.random.randint(jax.random.key(5), (200,), 0, 3)
    with pytest.warns(UserWarning, match="temperature: .* below 100, got the upper bound, and k"):
        fitted, info = l2m.tuning.calibrate_temperature(network, narrow, x, labels)
    assert info.edge and not info.converged
    assert float(fitted.temperature) == float(info.value) == 100.0


def test_an_unsure_network_stays_as_it_is(labelled):
    posterior, x, _ = labelled
    sure = network(posterior.mean, x).argmax(-1)
    fitted, info = l2m.tuning.calibrate_temperature(network, posterior, x, sure)
    assert float(fitted.temperature) == 0.0 and info.edge


def test_numbers_are_no_labels(problem):
    posterior, x, y, _ = problem
    with pytest.raises(ValueError, match="class numbers"):
        l2m.tuning.calibrate_temperature(network, posterior, x, y)
