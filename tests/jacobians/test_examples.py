"""Per-example moments of a batch: in chunks, in training, and refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import flat, network

import l2m_optax as l2m


def loss_fn(params, example):
    x, y = example
    return jnp.sum(jnp.square(network(params, x) - y))


@pytest.fixture
def batch(inputs):
    return inputs, jnp.arange(18.0).reshape(6, 3) / 10


def squares_of_a_loop(params, batch):
    each = [jax.grad(loss_fn)(params, (x, y)) for x, y in zip(*batch, strict=True)]
    return sum(flat(g) ** 2 for g in each)


@pytest.mark.parametrize("chunk_size", [None, 1, 4, 6, 100])
def test_chunks_add_up(params, batch, chunk_size):
    found = l2m.jacobians.second_moment_of_examples(loss_fn, params, batch, chunk_size=chunk_size)

    def mean_loss(p):
        return jnp.mean(jax.vmap(loss_fn, in_axes=(None, 0))(p, batch))

    loss, gradient = jax.value_and_grad(mean_loss)(params)
    np.testing.assert_allclose(found.loss, loss, rtol=1e-5)
    np.testing.assert_allclose(flat(found.gradient), flat(gradient), rtol=1e-4, atol=1e-5)
    squares = squares_of_a_loop(params, batch)
    np.testing.assert_allclose(flat(found.sum_of_squares), squares, rtol=1e-5)
    mean = flat(found.root_mean_square) ** 2
    np.testing.assert_allclose(mean, squares / 6, rtol=1e-5)


def test_it_runs_inside_jit(params, batch):
    found = jax.jit(lambda p, b: l2m.jacobians.second_moment_of_examples(loss_fn, p, b))(
        params, batch
    )
    squares = squares_of_a_loop(params, batch)
    np.testing.assert_allclose(flat(found.sum_of_squares), squares, rtol=1e-5)


def test_compiled_once_for_one_function(params, batch):
    traces = []

    def counted(params, example):
        traces.append(example)
        return loss_fn(params, example)

    l2m.jacobians.second_moment_of_examples(counted, params, batch)
    before = len(traces)
    l2m.jacobians.second_moment_of_examples(counted, params, jax.tree.map(lambda x: 2 * x, batch))
    assert len(traces) == before


def test_memory_is_bounded_by_chunk_size(params):
    def shared(params, sequence):
        return jnp.sum(jnp.square(network(params, sequence)))

    def temporaries(number, chunk_size):
        batch = jax.ShapeDtypeStruct((number, 7, 4), jnp.float32)
        compiled = (
            jax.jit(
                lambda p, b: l2m.jacobians.second_moment_of_examples(
                    shared, p, b, chunk_size=chunk_size
                )
            )
            .lower(params, batch)
            .compile()
        )
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries(640, 10) < 1.5 * temporaries(20, 10)
    assert temporaries(640, 640) > 10 * temporaries(640, 10)


def test_full_batches_keep_their_curvature():
    """What L2M alone must refuse: with one full batch a step the gradient has no noise."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-1.0, 1.0, (20_000, 10)) * np.linspace(0.5, 3.0, 10)
    y = x @ rng.normal(size=10) + 0.5 * rng.normal(size=len(x))
    batch = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)
    tx = optax.chain(l2m.track_second_moment(0.9), optax.adam(0.05))

    def nll(w, example):
        return 0.5 * jnp.square(example[1] - example[0] @ w) / 0.25

    def step(carry, _):
        w, state = carry
        found = l2m.jacobians.second_moment_of_examples(nll, w, batch)
        squared = found.root_mean_square
        updates, state = tx.update(found.gradient, state, w, moment_updates=squared)
        return (optax.apply_updates(w, updates), state), None

    w = jnp.zeros(10)
    (w, state), _ = jax.lax.scan(step, (w, tx.init(w)), length=300)
    posterior = l2m.laplace(w, state[0], num_data=len(x), batch_size=1)
    np.testing.assert_allclose(
        l2m.posterior.data_precision(posterior), (x**2).sum(0) / 0.25, rtol=0.05
    )
    with pytest.raises(ValueError, match="a full batch has no sampling noise"):
        l2m.laplace(w, state[0], num_data=len(x), batch_size=len(x))


@pytest.mark.parametrize(
    ("params", "loss", "batch", "error", "match"),
    [
        (jnp.ones(2, int), lambda w, x: w @ x, jnp.ones((3, 2)), TypeError, "floating-point"),
        (jnp.ones(2, complex), lambda w, x: w @ x, jnp.ones((3, 2)), TypeError, "floating-point"),
        (jnp.ones(2), lambda w, x: w * x, jnp.ones((3, 2)), ValueError, "expected a scalar"),
        (jnp.ones(2), lambda w, x: w @ x, jnp.ones(()), ValueError, "batch: .* leading axis"),
    ],
)
def test_bad_input_is_refused(params, loss, batch, error, match):
    with pytest.raises(error, match=match):
        l2m.jacobians.second_moment_of_examples(loss, params, batch)
