"""Each metric against scikit-learn, SciPy or an integral; what it refuses; jit and dtypes."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats
from sklearn import metrics as sk

from l2m_optax import metrics

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 2, (500, 4))
PROBS = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)
LABELS = RNG.integers(0, 4, 500)
MEAN, TARGETS = RNG.normal(size=(2, 300))
VARIANCE = RNG.uniform(0.2, 2.0, 300)


def ece_by_loop(probs, labels, num_bins):
    confidence, hits = probs.max(1), probs.argmax(1) == labels
    edges = np.linspace(0, 1, num_bins + 1)
    error = 0.0
    for low, high in itertools.pairwise(edges):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            error += inside.mean() * abs(hits[inside].mean() - confidence[inside].mean())
    return error


def crps_by_integral(mean, variance, target):
    def squared_gap(t):
        return (stats.norm.cdf(t, mean, np.sqrt(variance)) - (t >= target)) ** 2

    low, high = min(mean, target) - 12, max(mean, target) + 12
    return integrate.quad(squared_gap, low, high, points=[target], limit=200)[0]


CASES = {
    "negative_log_likelihood": (PROBS, LABELS, sk.log_loss(LABELS, PROBS)),
    "accuracy": (PROBS, LABELS, sk.accuracy_score(LABELS, PROBS.argmax(1))),
    "brier_score": (PROBS, LABELS, ((PROBS - np.eye(4)[LABELS]) ** 2).sum(1).mean()),
    "expected_calibration_error": (PROBS, LABELS, ece_by_loop(PROBS, LABELS, 15)),
    "auroc": (PROBS[:, 0], LABELS == 0, sk.roc_auc_score(LABELS == 0, PROBS[:, 0])),
    "gaussian_negative_log_likelihood": (
        MEAN,
        VARIANCE,
        TARGETS,
        -stats.norm.logpdf(TARGETS, MEAN, np.sqrt(VARIANCE)).mean(),
    ),
    "root_mean_squared_error": (MEAN, TARGETS, np.sqrt(sk.mean_squared_error(TARGETS, MEAN))),
    "gaussian_crps": (
        MEAN[:40],
        VARIANCE[:40],
        TARGETS[:40],
        np.mean([crps_by_integral(*row) for row in zip(MEAN, VARIANCE, TARGETS, strict=True)][:40]),
    ),
    "interval_coverage": (
        MEAN,
        VARIANCE,
        TARGETS,
        np.mean(np.abs(stats.norm.cdf(TARGETS, MEAN, np.sqrt(VARIANCE)) - 0.5) <= 0.475),
    ),
}


JITTED = {name: jax.jit(getattr(metrics, name)) for name in CASES}


@pytest.mark.parametrize("name", CASES)
def test_equals_its_reference_in_eager_and_in_jit(name):
    *arrays, expected = CASES[name]
    arrays = [jnp.asarray(a) for a in arrays]
    np.testing.assert_allclose(getattr(metrics, name)(*arrays), expected, rtol=2e-5)
    np.testing.assert_allclose(JITTED[name](*arrays), expected, rtol=2e-5)


@pytest.mark.parametrize("name", CASES)
def test_dtypes_are_kept_in_x64(name):
    *arrays, expected = CASES[name]
    real = [np.issubdtype(a.dtype, np.floating) for a in arrays]
    with jax.enable_x64(True) if hasattr(jax, "enable_x64") else jax.experimental.enable_x64():
        for dtype in (jnp.float32, jnp.float64):
            cast = [jnp.asarray(a, dtype if r else None) for a, r in zip(arrays, real, strict=True)]
            assert jax.eval_shape(JITTED[name], *cast).dtype == dtype
        # 1e-7 is what the quadrature is good to; the other references are exact.
        np.testing.assert_allclose(JITTED[name](*cast), expected, rtol=1e-7)


@pytest.mark.parametrize("name", CASES)
def test_statistics_are_float32_for_bfloat16(name):
    *arrays, _ = CASES[name]
    real = [np.issubdtype(a.dtype, np.floating) for a in arrays]
    low = [jnp.asarray(a, jnp.bfloat16 if r else None) for a, r in zip(arrays, real, strict=True)]
    full = [a.astype(jnp.float32) if r else a for a, r in zip(low, real, strict=True)]
    value = JITTED[name](*low)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, JITTED[name](*full), rtol=1e-6)


def test_a_softmax_in_bfloat16_is_accepted_and_the_same_error_in_float32_is_not():
    probs = jax.nn.softmax(jnp.asarray(LOGITS, jnp.bfloat16), axis=1)
    assert np.max(np.abs(np.sum(np.asarray(probs, np.float64), axis=1) - 1.0)) > 1e-3
    expected = sk.accuracy_score(LABELS, np.argmax(np.asarray(probs, np.float32), axis=1))
    np.testing.assert_allclose(metrics.accuracy(probs, LABELS), expected, rtol=1e-6)
    with pytest.raises(ValueError, match="rows that sum to 1"):
        metrics.accuracy(probs.astype(jnp.float32), LABELS)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
@pytest.mark.parametrize("name", ["negative_log_likelihood", "accuracy", "brier_score"])
def test_labels_narrower_than_the_number_of_classes(name, dtype):
    probs = np.random.default_rng(1).dirichlet(np.ones(300), 16).astype(np.float32)
    labels = np.minimum(probs.argmax(1), 127)
    value = JITTED[name](probs, labels.astype(dtype))
    np.testing.assert_allclose(value, JITTED[name](probs, labels), rtol=1e-6)
    truth = np.eye(300)[labels]
    if name == "brier_score":
        np.testing.assert_allclose(value, ((probs - truth) ** 2).sum(1).mean(), rtol=1e-5)


@pytest.mark.parametrize("num_bins", [1, 5, 50])
def test_calibration_bins(num_bins):
    value = metrics.expected_calibration_error(PROBS, LABELS, num_bins=num_bins)
    np.testing.assert_allclose(value, ece_by_loop(PROBS, LABELS, num_bins), rtol=1e-4)


@pytest.mark.parametrize("num_bins", [15, 21])
def test_a_confidence_on_an_edge_is_in_the_bin_below(num_bins):
    edges = (np.arange(1, num_bins + 1) / num_bins).astype(np.float32)
    edges = edges[edges > 0.5]
    just_above = np.nextafter(edges[:-1], np.float32(1))
    confidence = np.concatenate([edges, just_above])
    probs = np.stack([confidence, 1 - confidence], axis=1)
    # Hit on the edge, miss above it: the two cancel if they are put into one bin.
    labels = np.concatenate([np.zeros(len(edges), int), np.ones(len(just_above), int)])
    below = 1 - edges.astype(np.float64)
    gaps = below.copy()
    gaps[1:] -= just_above
    expected = np.abs(gaps).sum() / len(confidence)
    value = metrics.expected_calibration_error(probs, labels, num_bins=num_bins)
    np.testing.assert_allclose(value, expected, rtol=1e-5)


@pytest.mark.parametrize("level", [0.5, 0.9, 0.99])
def test_coverage_levels(level):
    expected = np.mean(np.abs(stats.norm.cdf(TARGETS, MEAN, np.sqrt(VARIANCE)) - 0.5) <= level / 2)
    value = metrics.interval_coverage(MEAN, VARIANCE, TARGETS, level=level)
    np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_coverage_of_a_level_that_float32_rounds_to_one():
    z = stats.norm.isf(0.5e-8) + jnp.array([-1e-3, 1e-3])
    value = metrics.interval_coverage(jnp.zeros(2), jnp.ones(2), z, level=1 - 1e-8)
    np.testing.assert_allclose(value, 0.5)


def test_auroc_is_exact_with_many_ties_and_infinite_scores():
    scores = np.round(RNG.normal(size=20_000), 1).astype(np.float32)
    positives = RNG.uniform(size=20_000) < 0.1
    expected = sk.roc_auc_score(positives, scores)
    np.testing.assert_allclose(metrics.auroc(scores, positives), expected, atol=1e-6)
    infinite = jnp.array([jnp.inf, jnp.inf, 0.0, -jnp.inf])
    np.testing.assert_allclose(metrics.auroc(infinite, jnp.array([1, 0, 0, 1])), 3 / 8)


def test_zero_probability_of_the_truth_is_infinitely_bad():
    assert np.isposinf(metrics.negative_log_likelihood(jnp.array([[1.0, 0.0]]), jnp.array([1])))


ONE_NAN = np.where(np.arange(4) == (LABELS[:, None] + 1) % 4, np.nan, PROBS)  # never of the truth

NAN_UNDER_JIT = {
    "label too high": ("negative_log_likelihood", PROBS, np.full(500, 4)),
    "label below 0": ("negative_log_likelihood", PROBS, np.full(500, -1)),
    "accuracy of no class": ("accuracy", PROBS, np.full(500, 4)),
    "Brier of no class": ("brier_score", PROBS, np.full(500, -1)),
    "calibration of no class": ("expected_calibration_error", PROBS, np.full(500, 4)),
    "NaN beside the truth": ("negative_log_likelihood", ONE_NAN, LABELS),
    "accuracy of NaN": ("accuracy", ONE_NAN, LABELS),
    "Brier of NaN": ("brier_score", ONE_NAN, LABELS),
    "calibration of NaN": ("expected_calibration_error", ONE_NAN, LABELS),
    "one class": ("auroc", PROBS[:, 0], np.ones(500, bool)),
    "NaN score": ("auroc", ONE_NAN[:, 0], LABELS == 0),
    "NaN flag": ("auroc", PROBS[:, 0], np.where(np.arange(500) == 7, np.nan, LABELS == 0)),
    "flag of 2": ("auroc", PROBS[:, 0], LABELS),
    "NaN target": ("interval_coverage", MEAN, VARIANCE, np.full(300, np.nan)),
    "negative variance": ("gaussian_crps", MEAN[:40], -VARIANCE[:40], TARGETS[:40]),
    "zero variance": ("gaussian_negative_log_likelihood", MEAN, 0 * VARIANCE, TARGETS),
}


@pytest.mark.parametrize("case", NAN_UNDER_JIT)
def test_what_cannot_be_checked_under_jit_becomes_nan(case):
    name, *arrays = NAN_UNDER_JIT[case]
    assert jnp.isnan(JITTED[name](*map(jnp.asarray, arrays)))
    with pytest.raises(ValueError, match=r": expected .+, got .+; .+"):
        getattr(metrics, name)(*arrays)


REFUSALS = {
    "logits": ("accuracy", (LOGITS, LABELS), {}, ValueError, "rows that sum to 1"),
    "negative": ("accuracy", ([[1.5, -0.5]], [0]), {}, ValueError, "nothing below 0"),
    "one row": ("accuracy", (PROBS[0], LABELS[:1]), {}, ValueError, r"probs: expected shape"),
    "no rows": ("accuracy", (PROBS[:0], LABELS[:0]), {}, ValueError, "not empty"),
    "lengths": ("brier_score", (PROBS, LABELS[:5]), {}, ValueError, "labels: expected shape"),
    "real labels": ("accuracy", (PROBS, LABELS * 1.0), {}, TypeError, "labels: expected integers"),
    "no bins": (
        "expected_calibration_error",
        (PROBS, LABELS),
        {"num_bins": 0},
        ValueError,
        "num_bins: expected at least 1",
    ),
    "level": (
        "interval_coverage",
        (MEAN, VARIANCE, TARGETS),
        {"level": 95},
        ValueError,
        "level: expected 0 < level < 1",
    ),
    "shapes": ("gaussian_crps", (MEAN, VARIANCE[:3], TARGETS), {}, ValueError, "variance: expect"),
    "empty": ("root_mean_squared_error", ([], []), {}, ValueError, "at least one entry"),
    "flags": ("auroc", (MEAN, np.arange(300)), {}, ValueError, "both 0 and 1"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(case):
    name, arrays, kwargs, error, message = REFUSALS[case]
    with pytest.raises(error, match=message):
        getattr(metrics, name)(*[jnp.asarray(a) for a in arrays], **kwargs)
