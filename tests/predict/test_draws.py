"""Predictives against brute force: loops over draws, dense Jacobians, entropies by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import flat, network
from scipy import stats

import l2m_optax as l2m

KEY = jax.random.key(5)


def test_predict_is_a_loop_over_draws(posterior, inputs):
    draws = l2m.sample(KEY, posterior, 5)
    expected = [network(jax.tree.map(lambda d: d[i], draws), inputs) for i in range(5)]  # noqa: B023
    for chunk_size in (None, 1, 2, 5, 100):
        outputs = l2m.predict.apply_ensemble(network, draws, inputs, chunk_size=chunk_size)
        np.testing.assert_allclose(outputs, jnp.stack(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize("chunk_size", [None, 1, 3])
def test_monte_carlo_is_sample_then_predict(posterior, inputs, chunk_size, antithetic):
    outputs = l2m.monte_carlo(
        KEY,
        network,
        posterior,
        inputs,
        num_samples=7,
        chunk_size=chunk_size,
        antithetic=antithetic,
    )
    draws = l2m.sample(KEY, posterior, 7, antithetic=antithetic)
    np.testing.assert_allclose(
        outputs, l2m.predict.apply_ensemble(network, draws, inputs), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("chunk_size", [None, 1, 3])
def test_linearized_is_the_jacobian_times_the_draw(posterior, inputs, chunk_size):
    outputs = l2m.linearized(KEY, network, posterior, inputs, num_samples=7, chunk_size=chunk_size)
    draws = l2m.sample(KEY, posterior, 7)
    jacobian = jax.jacrev(network)(posterior.mean, inputs)
    expected = network(posterior.mean, inputs) + sum(
        jnp.einsum("nkp,sp->snk", j.reshape(6, 3, -1), (d - m).reshape(7, -1))
        for j, d, m in zip(*map(jax.tree.leaves, (jacobian, draws, posterior.mean)), strict=True)
    )
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("where", [None, "head"])
@pytest.mark.parametrize("chunk_size", [None, 1, 4])
def test_output_variance_is_the_dense_diagonal(posterior, inputs, chunk_size, where):
    posterior = posterior if where is None else l2m.restrict(posterior, where)
    jacobian = jax.jacrev(network)(posterior.mean, inputs)
    dense = np.concatenate([np.reshape(j, (6, 3, -1)) for j in jax.tree.leaves(jacobian)], axis=-1)
    expected = np.einsum("nkp,p->nk", dense.astype(np.float64) ** 2, flat(l2m.variance(posterior)))
    outputs = l2m.output_variance(network, posterior, inputs, chunk_size=chunk_size)
    np.testing.assert_allclose(outputs, expected, rtol=1e-5)


def test_output_variance_is_what_linearized_draws_tend_to(posterior, inputs):
    draws = l2m.linearized(KEY, network, posterior, inputs, num_samples=20_000, chunk_size=5000)
    exact = l2m.output_variance(network, posterior, inputs)
    np.testing.assert_allclose(jnp.var(draws, axis=0), exact, rtol=0.06)


def test_output_variance_takes_any_output_shape(posterior, inputs):
    def scalar_output(params, x):
        return network(params, x)[:, 0]

    def wide_output(params, x):
        return jnp.stack([network(params, x), 2 * network(params, x)], axis=1)

    reference = l2m.output_variance(network, posterior, inputs)
    np.testing.assert_allclose(
        l2m.output_variance(scalar_output, posterior, inputs), reference[:, 0], rtol=1e-5
    )
    np.testing.assert_allclose(
        l2m.output_variance(wide_output, posterior, inputs),
        jnp.stack([reference, 4 * reference], axis=1),
        rtol=1e-5,
    )


def test_an_ensemble_goes_through_the_same_predict(inputs):
    from helpers import network_params

    members = jax.vmap(network_params)(jax.random.split(KEY, 4))
    outputs = l2m.predict.apply_ensemble(network, members, inputs)
    third = network(jax.tree.map(lambda m: m[2], members), inputs)
    np.testing.assert_allclose(outputs[2], third, rtol=1e-5, atol=1e-5)


def test_classification_splits_entropy_exactly():
    logits = np.random.default_rng(0).normal(0, 3, (9, 5, 4))
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    summary = l2m.classification(jnp.asarray(logits))
    np.testing.assert_allclose(summary.probs, p.mean(0), rtol=1e-5)
    np.testing.assert_allclose(summary.total, stats.entropy(p.mean(0), axis=-1), rtol=1e-5)
    np.testing.assert_allclose(summary.aleatoric, stats.entropy(p, axis=-1).mean(0), rtol=1e-5)
    np.testing.assert_allclose(
        summary.epistemic, summary.total - summary.aleatoric, rtol=1e-5, atol=1e-7
    )
    assert np.all(summary.epistemic >= 0)


@pytest.mark.parametrize("shape", [(6, 4), (6, 2, 3, 4)])
def test_classification_takes_any_number_of_axes(shape):
    logits = np.random.default_rng(1).normal(0, 3, shape)
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    summary = l2m.classification(jnp.asarray(logits))
    np.testing.assert_allclose(summary.total, stats.entropy(p.mean(0), axis=-1), rtol=1e-5)
    np.testing.assert_allclose(summary.aleatoric, stats.entropy(p, axis=-1).mean(0), rtol=1e-5)


def test_a_nan_in_one_logit_is_one_of_its_own_input_alone():
    logits = np.random.default_rng(2).normal(0, 3, (6, 5, 4))
    broken = logits.copy()
    broken[3, 1, 2] = np.nan
    whole, found = l2m.classification(jnp.asarray(logits)), l2m.classification(jnp.asarray(broken))
    assert np.all(np.isnan(found.probs[1]))
    for before, after in zip(whole, found, strict=True):
        assert np.all(np.isnan(after[1]))
        np.testing.assert_array_equal(np.delete(after, 1, 0), np.delete(before, 1, 0))


def test_a_nan_that_is_a_constant_of_the_network_is_not_lost():
    """Code that XLA leaves as it is may make a number of it, in an exp that is fused with it."""
    logits = jnp.asarray(np.random.default_rng(3).normal(0, 3, (6, 5, 4)))

    def broken(logits):
        third = jnp.full((6, 5, 1), jnp.nan)
        return l2m.classification(jnp.concatenate([logits[..., :2], third, logits[..., 3:]], -1))

    plain = jax.jit(broken, compiler_options={"xla_backend_optimization_level": 0})
    assert all(np.isnan(part).all() for part in plain(logits))


def test_classification_survives_extreme_logits():
    summary = l2m.classification(jnp.array([[[1e4, -1e4, 0.0]], [[-1e4, 1e4, 0.0]]]))
    np.testing.assert_allclose(summary.total, np.log(2), rtol=1e-6)
    np.testing.assert_allclose(summary.aleatoric, 0.0, atol=1e-6)


def test_regression_adds_noise_to_the_spread_of_draws():
    samples = np.random.default_rng(0).normal(1.0, 2.0, (8, 5))
    summary = l2m.regression(jnp.asarray(samples), 0.3)
    np.testing.assert_allclose(summary.mean, samples.mean(0), rtol=1e-5)
    np.testing.assert_allclose(summary.epistemic, samples.var(0, ddof=1), rtol=1e-5)
    np.testing.assert_allclose(summary.total, summary.epistemic + 0.3, rtol=1e-6)
    np.testing.assert_allclose(summary.aleatoric, np.full(5, 0.3), rtol=1e-6)


def test_memory_is_bounded_by_chunk_size(posterior):
    """Peak temporaries of the compiled program grow with the chunk, not with the draws."""
    inputs = jnp.ones((64, 4))

    def temporaries(num_samples, chunk_size):
        def run(key, posterior, inputs):
            outputs = l2m.monte_carlo(
                key, network, posterior, inputs, num_samples=num_samples, chunk_size=chunk_size
            )
            return jnp.sum(outputs, axis=0)

        compiled = jax.jit(run).lower(KEY, posterior, inputs).compile()
        outputs = num_samples * 64 * 3 * 4
        return compiled.memory_analysis().temp_size_in_bytes - outputs

    # What grows with the number of draws is their outputs and keys alone.
    assert temporaries(4096, 4) < temporaries(64, 4) + 4096 * 64
    assert temporaries(4096, 4) < temporaries(4096, None) / 5
