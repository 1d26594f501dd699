"""Draws against the moments they should have; densities against SciPy's dense Gaussian."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import flat, moment_of
from jax.experimental.compilation_cache import compilation_cache
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


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
@pytest.mark.parametrize("number", [4, 5])
def test_keys_of_any_kind_mirror_and_are_independent(posterior, impl, number):
    key = jax.random.key(0, impl=impl)
    draws = l2m.sample(key, posterior, number, antithetic=True)
    half = (number + 1) // 2
    for leaf, mean in zip(jax.tree.leaves(draws), jax.tree.leaves(posterior.mean), strict=True):
        mirrored = np.asarray(leaf[half:]) + np.asarray(leaf[: number - half])
        np.testing.assert_allclose(mirrored, np.stack([2 * mean] * (number - half)), atol=1e-5)
        assert len(np.unique(np.asarray(leaf - mean)[:half])) == half * mean.size


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_draws_of_leaves_of_one_shape_are_not_the_same(impl):
    params = {name: jnp.zeros((3, 2)) for name in "abc"}
    posterior = l2m.laplace(params, moment_of(params), num_data=50, batch_size=5)
    draws = l2m.sample(jax.random.key(0, impl=impl), posterior, 4)
    assert len(np.unique(np.concatenate([np.ravel(d) for d in draws.values()]))) == 3 * 4 * 6


WIDTHS = itertools.count(17)
"""Each is used once, so that nothing was compiled for it before."""


@pytest.mark.parametrize(
    "draw",
    [
        lambda key, p: l2m.sample(key, p, 3),
        lambda key, p: l2m.make_predictive(key, lambda p, x: x, p, num_samples=3).draws,
        lambda key, p: l2m.linearized(
            key, lambda p, x: x @ p["0"][:1], p, jnp.ones((4, 1)), num_samples=3
        ),
    ],
    ids=["sample", "make_predictive", "linearized"],
)
def test_the_first_call_does_not_grow_with_the_number_of_leaves(draw):
    """As many programs as there are shapes, which take as long to compile."""
    seconds = []

    def listen(event, duration, **_):
        if event.endswith("backend_compile_duration"):
            seconds.append(duration)

    def compile_for(number):
        width = next(WIDTHS)
        params = {str(i): jnp.zeros((width,) if i % 2 else (width, 2)) for i in range(number)}
        posterior = l2m.laplace(params, moment_of(params), num_data=50, batch_size=5)
        seconds.clear()
        jax.block_until_ready(draw(jax.random.key(0), posterior))
        return len(seconds), sum(seconds)

    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        compile_for(2)  # what is the same for all shapes
        few, time_for_few = compile_for(4)
        many, time_for_many = compile_for(60)
    finally:
        jax.monitoring.clear_event_listeners()
        jax.config.update("jax_enable_compilation_cache", True)
        compilation_cache.reset_cache()
    assert 0 < many == few < 10
    assert time_for_many < 4 * time_for_few
