"""Gradients on drawn targets: their covariance is the Fisher information, in closed form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import dense_basis

import l2m_optax as l2m
from l2m_optax import likelihoods

NUMBER, BATCH = 40_000, 6
X = jax.random.normal(jax.random.key(1), (BATCH, 3))
W = 0.5 * jax.random.normal(jax.random.key(2), (3, 2))


def linear(w, x):
    return x @ w


def softmax_fisher():
    probs = np.asarray(jax.nn.softmax(X @ W), np.float64)
    return sum(
        np.kron(np.outer(x, x), np.diag(p) - np.outer(p, p))
        for x, p in zip(np.asarray(X), probs, strict=True)
    )


def heteroscedastic_fisher():
    variances = np.exp(np.asarray(X @ W, np.float64)[:, 1])
    return sum(
        np.kron(np.outer(x, x), np.diag([1 / v, 0.5]))
        for x, v in zip(np.asarray(X), variances, strict=True)
    )


GRAM = np.kron(np.asarray(X, np.float64).T @ np.asarray(X, np.float64), np.eye(2))
CASES = {
    "categorical": ("categorical", softmax_fisher()),
    "function": (likelihoods.categorical, softmax_fisher()),
    "gaussian": ("gaussian", GRAM),
    "noise": (functools.partial(likelihoods.gaussian, variance=0.25), 4 * GRAM),
    "heteroscedastic": ("heteroscedastic_gaussian", heteroscedastic_fisher()),
}


@pytest.mark.parametrize("case", CASES)
def test_their_covariance_is_the_fisher_information(case):
    likelihood, fisher = CASES[case]
    keys = jax.random.split(jax.random.key(0), NUMBER)
    stack = jax.jit(
        jax.vmap(lambda key: l2m.jacobians.fisher_gradients(key, linear, W, X, likelihood))
    )(keys)
    vectors = np.asarray(stack, np.float64).reshape(NUMBER, -1)
    spread = np.sqrt(np.outer(np.diag(fisher), np.diag(fisher)))
    error = (vectors.T @ vectors / NUMBER * BATCH**2 - fisher) / spread
    assert np.max(np.abs(error)) < 6 * np.sqrt(3 / NUMBER)
    means = vectors.mean(0) / np.sqrt(np.diag(fisher) / BATCH**2 / NUMBER)
    assert np.max(np.abs(means)) < 5


@pytest.mark.parametrize("batch", [1, BATCH])
def test_a_tracked_full_moment_is_the_fisher_of_all_data(batch):
    """Batches of any size, the whole data too, and no finite population factor."""
    tx = l2m.track_second_moment(0.9999, structure="full")

    def step(state, key):
        rows = jax.random.permutation(key, BATCH)[:batch]

        def fisher():
            return l2m.jacobians.fisher_gradients(key, linear, W, X[rows])

        return tx.update(W, state, moment_updates=fisher)[1], None

    keys = jax.random.split(jax.random.key(0), 20_000)
    state, _ = jax.jit(lambda s: jax.lax.scan(step, s, keys))(tx.init(W))
    built = l2m.laplace(W, state, num_data=BATCH, batch_size=batch, with_replacement=True)
    q = dense_basis(built.second_moment.basis, W.shape)
    found = (q * np.ravel(l2m.posterior.data_precision(built))) @ q.T
    np.testing.assert_allclose(found, softmax_fisher(), atol=0.05 * np.max(softmax_fisher()))


def test_parameters_keep_their_dtype():
    low = W.astype(jnp.bfloat16)
    found = l2m.jacobians.fisher_gradients(jax.random.key(0), linear, low, X.astype(low.dtype))
    assert found.dtype == jnp.bfloat16


@pytest.mark.parametrize("likelihood", ["poisson", lambda f, y: -f, functools.partial(max, 1)])
def test_targets_that_cannot_be_drawn_are_refused(likelihood):
    with pytest.raises(ValueError, match=r"likelihood: expected categorical, gaussian"):
        l2m.jacobians.fisher_gradients(jax.random.key(0), linear, W, X, likelihood)
