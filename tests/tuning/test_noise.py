"""The noise variance: its equation, its residuals, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import moment_of, network, network_params

import l2m_optax as l2m

NUMBER = 400


def posterior_for(number=NUMBER, size=1.0):
    """A regression of `network`; as the noise grows, so do the gradients."""
    params = network_params(jax.random.key(0))
    moment = moment_of(params)
    moment = moment._replace(nu=jax.tree.map(lambda nu: size**2 * nu, moment.nu))
    return l2m.laplace(params, moment, num_data=number, batch_size=4, loss_scale=2.0)


def data_for(posterior, size=0.3, number=NUMBER):
    """Inputs, and targets with so much noise."""
    x = jax.random.normal(jax.random.key(1), (number, 4))
    means = network(posterior.mean, x)
    return x, means + size * jax.random.normal(jax.random.key(2), means.shape)


def rss_of(posterior, x, y):
    return float(np.sum(np.square(np.float64(y) - np.float64(network(posterior.mean, x)))))


@pytest.mark.parametrize("size", [0.01, 0.3, 30.0])
def test_noise_solves_its_equation(size):
    posterior = posterior_for(size=size)
    x, y = data_for(posterior, size)
    fitted, info = l2m.fit_noise_variance(network, posterior, x, y)
    assert info.converged
    assert not info.edge
    assert 1 <= info.iterations <= 30  # each halves a bracket of 30 in log s², down to 1e-5
    gamma = float(l2m.tuning.effective_parameters(fitted))
    assert gamma > 1.0
    np.testing.assert_allclose(info.value, rss_of(posterior, x, y) / (y.size - gamma), rtol=1e-4)
    prior = l2m.fit_prior_precision(fitted).info.value
    np.testing.assert_allclose(fitted.prior_precision, prior, rtol=1e-3)
    again = l2m.fit_noise_variance(network, fitted, x, y).info.value
    np.testing.assert_allclose(again, info.value, rtol=1e-4)


def test_noise_is_found_with_more_parameters_than_data():
    """γ may exceed N while s² is small; the solution lies where it no longer does."""
    posterior = posterior_for(10)
    fitted, info = l2m.fit_noise_variance(network, posterior, *data_for(posterior, 1e-3, 10))
    assert bool(info.converged)
    assert float(l2m.tuning.effective_parameters(fitted)) < 30


def test_noise_takes_groups():
    posterior = posterior_for()
    groups = {"body": 0, "head": 1}
    fitted, _ = l2m.fit_noise_variance(network, posterior, *data_for(posterior), groups=groups)
    prior = l2m.fit_prior_precision(fitted, groups=groups).info.value
    np.testing.assert_allclose(fitted.prior_precision["head"]["bias"], prior[1], rtol=1e-3)


def test_residuals_of_zero_leave_the_noise_and_say_so():
    posterior = posterior_for()
    x, _ = data_for(posterior)
    y = jax.jit(network)(posterior.mean, x)
    with pytest.warns(UserWarning, match="noise_variance: expected residuals that differ from 0"):
        fitted, info = l2m.fit_noise_variance(network, posterior, x, y)
    assert info.edge
    assert float(fitted.noise_variance) == 1.0


def test_a_loader_and_means_at_hand_give_what_the_arrays_give():
    posterior = posterior_for()
    x, y = data_for(posterior)
    whole = l2m.fit_noise_variance(network, posterior, x, y).info.value
    loader = [(np.asarray(x[i : i + 150]), np.asarray(y[i : i + 150])) for i in (0, 150, 300)]
    parts = l2m.fit_noise_variance(network, posterior, loader).info.value
    means = network(posterior.mean, x)
    at_hand = l2m.fit_noise_variance(lambda params, means: means, posterior, means, y).info.value
    np.testing.assert_allclose([parts, at_hand], whole, rtol=1e-4)


def test_outputs_without_a_last_axis_have_as_many_residuals():
    posterior = posterior_for()
    x, y = data_for(posterior)
    one = l2m.fit_noise_variance(lambda p, x: network(p, x)[:, 0], posterior, x, y[:, 0])
    column = l2m.fit_noise_variance(lambda p, x: network(p, x)[:, :1], posterior, x, y[:, :1])
    np.testing.assert_allclose(one.info.value, column.info.value, rtol=1e-5)


def test_nan_among_traced_targets_is_no_silent_number():
    posterior = posterior_for()
    x, y = data_for(posterior)
    fit = jax.jit(lambda y: l2m.fit_noise_variance(network, posterior, x, y).info)
    info = fit(y.at[3, 1].set(jnp.nan))
    assert np.isnan(info.value)
    assert info.edge
    assert not info.converged


def test_targets_that_would_be_broadcast_are_refused():
    """(n,) from (n, 1) makes n x n residuals, and ten times the noise."""
    posterior = posterior_for()
    x, y = data_for(posterior)

    def column(params, x):
        return network(params, x)[:, :1]

    with pytest.raises(ValueError, match=r"pass targets\[\.\.\., None\]"):
        l2m.fit_noise_variance(column, posterior, x, y[:, 0])
    info = l2m.fit_noise_variance(column, posterior, x, y[:, 0][..., None]).info
    assert 0.05 < info.value < 0.15


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda f, p, x, y: (p, f, x, y), TypeError, "apply_fn: expected a function, got a Post"),
        (lambda f, p, x, y: (p, y - f(p.mean, x), x), TypeError, "got a Posterior; pass"),
        (lambda f, p, x, y: (f, x, p, y), TypeError, "posterior: expected a Posterior"),
        (lambda f, p, x, y: (f, p, x), TypeError, "targets: expected an array"),
        (lambda f, p, x, y: (f, p, x, y[:9]), ValueError, "the targets of these 400 inputs"),
        (lambda f, p, x, y: (f, p, x, y.argmax(1)), ValueError, "numbers, got class numbers"),
        (lambda f, p, x, y: (f, p, x, y.at[0].set(jnp.inf)), ValueError, "3 NaN or infinite"),
        (lambda f, p, x, y: (f, p, [(x[:0], y[:0])]), ValueError, "leading axis"),
    ],
)
def test_refusals(change, error, message):
    posterior = posterior_for()
    with pytest.raises(error, match=message):
        l2m.fit_noise_variance(*change(network, posterior, *data_for(posterior)))


@pytest.mark.parametrize("number", [399, 401])
def test_a_part_of_the_training_data_is_refused(monkeypatch, number):
    posterior = posterior_for()
    x, y = data_for(posterior)
    monkeypatch.setattr(l2m.posterior.Posterior, "num_data", number, raising=False)
    with pytest.raises(ValueError, match=f"inputs: expected the {number} examples .*, got 400"):
        l2m.fit_noise_variance(network, posterior, x, y)


@pytest.mark.parametrize("number", [400, 1200])
def test_all_training_data_are_taken_by_examples_or_by_steps(monkeypatch, number):
    """Three steps an example may have been counted as one or as three."""
    posterior = posterior_for()
    x, y = data_for(posterior)
    monkeypatch.setattr(l2m.posterior.Posterior, "num_data", number, raising=False)

    def steps(params, x):
        return network(params, x)[:, :, None]

    assert l2m.fit_noise_variance(steps, posterior, x, y[:, :, None]).info.converged
