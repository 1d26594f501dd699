"""`classify` and `regress`: against draws, against the network alone, and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import moment_of, network, network_params
from scipy import special

import l2m_optax as l2m
from l2m_optax.predict._classify import Settings, at_settings

INPUTS = jax.random.normal(jax.random.key(5), (6, 4))


def tokens(params, x):
    """Logits of three classes at each of 50 positions: 150 of an input."""
    return network(params, x[:, None] * jnp.linspace(0.5, 1.0, 50)[:, None])


@pytest.fixture(scope="module")
def posterior():
    params = network_params(jax.random.key(0))
    return l2m.laplace(params, moment_of(params), num_data=50, batch_size=5, temperature=0.3)


@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("classes", [2, 10, 100])
def test_the_integral_is_as_near_as_many_draws(classes, scale):
    """256 points are at most twice as far off as 10,000 draws are on average, or within 0.0075."""
    factor = np.random.default_rng(classes).normal(size=(classes, classes + 2))
    covariance = scale**2 * classes * (factor @ factor.T) / np.trace(factor @ factor.T)
    mean = np.linspace(-2.0, 2.0, classes)
    rng = np.random.default_rng(0)
    parts = [
        special.softmax(rng.multivariate_normal(mean, covariance, 10_000), axis=-1).mean(axis=0)
        for _ in range(20)
    ]
    reference = np.mean(parts, axis=0)
    of_draws = np.mean([np.abs(part - reference).max() for part in parts])
    probs = l2m.predict.softmax_integral(mean, covariance).probs
    assert np.abs(probs - reference).max() < max(2 * of_draws, 0.0075)
    np.testing.assert_allclose(jnp.sum(probs), 1.0, rtol=1e-6)


def test_logits_that_move_together_have_a_covariance_without_full_rank():
    mean, rank_one = jnp.array([1.0, 0.0, -1.0]), 9.0 * jnp.ones((3, 3))
    p = l2m.predict.softmax_integral(mean, rank_one)
    np.testing.assert_allclose(p.probs, jax.nn.softmax(mean), atol=1e-3)
    np.testing.assert_allclose(p.epistemic, 0.0, atol=1e-3)


@pytest.mark.parametrize("apply_fn", [network, tokens])
def test_probabilities_are_those_of_many_draws(apply_fn, posterior):
    draws = l2m.linearized(jax.random.key(1), apply_fn, posterior, INPUTS, num_samples=4000)
    expected = l2m.classification(draws)
    found = l2m.classify(apply_fn, posterior, INPUTS)
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, atol=0.06 if apply_fn is tokens else 0.02)


@pytest.mark.parametrize("apply_fn", [network, tokens])
def test_at_temperature_zero_it_is_the_network(apply_fn, posterior):
    p = l2m.classify(apply_fn, posterior._replace(temperature=jnp.zeros(())), INPUTS)
    expected = l2m.classification(apply_fn(posterior.mean, INPUTS)[None])
    np.testing.assert_allclose(p.probs, expected.probs, rtol=1e-6)
    np.testing.assert_allclose(p.epistemic, 0.0, atol=1e-6)


@pytest.mark.parametrize("apply_fn", [network, tokens])
def test_chunks_and_jit_change_nothing(apply_fn, posterior):
    whole = l2m.classify(apply_fn, posterior, INPUTS)
    compiled = jax.jit(lambda p, x: l2m.classify(apply_fn, p, x))(posterior, INPUTS)
    for other in (compiled, l2m.classify(apply_fn, posterior, INPUTS, chunk_size=4)):
        for one, two in zip(whole, other, strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)


def test_it_refuses_what_has_no_classes(posterior):
    with pytest.raises(ValueError, match="logits of shape"):
        l2m.classify(lambda p, x: network(p, x)[:, :1], posterior, INPUTS)
    with pytest.raises(ValueError, match="at most 128 logits"):
        l2m.predict.softmax_integral(jnp.zeros(129), jnp.eye(129))


@pytest.mark.parametrize("predict", [l2m.classify, l2m.regress])
def test_nan_is_refused_and_named(predict, posterior):
    bad = INPUTS.at[3].set(jnp.nan)
    with pytest.raises(FloatingPointError, match="input 3"):
        predict(network, posterior, bad)
    compiled = jax.jit(lambda x: predict(network, posterior, x))(bad)
    assert np.isnan(compiled[0]).any(axis=1).tolist() == [False] * 3 + [True] + [False] * 2


def test_networks_whose_examples_depend_on_each_other_are_refused(posterior):
    with pytest.raises(ValueError, match="depend on that example only"):
        l2m.classify(lambda p, x: tokens(p, x - x.mean(0)), posterior, INPUTS)


@pytest.mark.parametrize("apply_fn", [network, tokens])
def test_several_settings_are_each_its_own(apply_fn, posterior):
    unit = posterior._replace(temperature=jnp.ones(()))
    settings = Settings(jnp.array([0.0, 0.1, 0.3]), jnp.array([1.0, 1.0, 0.5]))
    together = at_settings(apply_fn, unit, INPUTS, settings, chunk_size=4)
    for i, (temperature, scale) in enumerate(zip(*settings, strict=True)):

        def scaled(p, x, scale=scale):
            return scale * apply_fn(p, x)

        alone = l2m.classify(scaled, unit._replace(temperature=temperature), INPUTS)
        for one, other in zip(together, alone, strict=True):
            np.testing.assert_allclose(one[i], other, rtol=1e-4, atol=1e-5)
