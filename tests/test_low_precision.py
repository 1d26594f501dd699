"""Narrow types hold the arrays; what is computed from them is what float64 says."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import network, network_params

import l2m_optax as l2m

NARROW = [jnp.bfloat16, jnp.float16, jnp.float8_e4m3fn, jnp.float8_e5m2]
SIZE, NUM_DATA, BATCH = 4096, 1000, 10


def stored(dtype):
    """Parameters and moments over many powers of two, rounded to the type, and these in float64."""
    rng = np.random.default_rng(0)
    limits = jnp.finfo(dtype)
    low, high = float(limits.smallest_subnormal), float(limits.max) / 4
    exponents = rng.uniform(max(np.log2(low), -24), min(np.log2(high), 4), SIZE)
    nu = jnp.asarray(2.0**exponents, jnp.float32).astype(dtype)
    mean = jnp.asarray(rng.normal(size=SIZE), jnp.float32).astype(dtype)
    return mean, nu, np.asarray(mean, np.float64), np.asarray(nu, np.float64)


@pytest.mark.parametrize("dtype", NARROW)
def test_statistics_are_those_of_float64(dtype):
    mean, nu, exact_mean, exact_nu = stored(dtype)
    posterior = l2m.laplace(
        mean, l2m.SecondMoment(nu=nu), num_data=NUM_DATA, batch_size=BATCH, prior_precision=1e-3
    )
    scale = NUM_DATA * BATCH * (NUM_DATA - 1) / (NUM_DATA - BATCH)
    precision = scale * exact_nu + 1e-3
    found = l2m.posterior.precision(posterior)
    assert found.dtype == jnp.float32
    # The smallest values survive: each entry is right to float32, whatever its size.
    np.testing.assert_allclose(found, precision, rtol=1e-5)
    evidence = -0.5 * np.sum(1e-3 * exact_mean**2 + np.log(precision / 1e-3))
    np.testing.assert_allclose(l2m.tuning.log_evidence(posterior), evidence, rtol=1e-5)
    shares = scale * exact_nu / precision
    np.testing.assert_allclose(l2m.tuning.effective_parameters(posterior), shares.sum(), rtol=1e-5)
    entropy = 0.5 * np.sum(np.log(2 * np.pi * np.e / precision))
    np.testing.assert_allclose(l2m.posterior.entropy(posterior), entropy, rtol=1e-5)


@pytest.mark.parametrize("dtype", NARROW)
def test_prior_precision_is_that_of_float64(dtype):
    mean, nu, exact_mean, exact_nu = stored(dtype)
    posterior = l2m.laplace(mean, l2m.SecondMoment(nu=nu), num_data=NUM_DATA, batch_size=BATCH)
    found = float(l2m.fit_prior_precision(posterior).info.value)
    data = NUM_DATA * BATCH * (NUM_DATA - 1) / (NUM_DATA - BATCH) * exact_nu
    gamma = np.sum(data / (data + found))
    np.testing.assert_allclose(found, gamma / np.sum(exact_mean**2), rtol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_draws_are_rounded_once(dtype):
    mean, nu, _, _ = stored(dtype)
    posterior = l2m.laplace(mean, l2m.SecondMoment(nu=nu), num_data=NUM_DATA, batch_size=BATCH)
    wide = posterior._replace(mean=mean.astype(jnp.float32))
    key = jax.random.key(0)
    np.testing.assert_array_equal(
        l2m.sample(key, posterior, 3), l2m.sample(key, wide, 3).astype(dtype)
    )


def train(params, tx, loss_scale=1.0):
    state = tx.init(params)

    @jax.jit
    def step(params, state, seed):
        x = jax.random.normal(jax.random.key(seed), (8, 4))
        grads = jax.grad(
            lambda p: loss_scale * jnp.mean(jnp.square(network(p, x).astype(jnp.float32)))
        )(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for seed in range(20):
        params, state = step(params, state, seed)
    return params, state


def test_a_narrow_first_moment_changes_nothing():
    tx = optax.adam(1e-3, mu_dtype=jnp.bfloat16)
    params, state = train(network_params(jax.random.key(0)), tx)
    moment = l2m.second_moment(state, params, tx=tx)
    assert jax.tree.leaves(state[0].mu)[0].dtype == jnp.bfloat16
    jax.tree.map(
        lambda nu, held: np.testing.assert_allclose(nu, held / (1 - 0.999**20), rtol=1e-4),
        l2m.moments.debiased(moment),
        state[0].nu,
    )


def test_a_scaled_loss_is_undone_by_loss_scale():
    """Gradients times 1024, as for float16: the same posterior."""
    tx, start = optax.adam(1e-3, eps=1e-30), network_params(jax.random.key(0))
    found = []
    for scale in (1.0, 1024.0):
        params, state = train(start, tx, scale)
        moment = l2m.second_moment(state, params, tx=tx)
        found.append(l2m.laplace(params, moment, num_data=100, batch_size=8, loss_scale=scale))
    plain, scaled = map(l2m.posterior.precision, found)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3), plain, scaled)
