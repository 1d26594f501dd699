"""Closed-form probabilities against draws of softmax, and against their exact cases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, special, stats

import l2m_optax as l2m


def mean_field_of_matrices(mean, covariance):
    """`mean_field` with covariances, told from `mean_field` with variances by name."""
    return l2m.predict.mean_field(mean, covariance)


OF_VARIANCE = [l2m.predict.probit, l2m.predict.mean_field]
EVERY = [*OF_VARIANCE, mean_field_of_matrices, l2m.predict.laplace_bridge]
MEANS = {
    2: np.array([1.2, -0.3]),
    4: np.array([1.5, 0.2, -0.4, -2.0]),
    10: np.linspace(-2.0, 2.0, 10),
}
# How far from the draws an entry may be, for each number of classes and standard deviation.
TOLERANCES = [
    *((classes, 0.3, 0.01) for classes in MEANS),
    *((2, scale, 0.05) for scale in (1.0, 2.0)),
    *((4, scale, 0.06) for scale in (1.0, 2.0)),
    *((10, scale, 0.09) for scale in (1.0, 2.0)),
]


def covariance_of(classes: int, scale: float) -> np.ndarray:
    """Correlated logits of unequal variances, which are scale² on average."""
    factor = np.random.default_rng(classes).normal(size=(classes, classes + 2))
    matrix = factor @ factor.T
    return scale**2 * classes * matrix / np.trace(matrix)


def drawn(mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """The mean of softmax over 200,000 draws; its standard error is below 0.001."""
    draws = np.random.default_rng(0).multivariate_normal(mean, covariance, 200_000)
    return special.softmax(draws, axis=-1).mean(axis=0)


def normalised(alpha):
    return alpha / alpha.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize(("classes", "scale", "tolerance"), TOLERANCES)
@pytest.mark.parametrize("function", OF_VARIANCE)
def test_independent_logits_against_draws(function, classes, scale, tolerance):
    variance = np.diagonal(covariance_of(classes, scale))
    reference = drawn(MEANS[classes], np.diag(variance))
    probs = function(MEANS[classes], variance)
    np.testing.assert_allclose(probs, reference, atol=tolerance)
    plain = special.softmax(MEANS[classes])
    assert classes == 10 or np.abs(probs - reference).max() < np.abs(plain - reference).max()


@pytest.mark.parametrize(("classes", "scale", "tolerance"), TOLERANCES)
def test_correlated_logits_against_draws(classes, scale, tolerance):
    covariance = covariance_of(classes, scale)
    reference = drawn(MEANS[classes], covariance)
    probs = mean_field_of_matrices(MEANS[classes], covariance)
    np.testing.assert_allclose(probs, reference, atol=tolerance)
    plain = special.softmax(MEANS[classes])
    assert classes == 10 or np.abs(probs - reference).max() < np.abs(plain - reference).max()


def test_the_sums_as_the_paper_writes_them():
    mean, covariance = MEANS[4], covariance_of(4, 1.5)
    variance = np.diagonal(covariance)
    differences = {
        l2m.predict.mean_field: lambda k, j: variance[k] + variance[j],
        mean_field_of_matrices: lambda k, j: variance[k] + variance[j] - 2 * covariance[k, j],
    }
    for function, between in differences.items():
        expected = np.zeros(4)
        for k in range(4):
            terms = 0.0
            for j in range(4):  # the paper's sum is over the other classes, plus 1 for this one
                spread = 0.0 if j == k else between(k, j)
                terms += np.exp(-(mean[k] - mean[j]) / np.sqrt(1 + np.pi / 8 * spread))
            expected[k] = 1 / terms
        given = covariance if function is mean_field_of_matrices else variance
        np.testing.assert_allclose(function(mean, given), expected / expected.sum(), rtol=1e-5)
    scaled = mean / np.sqrt(1 + np.pi / 8 * variance)
    np.testing.assert_allclose(
        l2m.predict.probit(mean, variance), special.softmax(scaled), rtol=1e-5
    )


@pytest.mark.parametrize("classes", MEANS)
def test_without_variance_they_are_softmax(classes):
    expected = special.softmax(MEANS[classes])
    for function in OF_VARIANCE:
        np.testing.assert_allclose(function(MEANS[classes], np.zeros(classes)), expected, rtol=1e-5)
    nothing = np.zeros((classes, classes))
    np.testing.assert_allclose(mean_field_of_matrices(MEANS[classes], nothing), expected, rtol=1e-5)


def test_two_classes_are_the_sigmoid_probit_of_the_difference():
    mean, covariance = MEANS[2], np.array([[2.0, 0.7], [0.7, 1.0]])
    spread = 2.0 + 1.0 - 2 * 0.7
    expected = special.expit((mean[0] - mean[1]) / np.sqrt(1 + np.pi / 8 * spread))
    probs = mean_field_of_matrices(mean, covariance)
    np.testing.assert_allclose(probs, [expected, 1 - expected], rtol=1e-6)

    def integrand(z):
        return special.expit(z) * stats.norm.pdf(z, mean[0] - mean[1], np.sqrt(spread))

    np.testing.assert_allclose(probs[0], integrate.quad(integrand, -30, 30)[0], atol=0.01)


def test_one_binary_logit_as_the_remedy_says():
    for function in (l2m.predict.probit, l2m.predict.mean_field):
        probs = function(np.array([0.0, 1.3]), np.array([0.0, 2.0]))
        np.testing.assert_allclose(probs[1], special.expit(1.3 / np.sqrt(1 + np.pi / 4)), rtol=1e-6)


def test_mean_field_of_a_diagonal_is_that_of_its_variances():
    variance = np.array([0.5, 1.0, 2.0, 0.1])
    np.testing.assert_allclose(
        mean_field_of_matrices(MEANS[4], np.diag(variance)),
        l2m.predict.mean_field(MEANS[4], variance),
        rtol=1e-6,
    )


def test_the_differences_do_not_feel_a_common_shift():
    covariance = covariance_of(4, 1.0)
    variance = np.diagonal(covariance)
    shifted = l2m.predict.mean_field(MEANS[4] + 7.0, variance)
    np.testing.assert_allclose(shifted, l2m.predict.mean_field(MEANS[4], variance), rtol=1e-5)
    np.testing.assert_allclose(  # a random constant: 3 more in every entry of the covariance
        mean_field_of_matrices(MEANS[4] + 7.0, covariance + 3.0),
        mean_field_of_matrices(MEANS[4], covariance),
        rtol=1e-5,
    )
    equal = np.full(4, 0.4)
    np.testing.assert_allclose(
        l2m.predict.laplace_bridge(MEANS[4] + 7.0, equal),
        l2m.predict.laplace_bridge(MEANS[4], equal),
        rtol=1e-4,
    )


@pytest.mark.parametrize("alpha", [[3.0, 5.0], [0.5, 0.5, 0.5], [1.0, 2.0, 30.0, 4.0]])
def test_the_bridge_finds_the_dirichlet_a_gaussian_came_from(alpha):
    alpha = np.array(alpha)
    classes, inverse = len(alpha), 1 / alpha
    centering = np.eye(classes) - 1 / classes
    mean = centering @ np.log(alpha)  # MacKay's Laplace approximation in the softmax basis
    covariance = centering @ np.diag(inverse) @ centering
    np.testing.assert_allclose(l2m.predict.laplace_bridge(mean, covariance), alpha, rtol=1e-4)
    np.testing.assert_allclose(l2m.predict.laplace_bridge(mean + 2.0, covariance), alpha, rtol=1e-4)


def test_the_bridge_as_the_paper_writes_it():
    mean, covariance = MEANS[4], covariance_of(4, 1.0)
    for matrix in (covariance, np.diag(np.diagonal(covariance))):
        of_sum = matrix.sum()
        mu = mean - matrix.sum(axis=1) * mean.sum() / of_sum
        sigma = matrix - np.outer(matrix.sum(axis=1), matrix.sum(axis=0)) / of_sum
        bracket = 1 - 2 / 4 + np.exp(mu) / 4**2 * np.exp(-mu).sum()
        expected = bracket / np.diagonal(sigma)
        np.testing.assert_allclose(l2m.predict.laplace_bridge(mean, matrix), expected, rtol=1e-4)
    variances = np.diagonal(covariance)
    np.testing.assert_allclose(l2m.predict.laplace_bridge(mean, variances), expected, rtol=1e-4)


def test_the_bridge_of_a_batch_is_that_of_each():
    matrices = np.stack([covariance_of(4, scale) for scale in (0.5, 1.0, 1.5)])
    means = np.stack([MEANS[4], MEANS[4][::-1], 0.5 * MEANS[4]])
    each = [
        l2m.predict.laplace_bridge(mean, matrix)
        for mean, matrix in zip(means, matrices, strict=True)
    ]
    np.testing.assert_allclose(l2m.predict.laplace_bridge(means, matrices), each, rtol=1e-5)
    of_two_axes = l2m.predict.laplace_bridge(means[None], matrices[None])
    np.testing.assert_allclose(of_two_axes, np.stack(each)[None], rtol=1e-5)


def test_the_bridge_has_a_gradient_where_logits_sum_to_a_constant():
    """Only the diagonal of Σ counts there, and α_k is inverse to its own entry."""
    alpha = np.array([8.0, 3.0, 2.0])
    centering = np.eye(3) - 1 / 3
    mean = jnp.asarray(centering @ np.log(alpha), jnp.float32)
    covariance = jnp.asarray(centering @ np.diag(1 / alpha) @ centering, jnp.float32)
    gradient = jax.jacobian(lambda c: l2m.predict.laplace_bridge(mean, c))(covariance)
    expected = np.zeros((3, 3, 3))
    expected[range(3), range(3), range(3)] = -alpha / np.diagonal(covariance)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4)


@pytest.mark.parametrize("least", [1e-3, 1e-6, 1e-8, 1e-12])
def test_the_bridge_holds_where_one_logit_has_nearly_all_of_the_variance(least):
    """The formula in float64, in which σ² - σ⁴ / s is not rounded away."""
    mean, variance = np.array([1.0, -1.0, 0.5]), np.array([1.0, least, 2 * least])
    total, share = variance.sum(), variance / variance.sum()
    moved = mean - share * mean.sum()
    conditioned = variance * np.array([variance[1:].sum(), total - least, 1 + least]) / total
    expected = (1 / 3 + np.exp(moved) / 9 * np.exp(-moved).sum()) / conditioned
    np.testing.assert_allclose(l2m.predict.laplace_bridge(mean, variance), expected, rtol=1e-5)


@pytest.mark.parametrize("least", [1e-3, 1e-6, 1e-8])
@pytest.mark.parametrize("correlation", [-0.3, 0.5])
def test_the_bridge_holds_where_a_correlated_logit_has_nearly_all_of_the_variance(
    least, correlation
):
    mean, deviation = np.array([1.0, -1.0, 0.5]), np.sqrt([1.0, least, 2 * least])
    matrix = np.outer(deviation, deviation) * np.where(np.eye(3), 1, correlation)
    with_sum = matrix.sum(axis=1)
    moved = mean - with_sum * mean.sum() / matrix.sum()
    conditioned = np.diagonal(matrix) - with_sum**2 / matrix.sum()  # in float64
    expected = (1 / 3 + np.exp(moved) / 9 * np.exp(-moved).sum()) / conditioned
    np.testing.assert_allclose(l2m.predict.laplace_bridge(mean, matrix), expected, rtol=1e-5)


def test_the_bridge_against_draws():
    alpha = np.array([8.0, 3.0, 2.0, 5.0])
    centering = np.eye(4) - 1 / 4
    mean, covariance = centering @ np.log(alpha), centering @ np.diag(1 / alpha) @ centering
    bridged = np.asarray(l2m.predict.laplace_bridge(mean, covariance))
    draws = np.random.default_rng(0).multivariate_normal(mean, covariance, 200_000)
    probs = special.softmax(draws, axis=-1)
    np.testing.assert_allclose(normalised(bridged), probs.mean(axis=0), atol=0.02)
    spread = np.sqrt(normalised(bridged) * (1 - normalised(bridged)) / (1 + bridged.sum()))
    np.testing.assert_allclose(spread, probs.std(axis=0), rtol=0.15)


@pytest.mark.parametrize("function", EVERY)
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e8])
def test_extreme_logits_keep_their_order(function, size):
    mean = jnp.array([[1e4, 0.9e4, -1e4], [-1e4, -1e4, -1e4], [0.0, 1e4, 1e4]])
    spread = size * (jnp.eye(3) if function is mean_field_of_matrices else jnp.ones(3))
    probs = function(mean, jnp.broadcast_to(spread, (3, *spread.shape)))
    assert np.all(np.isfinite(probs))
    probs = normalised(probs)
    np.testing.assert_allclose(probs.sum(axis=-1), 1.0, rtol=1e-5)
    assert probs[0, 0] >= probs[0, 1] >= probs[0, 2]
    np.testing.assert_allclose(probs[1], 1 / 3, rtol=1e-5)
    if size < 1e8:
        np.testing.assert_allclose(probs[0], [1.0, 0.0, 0.0], atol=1e-6)
    if function is not l2m.predict.laplace_bridge or size < 1e8:
        np.testing.assert_allclose(probs[2, 1], probs[2, 2], rtol=1e-5)


@pytest.mark.parametrize("function", EVERY)
def test_batches_jit_vmap_gradients_and_low_precision(function):
    mean = jnp.stack([MEANS[4], MEANS[4][::-1], 2 * MEANS[4]])
    matrix = jnp.asarray(np.stack([covariance_of(4, s) for s in (0.5, 1.0, 1.5)]), jnp.float32)
    of_matrix = function is mean_field_of_matrices
    spread = matrix if of_matrix else jnp.diagonal(matrix, axis1=1, axis2=2)
    rows = jnp.stack([function(m, s) for m, s in zip(mean, spread, strict=True)])
    for batched in (function, jax.jit(function), jax.vmap(function)):
        np.testing.assert_allclose(batched(mean, spread), rows, rtol=2e-5)
    gradients = jax.grad(lambda m, s: jnp.sum(jnp.log(function(m, s)[..., 0])), (0, 1))
    assert all(np.all(np.isfinite(g)) for g in gradients(mean, spread))
    low = function(mean.astype(jnp.bfloat16), spread.astype(jnp.bfloat16))
    assert low.dtype == jnp.float32
    np.testing.assert_allclose(normalised(low), normalised(rows), atol=0.02)


BAD = {
    "one class": (np.zeros((5, 1)), np.ones((5, 1)), ValueError, "mean: expected logits of shape"),
    "no axis": (np.zeros(()), np.ones(()), ValueError, "mean: expected logits of shape"),
    "another shape": (np.zeros((5, 3)), np.ones((5, 4)), ValueError, "expected shape (5, 3"),
    "a shape that broadcasts": (np.zeros((5, 3)), np.ones((1, 3)), ValueError, "shape (5, 3"),
    "a negative variance": (np.zeros(3), -np.ones(3), ValueError, "expected nothing below 0"),
    "a NaN in the mean": (
        np.array([0.0, np.nan, 1.0]),
        np.ones(3),
        FloatingPointError,
        "mean: expected finite values, got 1 NaN or infinite of 3",
    ),
    "a mean that is mostly NaN": (
        np.array([np.nan, np.nan, 1.0]),
        np.ones(3),
        FloatingPointError,
        "mean: expected finite values, got 2 NaN or infinite of 3",
    ),
    "an infinite variance": (
        np.zeros(3),
        np.array([1.0, np.inf, 1.0]),
        FloatingPointError,
        "NaN or infinite of",
    ),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("function", EVERY)
def test_bad_input_is_refused(function, case):
    mean, spread, error, message = BAD[case]
    if function is mean_field_of_matrices:
        spread = spread[..., None] * np.ones(spread.shape[-1:]) if spread.ndim else spread
        if case == "an infinite variance":
            spread = np.diag([1.0, 2.0, 1.0])
            spread[1, 1] = np.inf
    with pytest.raises(error) as caught:
        function(mean, spread)
    assert message in str(caught.value)


@pytest.mark.parametrize("function", [mean_field_of_matrices, l2m.predict.laplace_bridge])
def test_what_is_no_covariance_is_refused(function):
    with pytest.raises(ValueError, match="a symmetric matrix"):
        function(np.zeros(2), np.array([[1.0, 0.5], [0.0, 1.0]]))
    with pytest.raises(ValueError, match="larger than its two variances allow"):
        function(np.zeros(2), np.array([[1.0, 1.5], [1.5, 1.0]]))


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_a_covariance_is_told_from_others_at_any_scale(scale):
    with pytest.raises(ValueError, match="a symmetric matrix"):
        mean_field_of_matrices(np.zeros(2), scale * np.array([[1.0, 0.5], [0.0, 1.0]]))
    with pytest.raises(ValueError, match="larger than its two variances allow"):
        mean_field_of_matrices(np.zeros(2), scale * np.array([[1.0, 1.5], [1.5, 1.0]]))
    rounded = scale * np.array([[1.0, 1.0], [0.9999, 0.9999]])
    np.testing.assert_allclose(mean_field_of_matrices(np.zeros(2), rounded), 0.5, rtol=1e-3)


def test_the_bridge_refuses_logits_without_variance():
    with pytest.raises(ValueError, match="positive variances"):
        l2m.predict.laplace_bridge(np.zeros(3), np.array([1.0, 0.0, 1.0]))
