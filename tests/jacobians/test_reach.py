"""Leaves that reach the outputs by moves alone: which they are, and their exact variances."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_squares import exact, normal, weighted

import l2m_optax as l2m
from l2m_optax.predict import _variance as module

X, SEQUENCE = normal(3, 4), normal(3, 5, 4)
IDS, LONG = jnp.array([[1, 5, 1], [2, 2, 2], [0, 6, 5]]), 32_000
HEAD = {"w": normal(4, 3), "b": normal(3)}
TOKENS = {"table": normal(7, 4), "v": normal(4, 4), "w": normal(4, 6), "b": normal(6)}


def head(p, x):
    return x @ p["w"] + p["b"]


def with_body(p, x):
    return jnp.tanh(x @ p["v"]) @ p["w"] + p["b"]


def tokens(p, ids):
    x = p["table"][ids]
    return (x + jnp.tanh(x @ p["v"])) @ p["w"] + p["b"]


def learned_scale(p, x):
    return head(p, x) * p["s"] + p["t"]


def convolved(p, x):
    numbers = ("NWC", "WIO", "NWC")
    return jax.lax.conv_general_dilated(x, p["w"], (1,), "SAME", dimension_numbers=numbers)


# Of each network the leaves that need no cotangents, for variances and for covariances.
ALL, NONE = "wb", ""
CASES = {
    "last layer": (head, HEAD, X, ALL, ALL),
    "last layer and the rest": (with_body, HEAD | {"v": normal(4, 4)}, X, ALL, ALL),
    "every position": (head, HEAD, SEQUENCE, ALL, "b"),
    "tokens": (tokens, TOKENS, IDS, ALL, "b"),
    "flat positions": (lambda p, x: head(p, x).reshape(len(x), -1), HEAD, SEQUENCE, ALL, "b"),
    "last position": (lambda p, x: head(p, x)[:, -1], HEAD, SEQUENCE, ALL, "b"),
    "one position": (lambda p, x: head(p, x[:, 1]), HEAD, SEQUENCE, ALL, ALL),
    "tied": (lambda p, x: p["w"][x] @ p["w"].T, {"w": normal(7, 4)}, IDS, NONE, NONE),
    "softcap": (lambda p, x: 3 * jnp.tanh(head(p, x) / 3), HEAD, X, NONE, NONE),
    "log-softmax": (lambda p, x: jax.nn.log_softmax(head(p, x)), HEAD, X, NONE, NONE),
    "mean of positions": (lambda p, x: head(p, x).mean(1), HEAD, SEQUENCE, NONE, NONE),
    "sum of outputs": (lambda p, x: head(p, x).sum(1), HEAD, X, NONE, NONE),
    "twice": (lambda p, x: head(p, x) + head(p, 2 * x), HEAD, X, NONE, NONE),
    "two ways": (lambda p, x: (lambda y: y + y[:, ::-1])(head(p, x)), HEAD, X, NONE, NONE),
    "copied before": (
        lambda p, x: x @ jnp.broadcast_to(p["w"], (4, 3)),
        {"w": normal(1, 3)},
        X,
        NONE,
        NONE,
    ),
    "cut before": (lambda p, x: x[:, :2] @ p["w"][:2], {"w": normal(4, 3)}, X, NONE, NONE),
    "residual": (lambda p, x: x[:, :3] + head(p, x), HEAD, X, ALL, ALL),
    "taken away": (lambda p, x: x[:, :3] - head(p, x), HEAD, X, ALL, ALL),
    "negative": (lambda p, x: -head(p, x), HEAD, X, ALL, ALL),
    "sliced": (lambda p, x: head(p, x)[:, 1:][:, ::-1], HEAD, X, ALL, ALL),
    "outputs repeated": (lambda p, x: jnp.tile(head(p, x), (1, 2)), HEAD, X, ALL, ALL),
    "outputs taken": (lambda p, x: head(p, x)[:, jnp.array([2, 0, 2])], HEAD, X, ALL, ALL),
    "two heads": (
        lambda p, x: jnp.concatenate([x @ p["w"], jnp.tanh(x @ p["v"]), x @ p["u"]], 1),
        {"u": normal(4, 2), "v": normal(4, 2), "w": normal(4, 3)},
        X,
        "wu",
        "wu",
    ),
    "scaled": (lambda p, x: head(p, x) / jnp.sqrt(5.0), HEAD, X, ALL, ALL),
    "scaled by inputs": (lambda p, x: head(p, x) * x[:, :1] / x[:, 1:2], HEAD, X, ALL, ALL),
    "scaled by a leaf": (learned_scale, HEAD | {"s": normal(3), "t": normal(3)}, X, "wbst", "wbst"),
    "scalars": (
        lambda p, x: x * p["s"] + p["t"],
        {"s": jnp.ones(()), "t": jnp.ones(())},
        X,
        "st",
        "st",
    ),
    "masked": (
        lambda p, x: jnp.where(x[..., :1] > 0, head(p, x), -9.0),
        HEAD,
        SEQUENCE,
        ALL,
        "b",
    ),
    "padded": (lambda p, x: jnp.pad(head(p, x), ((0, 0), (1, 2))), HEAD, X, ALL, ALL),
    "embedding": (lambda p, x: p["w"][x] / 3, {"w": normal(7, 4)}, IDS, "w", "w"),
    "transposed": (lambda p, x: (p["w"].T @ x.T).T, {"w": normal(4, 3)}, X, "w", "w"),
    "convolution": (convolved, {"w": normal(3, 4, 2)}, SEQUENCE, "w", ""),
}


def spared(apply_fn, posterior, inputs, kind):
    uses = module.jacobian_of(apply_fn, posterior, inputs, kind.spares).uses
    return {n for n, use in zip(posterior.mean, uses, strict=True) if isinstance(use, module.Reach)}


@pytest.mark.parametrize("name", CASES)
def test_variances_and_covariances_are_those_of_the_dense_jacobian(name):
    apply_fn, params, inputs, *expected = CASES[name]
    posterior = weighted(dict(sorted(params.items())))
    for kind, leaves in zip((module.variances, module.covariances), expected, strict=True):
        assert spared(apply_fn, posterior, inputs, kind) == set(leaves)
    covariance, variance, dense = exact(apply_fn, posterior, inputs)
    atol = 1e-6 * np.abs(dense).max()
    np.testing.assert_allclose(covariance.reshape(dense.shape), dense, rtol=1e-5, atol=atol)
    diagonal = np.einsum("nkk->nk", dense).reshape(variance.shape)
    np.testing.assert_allclose(variance, diagonal, rtol=1e-5, atol=atol)


WIDTH, OUTPUTS = 64, 32_000


def bytes_used(apply_fn, number, positions=(), **arguments):
    """Bytes of temporaries of the variance of a last layer with many outputs."""
    posterior = weighted({"w": jnp.zeros((WIDTH, OUTPUTS))})
    inputs = jax.ShapeDtypeStruct((number, *positions, WIDTH), jnp.float32)
    outputs = arguments.get("outputs")
    lowered = module._compiled.lower(module.variances, apply_fn, posterior, inputs, outputs, None)
    return lowered.compile().memory_analysis().temp_size_in_bytes


def test_memory_is_bounded_with_many_outputs():
    some = {"outputs": jax.ShapeDtypeStruct((5,), jnp.int32)}
    leaf, chunk = 4 * WIDTH * OUTPUTS, 32 * 2**20
    assert bytes_used(lambda p, x: x @ p["w"], 5000, **some) < leaf + chunk
    assert bytes_used(lambda p, x: x[:, -1] @ p["w"], 5000, (128,), **some) < leaf + chunk
    # All positions: what is returned, and what is computed side by side.
    returned = 4 * 20 * 32 * OUTPUTS
    assert bytes_used(lambda p, x: x @ p["w"], 20, (32,)) < leaf + chunk + 2 * returned


def test_some_of_many_outputs_are_those_of_all():
    posterior = weighted({"w": normal(4, 50), "b": normal(50)})
    chosen = jnp.array([[3, 49], [0, 1], [7, 7]])
    exact = l2m.output_variance(head, posterior, X)
    some = l2m.output_variance(head, posterior, X, outputs=chosen)
    np.testing.assert_allclose(some, np.take_along_axis(exact, chosen, 1), rtol=1e-6)
    blocks = l2m.output_covariance(head, posterior, X, outputs=chosen)
    np.testing.assert_allclose(np.einsum("nkk->nk", blocks), some, rtol=1e-6)
    np.testing.assert_allclose(blocks[0, 0, 1], 0)
    np.testing.assert_allclose(blocks[2, 0, 1], some[2, 0], rtol=1e-6)


def test_an_output_that_is_none_gives_no_number_under_jit():
    posterior = weighted(HEAD)
    for function in (l2m.output_variance, l2m.output_covariance):
        found = jax.jit(lambda k, f=function: f(head, posterior, X, outputs=k))(
            jnp.array([-1, 0, 3])
        )
        known = np.isfinite(found)
        assert known.sum() == len(X)
        assert known.reshape(len(X), -1)[:, known[0].size // 2 if found.ndim == 3 else 1].all()


def test_low_precision_is_squared_in_float32():
    params = jax.tree.map(lambda w: w.astype(jnp.bfloat16), HEAD)
    posterior = weighted(params)
    x, variance = SEQUENCE.astype(jnp.bfloat16), l2m.variance(posterior)
    exact = l2m.output_variance(lambda p, x: head(p, x) * jnp.bfloat16(0.3), posterior, x)
    assert exact.dtype == jnp.float32
    squared = np.float64(x) ** 2 @ np.float64(variance["w"]) + np.float64(variance["b"])
    np.testing.assert_allclose(exact, squared * float(jnp.bfloat16(0.3)) ** 2, rtol=1e-5)
