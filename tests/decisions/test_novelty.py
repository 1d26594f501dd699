"""The alarm: information or entropy, at a temperature of its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

import l2m_optax as l2m
from l2m_optax.decisions import novelty

W = jnp.array([[1.0, -1.0, 0.0], [0.5, 0.0, -0.5]])
X = jnp.array([[1.0, 0.0], [0.0, 1.0], [3.0, -3.0], [0.0, 12.0], [0.01, 0.0]])


def linear(w, x):
    return x @ w


def posterior_at(temperature):
    moment = l2m.SecondMoment(nu=jnp.array([[1.0, 2.0, 0.5], [0.3, 0.1, 0.2]]))
    return l2m.laplace(
        W, moment, num_data=6, batch_size=1, temperature=temperature, prior_precision=0.5
    )


def in_basis(posterior):
    """The same moment in a basis that turns the inputs' axis."""
    turned = l2m.moments.Basis(left=jnp.array([[0.6, -0.8], [0.8, 0.6]]), right=None)
    moment = posterior.second_moment._replace(basis=turned)
    return posterior._replace(second_moment=moment)


def by_draws(variance):
    """Entropy and mutual information by 200,000 draws of logits with independent entries."""
    noise = np.random.default_rng(0).normal(size=(200_000, 1, 3))
    probs = special.softmax(np.asarray(X @ W) + np.sqrt(variance) * noise, axis=-1)
    entropy = special.entr(probs.mean(0)).sum(-1)
    return entropy, entropy - special.entr(probs).sum(-1).mean(0)


@pytest.mark.parametrize("temperature", [0.0, 0.01, 30.0])
def test_of_a_diagonal_it_is_the_entropy_at_the_cold_temperature(temperature):
    posterior = posterior_at(temperature)
    cold = posterior_at(float(l2m.tuning.cold_temperature(posterior, 3)))
    variance = np.square(X) @ np.asarray(l2m.variance(cold), np.float64)
    found = novelty(linear, posterior, X)
    assert found.shape == (5,)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, by_draws(variance)[0], rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("temperature", [0.0, 0.01, 30.0])
def test_with_correlations_it_is_the_mutual_information(temperature):
    posterior = in_basis(posterior_at(temperature))
    turned = np.asarray(X @ posterior.second_moment.basis.left, np.float64)
    variance = np.square(turned) @ np.asarray(l2m.variance(posterior_at(0.1)), np.float64)
    found = novelty(linear, posterior, X)
    np.testing.assert_allclose(found, by_draws(variance)[1], rtol=0.06, atol=1e-5)


# γ of `posterior_at` is 4.774 of 6 parameters. A diagonal takes a tenth of N L / γ.
@pytest.mark.parametrize(
    ("loss", "diagonal", "bases"),
    [(0.0, 0.0, 1e-3), (0.3, 0.6 * 0.3 / 4.774, 6 * 0.3 / 4.774), (20.0, 1.0, 1.0)],
)
def test_the_temperature_is_the_loss_over_the_parameters_that_the_data_determine(
    loss, diagonal, bases
):
    posterior = posterior_at(1.0)._replace(training_loss=jnp.float32(loss))
    expected = l2m.classify(linear, posterior_at(diagonal), X).total
    np.testing.assert_allclose(novelty(linear, posterior, X), expected, rtol=2e-3, atol=1e-7)
    expected = l2m.classify(linear, in_basis(posterior_at(bases)), X).epistemic
    found = novelty(linear, in_basis(posterior), X)
    np.testing.assert_allclose(found, expected, rtol=4e-3, atol=1e-6)


@pytest.mark.parametrize("loss", [0.0, 0.3])
def test_what_no_data_determine_is_as_wide_as_its_prior(loss):
    posterior = posterior_at(0.0)
    moment = l2m.SecondMoment(nu=jnp.zeros((2, 3)))
    posterior = posterior._replace(second_moment=moment, training_loss=jnp.float32(loss))
    expected = l2m.classify(linear, posterior._replace(temperature=jnp.ones(())), X).total
    np.testing.assert_allclose(novelty(linear, posterior, X), expected, rtol=1e-5)


def test_it_is_deterministic():
    found = [novelty(linear, posterior_at(0.1), X) for _ in range(2)]
    np.testing.assert_array_equal(*found)


def test_under_jit():
    compiled = jax.jit(lambda p: novelty(linear, p, X))(posterior_at(0.0))
    np.testing.assert_allclose(compiled, novelty(linear, posterior_at(0.0), X), rtol=1e-4)


@pytest.mark.parametrize(
    "one", [lambda w, x: x @ w[:, :1], lambda w, x: (x @ w)[:, 0]], ids=["column", "row"]
)
def test_outputs_without_classes_are_refused(one):
    with pytest.raises(ValueError, match=r"apply_fn: expected logits.*output_variance"):
        novelty(one, posterior_at(1.0), X)


def test_a_posterior_with_a_fitted_noise_is_refused():
    regression = posterior_at(1.0)._replace(noise_variance=jnp.float32(0.3))
    with pytest.raises(ValueError, match=r"posterior: expected one of a classifier.*output_var"):
        novelty(linear, regression, X)


def test_arguments_in_another_order_are_refused():
    with pytest.raises(TypeError, match="apply_fn: expected a function, got a Posterior"):
        novelty(posterior_at(1.0), linear, X)
