"""Exact variances against dense Jacobians, for every way in which a weight can be used."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import l2m_optax as l2m

FACTORISED, PATCHES, FORMED = "factorised", "gradient from patches", "gradient, "
MOVED = "moved, once for all outputs"


def normal(*shape):
    """By NumPy, since jax compiles a program for each shape, at every collection."""
    return jnp.asarray(by_numpy(shape), jnp.float32)


def by_numpy(shape):
    return np.random.default_rng(sum(shape) * 31 + len(shape)).normal(size=shape)


def weighted(params):
    nu = jax.tree.map(lambda p: jnp.asarray(by_numpy(p.shape) ** 2 + 0.1, p.dtype), params)
    moment = l2m.SecondMoment(nu=nu, count=10)
    return l2m.laplace(params, moment, num_data=50, batch_size=5, prior_precision=2.0)


def exact(apply_fn, posterior, inputs):
    """Covariances, variances, and J Σ Jᵀ from one dense Jacobian an example, in float64."""
    covariance, variance, jacobians = _compiled(apply_fn, posterior, inputs)
    along = [np.asarray(v, np.float64) for v in jax.tree.leaves(l2m.variance(posterior))]
    dense = 0.0
    for jacobian, v in zip(jax.tree.leaves(jacobians), along, strict=True):
        j = np.asarray(jacobian, np.float64).reshape(*jacobian.shape[:2], -1)
        dense = dense + (j * v.ravel()) @ np.swapaxes(j, 1, 2)
    return covariance, variance, dense


@functools.partial(jax.jit, static_argnums=0)
def _compiled(apply_fn, posterior, inputs):
    """Compiled together: they have most of a program in common."""
    covariance = l2m.output_covariance(apply_fn, posterior, inputs)
    variance = l2m.output_variance(apply_fn, posterior, inputs)
    of_one = jax.jacrev(lambda params, x: apply_fn(params, x[None])[0].ravel())
    return covariance, variance, jax.vmap(of_one, (None, 0))(posterior.mean, inputs)


X, W, B, IMAGE = normal(5, 4), normal(4, 3), normal(4), normal(3, 6, 5, 4)
SEQUENCE, IDS = normal(5, 6, 4), jnp.array([[1, 5, 1], [2, 2, 2], [0, 6, 5]])
TABLE, OUTSIDE = normal(7, 3), jnp.array([[1, 9], [6, 8], [-9, 7]])


class Case:
    """A network of one idea, its parameters, its inputs, and how each leaf is squared."""

    def __init__(self, apply_fn, params, inputs, how):
        self.apply_fn, self.params, self.inputs, self.how = apply_fn, params, inputs, how


def convolution(kernel, how=PATCHES, **options):
    same = {"window_strides": (1, 1), "padding": "SAME"}
    same |= {"dimension_numbers": ("NHWC", "HWIO", "NHWC")} | options

    def apply_fn(w, x):
        y = jax.lax.conv_general_dilated(x, w, **same)
        return jnp.tanh(y).reshape(len(x), -1)[:, :5]

    return Case(apply_fn, kernel, IMAGE, how)


def scanned(w, x):
    def step(h, x):
        return jnp.tanh(h @ w["h"] + x @ w["x"]), None

    return jax.lax.scan(step, jnp.zeros((len(x), 3)), jnp.moveaxis(x, 1, 0))[0]


@jax.custom_vjp
def doubled_backwards(x):
    return x


doubled_backwards.defvjp(lambda x: (x, None), lambda _, d: (2 * d,))

CASES = {
    "dense": Case(lambda w, x: jnp.sin(x @ w), W, X, FACTORISED),
    "transposed": Case(lambda w, x: jnp.sin(x @ w.T), normal(3, 4), X, FACTORISED),
    "weight first": Case(lambda w, x: (w @ x.T).T ** 2, normal(3, 4), X, FACTORISED),
    "vmapped": Case(lambda w, x: jax.vmap(lambda y: w @ y)(x) ** 2, normal(3, 4), X, FACTORISED),
    "reshaped": Case(lambda w, x: jnp.sin(x @ w.reshape(4, 3)), normal(12), X, FACTORISED),
    "einsum of many axes": Case(
        lambda w, x: jnp.einsum("nab,abcd->ncd", x, w) ** 2,
        normal(2, 3, 2, 2),
        normal(5, 2, 3),
        FACTORISED,
    ),
    "shared batch axis": Case(
        lambda w, x: jnp.einsum("nga,gab->ngb", x, w) ** 2,
        normal(2, 3, 2),
        normal(5, 2, 3),
        FACTORISED,
    ),
    "repeated": Case(
        lambda w, x: jnp.einsum("nga,gab->ngb", x, jnp.broadcast_to(w, (2, 4, 3))).sum(1) ** 2,
        W,
        normal(5, 2, 4),
        FORMED,
    ),
    "inside jit": Case(lambda w, x: jax.jit(lambda a, b: jnp.sin(a @ b))(x, w), W, X, FACTORISED),
    "inside remat": Case(jax.checkpoint(lambda w, x: jnp.sin(x @ w)), W, X, FACTORISED),
    "before a custom_jvp": Case(lambda w, x: jax.nn.relu(x @ w), W, X, FACTORISED),
    "before a custom_vjp": Case(lambda w, x: doubled_backwards(x @ w), W, X, FACTORISED),
    "through a custom_vjp": Case(lambda w, x: x @ doubled_backwards(w), W, X, FORMED),
    "bias": Case(lambda b, x: jnp.sin(x + b), B, X, FORMED),
    "scale": Case(lambda s, x: jnp.sin(x * s), B, X, FORMED),
    "bias of positions": Case(lambda b, x: jnp.sin(x + b).sum(1), B, SEQUENCE, FORMED),
    "dense over positions": Case(lambda w, x: jnp.sin(x @ w).sum(1), W, SEQUENCE, FORMED),
    "used twice": Case(lambda w, x: jnp.sin(jnp.sin(x @ w) @ w), normal(4, 4), X, FORMED),
    "tied": Case(lambda w, x: jnp.sin(x @ w) @ w.T, W, X, FORMED),
    "not used": Case(lambda w, x: x, W, X, FORMED),
    "an output itself": Case(lambda w, x: jnp.tile(w, (len(x), 1)) + 0 * x, B, X, MOVED),
    "product of weights": Case(
        lambda w, x: x @ (w["a"] @ w["b"]), {"a": normal(4, 2), "b": normal(2, 3)}, X, FORMED
    ),
    "both operands": Case(
        lambda w, x: jnp.tile(w["a"] @ w["b"], (len(x), 1)) * x,
        {"a": normal(1, 4), "b": normal(4, 1)},
        normal(5, 1),
        FACTORISED,
    ),
    "scan": Case(scanned, {"h": normal(3, 3), "x": normal(4, 3)}, SEQUENCE, FORMED),
    "embedding": Case(lambda w, x: jnp.sin(w[x]).sum(2), TABLE, IDS, FACTORISED),
    "bag of words": Case(lambda w, x: jnp.sin(w[x].sum(1)), TABLE, IDS, FACTORISED),
    "rows outside, dropped": Case(
        lambda w, x: jnp.where((x < 7)[..., None], w.at[x].get(mode="fill"), 0).sum(1),
        TABLE,
        abs(OUTSIDE),
        FACTORISED,
    ),
    "rows outside, clipped": Case(
        lambda w, x: jnp.sin(w.at[x].get(mode="clip").sum(1)), TABLE, OUTSIDE, FACTORISED
    ),
    "columns": Case(lambda w, x: jnp.sin(w[:, x]).sum(2).T, normal(3, 7), IDS, FORMED),
    "convolution": convolution(normal(3, 3, 4, 4)),
    "strided": convolution(normal(3, 2, 4, 4), window_strides=(2, 3), padding="VALID"),
    "dilated": convolution(normal(2, 2, 4, 4), padding=((1, 2), (0, 1)), rhs_dilation=(2, 1)),
    "transposed convolution": convolution(
        normal(3, 3, 4, 4), padding=((1, 1), (2, 1)), lhs_dilation=(2, 2)
    ),
    "grouped": convolution(normal(3, 3, 2, 6), feature_group_count=2),
    "depthwise": convolution(normal(3, 3, 1, 8), feature_group_count=4),
    "channels first": convolution(normal(4, 6, 3, 3), dimension_numbers=None),
    # Small, for where tanh is flat its derivative is a difference of two numbers near 1.
    "one window": convolution(0.05 * normal(6, 5, 4, 3), how=FACTORISED, padding="VALID"),
    "one window of groups": convolution(
        0.05 * normal(6, 5, 2, 4), how=FACTORISED, padding="VALID", feature_group_count=2
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_variance_and_covariance_are_those_of_the_dense_jacobian(name):
    case = CASES[name]
    posterior = weighted(case.params)
    covariance, variance, dense = exact(case.apply_fn, posterior, case.inputs)
    atol = 1e-6 * np.abs(dense).max()
    np.testing.assert_allclose(covariance.reshape(dense.shape), dense, rtol=1e-5, atol=atol)
    diagonal = np.einsum("nkk->nk", dense).reshape(variance.shape)
    np.testing.assert_allclose(variance, diagonal, rtol=1e-5, atol=atol)


@pytest.mark.parametrize("name", CASES)
def test_the_table_says_how(name):
    case = CASES[name]
    rows = l2m.predict.tabulate(case.apply_fn, weighted(case.params), case.inputs).rows.values()
    assert {row.how.startswith(case.how) for row in rows} == {True}


@pytest.mark.parametrize("name", CASES)
def test_moments_of_examples_are_those_of_a_loop(name):
    case = CASES[name]

    def loss_fn(params, example):
        outputs = case.apply_fn(params, example[None])
        return jnp.sum(jnp.square(outputs - 0.5))

    @jax.jit
    def both(params, inputs):
        found = l2m.jacobians.second_moment_of_examples(loss_fn, params, inputs)
        of_one = jax.value_and_grad(loss_fn)
        return found, jax.lax.map(lambda example: of_one(params, example), inputs)

    found, (losses, gradients) = both(case.params, case.inputs)
    gradients = jax.tree.map(lambda g: np.asarray(g, np.float64), gradients)
    np.testing.assert_allclose(found.loss, np.mean(losses), rtol=1e-5)
    for got, g in zip(jax.tree.leaves(found.gradient), jax.tree.leaves(gradients), strict=True):
        np.testing.assert_allclose(got, g.mean(0), rtol=1e-5, atol=1e-5 * np.abs(g).max())
    for got, g in zip(
        jax.tree.leaves(found.sum_of_squares), jax.tree.leaves(gradients), strict=True
    ):
        np.testing.assert_allclose(got, (g**2).sum(0), rtol=1e-5, atol=1e-6 * (g**2).max())
