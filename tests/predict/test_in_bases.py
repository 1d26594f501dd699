"""Predictions in bases against the dense covariance of the parameters and the dense Jacobian."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    dense_covariance,
    moment_of,
    network,
    network_params,
    orthogonal,
    rotated_moment,
)

import l2m_optax as l2m
from l2m_optax.moments import Basis


def normal(*shape, seed=0):
    """By NumPy, since jax compiles a program for each shape, at every collection."""
    rng = np.random.default_rng(sum(shape) * 31 + len(shape) + seed)
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


def basis(left=None, right=None, stacked=()):
    sides = [None if n is None else orthogonal(n, (*stacked, n)) for n in (left, right)]
    return Basis(*sides)


def convolved(w, x, layout="HWIO", **kwargs):
    numbers = ("NHWC", layout, "NHWC")
    return jax.lax.conv_general_dilated(
        x,
        w,
        **({"window_strides": (1, 1), "padding": "SAME", "dimension_numbers": numbers} | kwargs),
    )


X, SEQUENCE, IMAGES = normal(3, 4), normal(3, 2, 4), normal(2, 3, 4, 3)
TOKENS = jnp.array([[0, 3, 3], [1, 6, 2]])


def layer(w, x):
    return jnp.tanh(x @ w)


def summed(w, x, layout="HWIO", **kwargs):
    return jnp.tanh(convolved(w, x, layout, **kwargs)).sum((1, 2))


# Shape, basis, inputs, function, and what `tabulate` says of it.
CASES = {
    "dense": ((4, 5), basis(4, 5), X, layer, "factorised in dot_general"),
    "left": ((4, 5), basis(4), X, layer, "factorised in dot_general"),
    "right": ((4, 5), basis(None, 5), X, layer, "factorised in dot_general"),
    "last layer": ((4, 5), basis(4, 5), X, lambda w, x: x @ w, "factorised in dot_general"),
    "last layer, left": (
        (4, 5),
        basis(4),
        X,
        lambda w, x: x @ w,
        "factorised in dot_general, once",
    ),
    "transposed": ((5, 4), basis(5, 4), X, lambda w, x: jnp.tanh(x @ w.T), "factorised in dot_gen"),
    "weight first": (
        (5, 4),
        basis(5, 4),
        X,
        lambda w, x: jnp.tanh((w @ x.T).T),
        "factorised in dot",
    ),
    "full": ((4, 2), basis(8), X, layer, "gradient, which its basis folds in another way"),
    "full vector": ((4,), basis(4), X, lambda w, x: jnp.tanh(x @ w)[:, None], "factorised in dot"),
    "several axes": (
        (2, 2, 5),
        basis(4, 5),
        X,
        lambda w, x: jnp.tanh(jnp.einsum("nij,ijk->nk", x.reshape(-1, 2, 2), w)),
        "factorised in dot_general",
    ),
    "axes turned about": (
        (2, 5, 2),
        basis(2, 10),
        X,
        lambda w, x: jnp.tanh(jnp.einsum("nij,ikj->nk", x.reshape(-1, 2, 2), w)),
        "gradient",
    ),
    "order turned about": (
        (2, 2, 5),
        basis(4, 5),
        X,
        lambda w, x: jnp.tanh(jnp.einsum("nji,ijk->nk", x.reshape(-1, 2, 2), w)),
        "factorised in dot_general",
    ),
    "positions": (
        (4, 5),
        basis(4, 5),
        SEQUENCE,
        lambda w, x: jnp.tanh(x @ w).sum(1),
        "gradient, shared by positions",
    ),
    "weight first, positions": (
        (5, 4),
        basis(5, 4),
        SEQUENCE,
        lambda w, x: jnp.tanh(jnp.tensordot(w, x, (1, 2))).sum(2).T,
        "gradient, shared by positions",
    ),
    "bias": ((5,), basis(5), normal(3, 5), lambda w, x: jnp.tanh(x + w), ""),
    "bias of the outputs": ((5,), basis(5), normal(3, 5), lambda w, x: x + w, ""),
    "used twice": (
        (4, 4),
        basis(4, 4),
        X,
        lambda w, x: jnp.tanh(x @ w) @ w,
        "gradient, used 2 times",
    ),
    "not used": ((4, 4), basis(4, 4), X, lambda w, x: x, "gradient, not used"),
    "squared first": ((4, 5), basis(4, 5), X, lambda w, x: x @ w**2, ""),
    "stacked": (
        (2, 2, 5),
        basis(2, 5, stacked=(2,)),
        X,
        lambda w, x: jnp.tanh(jnp.einsum("nei,eij->nej", x.reshape(-1, 2, 2), w).sum(1)),
        "",
    ),
    "convolution": ((2, 2, 3, 4), basis(12, 4), IMAGES, summed, ""),
    "convolution, OIHW": (
        (4, 3, 2, 2),
        basis(4, 12),
        IMAGES,
        lambda w, x: summed(w, x, "OIHW"),
        "",
    ),
    "convolution, strides": (
        (2, 2, 3, 4),
        basis(12, 4),
        IMAGES,
        lambda w, x: jnp.tanh(convolved(w, x, window_strides=(2, 1), rhs_dilation=(1, 2))).sum(2),
        "",
    ),
    "convolution, another fold": (
        (2, 2, 3, 4),
        basis(2, 24),
        IMAGES,
        summed,
        "gradient",
    ),
    "grouped convolution": (
        (2, 2, 1, 6),
        basis(4, 6),
        IMAGES,
        lambda w, x: summed(w, x, feature_group_count=3),
        "gradient",
    ),
    "one window": (
        (3, 4, 3, 5),
        basis(None, 5),
        IMAGES,
        lambda w, x: jnp.tanh(convolved(w, x, padding="VALID"))[:, 0, 0],
        "factorised in conv_general_dilated",
    ),
    "embedding": (
        (7, 2),
        basis(None, 2),
        TOKENS,
        lambda w, t: jnp.tanh(w[t]).sum(1),
        "factorised in gather",
    ),
    "embedding, both": (
        (7, 2),
        basis(7, 2),
        TOKENS,
        lambda w, t: jnp.tanh(w[t]).sum(1),
        "gradient",
    ),
    "embedding, transposed": ((2, 7), basis(2), TOKENS, lambda w, t: jnp.tanh(w.T[t]).sum(1), ""),
}


def made(shape, one, temperature=0.7):
    params = {"w": normal(*shape, seed=1), "free": jnp.ones(2)}
    moment = moment_of(params)._replace(basis={"w": one, "free": None})
    return l2m.laplace(params, moment, num_data=50, batch_size=5, temperature=temperature)


@functools.partial(jax.jit, static_argnums=0)
def jacobians(apply_fn, mean, inputs):
    """Dense, by examples, outputs and parameters."""

    def of_one(x):
        leaves = jax.tree.leaves(jax.jacrev(lambda p: jnp.ravel(apply_fn(p, x[None])))(mean))
        return jnp.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], axis=1)

    return jax.vmap(of_one)(inputs)


@functools.partial(jax.jit, static_argnums=0)
def ours(apply_fn, posterior, inputs):
    """Covariances, variances and what they are compared with, compiled together."""
    covariance = l2m.output_covariance(apply_fn, posterior, inputs)
    variance = l2m.output_variance(apply_fn, posterior, inputs)
    return covariance, variance, jacobians(apply_fn, posterior.mean, inputs)


def dense(posterior, jacobian):
    """J Σ Jᵀ of each input."""
    j = np.asarray(jacobian, np.float64)
    return j @ dense_covariance(posterior) @ np.swapaxes(j, 1, 2)


def exact(apply_fn, posterior, inputs):
    return dense(posterior, jacobians(apply_fn, posterior.mean, inputs))


@pytest.mark.parametrize("case", CASES)
def test_output_covariances_are_the_dense_ones(case):
    shape, one, inputs, function, how = CASES[case]

    def apply_fn(params, x):
        outputs = function(params["w"], x)
        return outputs.reshape(len(outputs), -1) * params["free"][0] + params["free"][1]

    posterior = made(shape, one)
    covariance, variance, jacobian = ours(apply_fn, posterior, inputs)
    expected = dense(posterior, jacobian)
    np.testing.assert_allclose(covariance, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(variance, np.einsum("nkk->nk", expected), rtol=1e-4, atol=1e-4)
    assert how in l2m.predict.tabulate(apply_fn, posterior, inputs).rows["['w']"].how


@pytest.fixture(scope="module")
def rotated():
    params = network_params(jax.random.key(0))
    return l2m.laplace(params, rotated_moment(params), num_data=50, batch_size=5)


def test_linearised_draws_have_the_exact_covariance(rotated):
    x, number = normal(2, 4), 20_000
    expected = exact(network, rotated, x)
    for chunk in (None, 1000):
        draws = l2m.linearized(
            jax.random.key(0), network, rotated, x, num_samples=number, chunk_size=chunk
        )
        for i in range(len(x)):
            root = np.linalg.cholesky(expected[i])
            white = np.linalg.solve(root, (draws[:, i] - network(rotated.mean, x)[i]).T)
            assert np.max(np.abs(np.cov(white) - np.eye(3))) < 6 * np.sqrt(2 / number)


def test_monte_carlo_draws_are_those_of_sample(rotated):
    x = normal(2, 4)
    draws = l2m.sample(jax.random.key(0), rotated, 5)
    expected = l2m.predict.apply_ensemble(network, draws, x)
    for chunk in (None, 2):
        found = l2m.monte_carlo(
            jax.random.key(0), network, rotated, x, num_samples=5, chunk_size=chunk
        )
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_some_outputs_and_restricted_leaves(rotated):
    head, x = l2m.restrict(rotated, "head"), normal(2, 4)
    expected = exact(network, rotated, x) - exact(
        lambda p, x: network({"body": p["body"], "head": jax.lax.stop_gradient(p["head"])}, x),
        rotated,
        x,
    )
    found = l2m.output_covariance(network, head, x, outputs=jnp.array([2, 0]))
    np.testing.assert_allclose(found, expected[:, [2, 0]][:, :, [2, 0]], rtol=1e-3, atol=1e-4)


def test_low_precision_is_rotated_in_float32():
    params = network_params(jax.random.key(0), jnp.bfloat16)
    posterior = l2m.laplace(params, rotated_moment(params), num_data=50, batch_size=5)
    high = posterior._replace(mean=jax.tree.map(lambda p: p.astype(jnp.float32), params))
    x = normal(2, 4)
    found = l2m.output_variance(network, posterior, x.astype(jnp.bfloat16))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, l2m.output_variance(network, high, x), rtol=0.1)


def test_temperatures_are_tuned(rotated):
    """Regression, whose loss is known in closed form: at the best T it has no slope."""
    x = normal(40, 4)
    y = network(rotated.mean, x) + 0.5 * jax.random.normal(jax.random.key(2), (40, 3))
    noisy = rotated._replace(noise_variance=jnp.float32(0.1))
    tuned, _ = l2m.tune(network, noisy, x, y)
    epistemic = np.einsum("nkk->nk", exact(network, tuned, x))
    total = 0.1 + epistemic
    square = np.square(np.asarray(y - network(rotated.mean, x), np.float64))
    slope = np.sum(epistemic / total * (1 - square / total))
    assert abs(slope) < 0.01 * np.sum(epistemic / total)
