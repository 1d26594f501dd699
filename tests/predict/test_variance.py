"""The exact variance on whole networks, a part of the outputs, in chunks, and refused."""

import re

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import moment_of, network

import l2m_optax as l2m
from l2m_optax._support import chunks
from l2m_optax.predict import _variance as module

KEY = jax.random.key(3)


class Convolutional(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(3, (3, 3))(x))
        x = nn.avg_pool(x, (2, 2), (2, 2))
        x = nn.GroupNorm(num_groups=None, group_size=1)(x)
        x = nn.relu(nn.Conv(4, (3, 3), padding="VALID")(x)).reshape(len(x), -1)
        return nn.Dense(3)(nn.relu(nn.Dense(8)(x)))


class Transformer(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(11, 8)
        x = embed(tokens) + self.param("position", nn.initializers.normal(), (tokens.shape[1], 8))
        for _ in range(2):
            x += nn.MultiHeadDotProductAttention(num_heads=2)(nn.LayerNorm()(x))
            x += nn.Dense(8)(nn.gelu(nn.Dense(16)(nn.LayerNorm()(x))))
        return nn.Dense(3)(nn.LayerNorm()(x).mean(1))


class Recurrent(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.RNN(nn.GRUCell(4))(x)[:, -1])


IMAGES = jax.random.normal(KEY, (5, 8, 8, 2))
NETWORKS = {
    "convolutional": (Convolutional(), IMAGES),
    "transformer": (Transformer(), jax.random.randint(KEY, (4, 6), 0, 11)),
    "recurrent": (Recurrent(), jax.random.normal(KEY, (4, 5, 3))),
}


def dense_variance(apply_fn, posterior, inputs):
    jacobian = jax.jit(jax.jacrev(apply_fn))(posterior.mean, inputs)
    variances = jax.tree.leaves(l2m.variance(posterior))
    return sum(
        np.einsum("nkp,p->nk", np.square(np.float64(j)).reshape(*j.shape[:2], -1), np.ravel(v))
        for j, v in zip(jax.tree.leaves(jacobian), variances, strict=True)
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_whole_networks(name):
    net, inputs = NETWORKS[name]
    params = net.init(KEY, inputs[:1])
    posterior = l2m.laplace(params, moment_of(params), num_data=50, batch_size=5)
    exact = l2m.output_variance(net.apply, posterior, inputs)
    np.testing.assert_allclose(exact, dense_variance(net.apply, posterior, inputs), rtol=1e-5)


def test_an_equinox_module_and_its_missing_leaves():
    net = eqx.nn.MLP(4, 3, 5, 2, use_final_bias=False, key=KEY)
    params, static = eqx.partition(net, eqx.is_inexact_array)

    def apply_fn(params, x):
        return jax.vmap(eqx.combine(params, static))(x)

    posterior = l2m.laplace(params, moment_of(params), num_data=50, batch_size=5)
    inputs = jax.random.normal(KEY, (6, 4))
    exact = l2m.output_variance(apply_fn, posterior, inputs)
    np.testing.assert_allclose(exact, dense_variance(apply_fn, posterior, inputs), rtol=1e-5)
    rows = l2m.predict.tabulate(apply_fn, posterior, inputs).rows
    assert {p.rpartition(".")[2]: row.how.split()[0] for p, row in rows.items()} == {
        "weight": "factorised",
        "bias": "gradient,",
    }


def test_inputs_may_be_a_tree(posterior, inputs):
    def apply_fn(params, pair):
        return network(params, pair["x"]) * pair["scale"][:, None]

    scale = jnp.arange(1.0, 7.0)
    exact = l2m.output_variance(apply_fn, posterior, {"x": inputs, "scale": scale})
    alone = l2m.output_variance(network, posterior, inputs)
    np.testing.assert_allclose(exact, alone * scale[:, None] ** 2, rtol=1e-5)


def test_some_outputs_are_those_of_all(posterior, inputs):
    exact = l2m.output_variance(network, posterior, inputs)
    some = l2m.output_variance(network, posterior, inputs, outputs=jnp.array([2, 0]))
    np.testing.assert_allclose(some, exact[:, [2, 0]], rtol=1e-6)
    _, top = jax.lax.top_k(network(posterior.mean, inputs), 2)
    of_each = l2m.output_variance(network, posterior, inputs, outputs=top)
    np.testing.assert_allclose(of_each, np.take_along_axis(exact, top, axis=1), rtol=1e-6)
    blocks = l2m.output_covariance(network, posterior, inputs, outputs=top)
    whole = l2m.output_covariance(network, posterior, inputs)
    for block, full, k in zip(blocks, whole, top, strict=True):
        np.testing.assert_allclose(block, full[np.ix_(k, k)], rtol=1e-5, atol=1e-6)


def test_covariance_is_that_of_linearized_draws(posterior, inputs):
    draws = l2m.linearized(KEY, network, posterior, inputs, num_samples=20_000, chunk_size=5000)
    centred = np.asarray(draws - draws.mean(0))
    exact = l2m.output_covariance(network, posterior, inputs)
    scale = np.sqrt(np.einsum("nkk->nk", exact))
    error = np.einsum("snk,snl->nkl", centred, centred) / len(draws) - exact
    assert np.abs(error / scale[:, :, None] / scale[:, None, :]).max() < 0.05


@pytest.mark.parametrize("entries", [1, 40, 10**9])
def test_outputs_are_taken_in_turns_where_they_do_not_fit(posterior, inputs, entries, monkeypatch):
    monkeypatch.setattr(chunks, "ENTRIES", entries)
    module._compiled.clear_cache()
    exact = l2m.output_variance(network, posterior, inputs)
    np.testing.assert_allclose(exact, dense_variance(network, posterior, inputs), rtol=1e-5)
    module._compiled.clear_cache()


@pytest.mark.parametrize("entries", [1, 700, 3000, 40_000])
@pytest.mark.parametrize(("outputs", "inputs"), [(1, 1000), (10, 7), (1000, 100), (10**5, 3)])
def test_chunks_are_the_largest_within_32_mebibytes(entries, outputs, inputs):
    def fits(examples, outputs):
        return 4 * entries * examples * outputs <= 32 * 2**20

    most = max(n for n in range(1, inputs + 1) if n == 1 or fits(n, outputs))
    fewest = next(k for k in range(1, inputs + 1) if k * most >= inputs)
    chunk, width = module._chunks(entries, outputs, inputs, None)
    # As few chunks as can be, and none larger than they need be.
    assert chunk == next(n for n in range(1, most + 1) if n * fewest >= inputs)
    for size in (chunk, 2 * chunk):
        _, width = module._chunks(entries, outputs, inputs, size)
        assert width == 1 or fits(size, width)
        assert width == outputs or not fits(size, width + 1)


def test_parameters_of_low_precision_are_squared_in_float32():
    params = {"w": jnp.ones((4, 3), jnp.bfloat16)}
    posterior = l2m.laplace(params, moment_of(params), num_data=50, batch_size=5)
    x = jnp.arange(8.0).reshape(2, 4).astype(jnp.bfloat16)
    exact = l2m.output_variance(lambda p, x: x @ p["w"], posterior, x)
    assert exact.dtype == jnp.float32
    expected = np.float64(x) ** 2 @ np.float64(l2m.variance(posterior)["w"])
    np.testing.assert_allclose(exact, expected, rtol=1e-5)


def test_it_runs_inside_jit_and_is_differentiable(posterior, inputs):
    def total(log_prior):
        prior = posterior._replace(prior_precision=jnp.exp(log_prior))
        return jnp.sum(l2m.output_variance(network, prior, inputs))

    slope = jax.jit(jax.grad(total))(0.5)
    np.testing.assert_allclose(slope, (total(0.501) - total(0.499)) / 0.002, rtol=1e-2)


def test_compiled_once_for_one_function(posterior, inputs):
    traces = []

    def apply_fn(params, x):
        traces.append(x.shape)
        return network(params, x)

    l2m.output_variance(apply_fn, posterior, inputs)
    before = len(traces)
    l2m.output_variance(apply_fn, posterior, 2 * inputs)
    assert len(traces) == before


def temporaries(posterior, number, outputs, chunk_size):
    """Bytes of temporaries of a network with that many outputs."""

    def apply_fn(params, x):
        return jnp.tile(network(params, x), (1, outputs // 3))

    inputs = jax.ShapeDtypeStruct((number, 4), jnp.float32)
    lowered = module._compiled.lower(
        module.variances, apply_fn, posterior, inputs, None, chunk_size
    )
    return lowered.compile().memory_analysis().temp_size_in_bytes


def test_memory_is_bounded_by_chunk_size(posterior, monkeypatch):
    monkeypatch.setattr(chunks, "ENTRIES", 2**14)
    results = 4 * 9000  # variances, with what pads them to whole chunks
    few = temporaries(posterior, 60, 9, 20)
    assert temporaries(posterior, 1000, 9, 20) < few + 8 * results
    assert temporaries(posterior, 60, 900, 20) < few + 4 * 60 * 900 * 8 + 4 * 2**14 * 4
    assert temporaries(posterior, 1000, 9, 1000) > 5 * few


def test_batch_statistics_in_training_mode_are_refused(posterior, inputs):
    def normalised(params, x):
        return network(params, (x - x.mean(0)) / x.std(0))

    match = "outputs of an example that depend on that example only, got outputs that change"
    with pytest.raises(ValueError, match=match):
        l2m.output_variance(normalised, posterior, inputs)


@pytest.mark.parametrize("size", [1e-3, 1e3])
def test_outputs_depend_on_other_examples_at_any_size_of_theirs(posterior, inputs, size):
    def centred(params, x):
        return size * network(params, x - x.mean(0))

    with pytest.raises(ValueError, match="depend on that example only"):
        l2m.output_variance(centred, posterior, inputs)
    exact = l2m.output_variance(lambda p, x: size * network(p, x), posterior, inputs)
    plain = l2m.output_variance(network, posterior, inputs)
    np.testing.assert_allclose(exact, size**2 * plain, rtol=1e-5)


def test_what_is_no_function_of_params_and_inputs_is_refused(posterior, inputs):
    leaked = []
    jax.jit(lambda x: leaked.append(x) or x)(1.0)
    match = "function of params and inputs alone, got one that holds a tracer"
    with pytest.raises(ValueError, match=match):
        l2m.output_variance(lambda p, x: network(p, x) * leaked[0], posterior, inputs)


def test_errors_of_the_network_say_where_they_came_from(inputs):
    net = nn.Sequential([nn.Dense(3), nn.Dropout(0.5, deterministic=False)])
    params = net.init({"params": KEY, "dropout": KEY}, inputs)
    posterior = l2m.laplace(params, moment_of(params), num_data=50, batch_size=5)
    with pytest.raises(Exception, match="dropout") as raised:
        l2m.output_variance(net.apply, posterior, inputs)
    assert "traced on a batch of one example" in "".join(raised.value.__notes__)


@pytest.mark.parametrize(
    ("apply_fn", "error", "match"),
    [
        (lambda p, x: (network(p, x), x), TypeError, "one array of real outputs, got"),
        (lambda p, x: jnp.argmax(network(p, x), 1), TypeError, "got int32"),
        (lambda p, x: network(p, x)[0], ValueError, "outputs with a batch axis, got shape (3,)"),
    ],
)
def test_outputs_of_another_kind_are_refused(posterior, inputs, apply_fn, error, match):
    with pytest.raises(error, match=re.escape(match)):
        l2m.output_variance(apply_fn, posterior, inputs)


@pytest.mark.parametrize(
    ("outputs", "error", "match"),
    [
        (jnp.array([0.0]), TypeError, "outputs: expected integers, got float32"),
        (jnp.array([0, 3]), ValueError, "outputs: expected indices from 0 to 2, got 0 to 3"),
        (jnp.array([-1]), ValueError, "outputs: expected indices from 0 to 2, got -1 to -1"),
        (jnp.zeros((5, 1), int), ValueError, "shape (k,) or (6, k), got (5, 1)"),
        (jnp.zeros((), int), ValueError, "shape (k,) or (6, k), got ()"),
    ],
)
def test_indices_of_no_output_are_refused(posterior, inputs, outputs, error, match):
    with pytest.raises(error, match=re.escape(match)):
        l2m.output_variance(network, posterior, inputs, outputs=outputs)


def test_indices_of_outputs_with_more_axes_are_refused(posterior, inputs):
    def apply_fn(params, x):
        return jnp.stack([network(params, x)] * 2, axis=1)

    with pytest.raises(ValueError, match=r"outputs of shape \(N, K\), got .*\(6, 2, 3\)"):
        l2m.output_variance(apply_fn, posterior, inputs, outputs=jnp.array([0]))


def test_indices_under_jit_never_give_a_wrong_number(posterior, inputs):
    exact = jax.jit(lambda k: l2m.output_variance(network, posterior, inputs, outputs=k))(
        jnp.array([0, 3, 4])
    )
    assert np.isfinite(exact[:, 0]).all()
    assert np.isnan(exact[:, 1:]).all()


def test_inputs_without_examples_are_refused(posterior):
    with pytest.raises(ValueError, match="leading axis"):
        l2m.output_variance(network, posterior, jnp.zeros(()))
    with pytest.raises(ValueError, match="leading axis"):
        l2m.output_variance(network, posterior, jnp.zeros((0, 4)))


def test_a_negative_index_under_jit_gives_no_number(posterior, inputs):
    variance = jax.jit(lambda k: l2m.output_variance(network, posterior, inputs, outputs=k))
    assert np.isnan(variance(jnp.array([-1]))).all()
