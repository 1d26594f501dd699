"""Each metric against scikit-learn, SciPy or an integral; what it refuses; jit and dtypes."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats
from scipy.spatial import distance
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

from l2m_optax import metrics

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 2, (500, 4))
PROBS = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)
LABELS = RNG.integers(0, 4, 500)
MEAN, TARGETS = RNG.normal(size=(2, 300))
VARIANCE = RNG.uniform(0.2, 2.0, 300)
LOWER, UPPER = stats.norm.interval(0.8, MEAN, np.sqrt(VARIANCE))
DRAWS = RNG.normal(size=(7, 300)) + MEAN
VECTORS, TRUTHS = RNG.normal(size=(7, 20, 3)), RNG.normal(size=(20, 3))
TIED = np.round(PROBS[:, 0], 1)  # scores with many ties
WRONG = (PROBS.argmax(1) != LABELS).astype(float)


def ece_by_loop(probs, labels, num_bins):
    confidence, hits = probs.max(1), probs.argmax(1) == labels
    edges = np.linspace(0, 1, num_bins + 1)
    error = 0.0
    for low, high in itertools.pairwise(edges):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            error += inside.mean() * abs(hits[inside].mean() - confidence[inside].mean())
    return error


def curve_by_sklearn(probs, labels, num_bins, strategy):
    """Accuracy and confidence in the bins that are not empty, and how many are in each."""
    confidence, hits = probs.max(1), probs.argmax(1) == labels
    accuracy, mean = calibration_curve(hits, confidence, n_bins=num_bins, strategy=strategy)
    edges = np.linspace(0, 1, num_bins + 1)
    if strategy == "quantile":
        edges = np.quantile(confidence, edges)
    size = np.bincount(np.searchsorted(edges[1:-1], confidence), minlength=num_bins)
    return mean, accuracy, size


def calibration_by_sklearn(probs, labels, num_bins, strategy):
    mean, accuracy, size = curve_by_sklearn(probs, labels, num_bins, strategy)
    return np.sum(size[size > 0] / len(labels) * np.abs(accuracy - mean))


def classwise_by_loop(probs, labels, num_bins):
    errors = []
    for k in range(probs.shape[1]):
        edges = np.linspace(0, 1, num_bins + 1)
        bins = np.searchsorted(edges[1:-1], probs[:, k])
        for b in np.unique(bins):
            gap = (labels == k)[bins == b].mean() - probs[bins == b, k].mean()
            errors.append((bins == b).mean() * abs(gap))
    return sum(errors) / probs.shape[1]


def fpr95_by_sklearn(positives, scores):
    fpr, tpr, _ = sk.roc_curve(positives, scores, drop_intermediate=False)
    return fpr[tpr >= 0.95].min()


def risk_by_loop(uncertainty, losses):
    """The expected mean loss of the n first, over random orders of those of equal uncertainty."""
    risk = []
    for n in range(1, len(losses) + 1):
        last = np.sort(uncertainty)[n - 1]
        below, at = losses[uncertainty < last], losses[uncertainty == last]
        risk.append((below.sum() + (n - len(below)) * at.mean()) / n)
    return np.array(risk)


def energy_by_loop(samples, targets):
    scores = []
    for draws, target in zip(np.moveaxis(samples, 1, 0), targets, strict=True):
        error = np.linalg.norm(draws - target, axis=1).mean()
        scores.append(error - 0.5 * distance.pdist(draws).mean())
    return np.mean(scores)


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
    "adaptive_calibration_error": (
        PROBS,
        LABELS,
        calibration_by_sklearn(PROBS, LABELS, 15, "quantile"),
    ),
    "classwise_calibration_error": (PROBS, LABELS, classwise_by_loop(PROBS, LABELS, 15)),
    "maximum_calibration_error": (
        PROBS,
        LABELS,
        np.abs(np.subtract(*curve_by_sklearn(PROBS, LABELS, 15, "uniform")[:2])).max(),
    ),
    "aupr": (TIED, LABELS == 0, sk.average_precision_score(LABELS == 0, TIED)),
    "fpr_at_95_tpr": (TIED, LABELS == 0, fpr95_by_sklearn(LABELS == 0, TIED)),
    "aurc": (TIED, WRONG, risk_by_loop(TIED, WRONG).mean()),
    "picp": (LOWER, UPPER, TARGETS, np.mean((LOWER <= TARGETS) & (TARGETS <= UPPER))),
    "mean_interval_width": (LOWER, UPPER, 2 * stats.norm.isf(0.1) * np.sqrt(VARIANCE).mean()),
    "sample_crps": (DRAWS, TARGETS, energy_by_loop(DRAWS[..., None], TARGETS[:, None])),
    "energy_score": (VECTORS, TRUTHS, energy_by_loop(VECTORS, TRUTHS)),
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
    # Rows that sum to 1 in bfloat16 too.
    exact = (1 + np.random.default_rng(1).multinomial(252, PROBS)) / 256
    arrays = [exact if a is PROBS else a for a in arrays]
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


@pytest.mark.parametrize("num_bins", [1, 5, 40])
def test_reliability_curve_is_that_of_sklearn(num_bins):
    curve = metrics.reliability_curve(PROBS, LABELS, num_bins=num_bins)
    mean, accuracy, size = curve_by_sklearn(PROBS, LABELS, num_bins, "uniform")
    np.testing.assert_array_equal(curve.size, size)
    filled = size > 0
    np.testing.assert_allclose(curve.confidence[filled], mean, rtol=1e-5)
    np.testing.assert_allclose(curve.accuracy[filled], accuracy, rtol=1e-5)
    assert np.isnan(curve.confidence[~filled]).all() and np.isnan(curve.accuracy[~filled]).all()
    value = metrics.expected_calibration_error(PROBS, LABELS, num_bins=num_bins)
    gaps = np.abs(curve.accuracy - curve.confidence)[filled]
    np.testing.assert_allclose(value, np.sum(gaps * size[filled]) / 500, rtol=1e-4)


@pytest.mark.parametrize("num_bins", [1, 7, 500, 700])
def test_adaptive_bins_hold_equally_many(num_bins):
    value = metrics.adaptive_calibration_error(PROBS, LABELS, num_bins=num_bins)
    expected = calibration_by_sklearn(PROBS, LABELS, min(num_bins, 500), "quantile")
    np.testing.assert_allclose(value, expected, rtol=1e-4)


def test_adaptive_bins_keep_equal_confidences_together():
    probs = np.repeat([[0.6, 0.4], [0.9, 0.1]], 10, axis=0).astype(np.float32)
    labels = np.tile([0, 1], 10)
    value = metrics.adaptive_calibration_error(probs, labels, num_bins=7)
    np.testing.assert_allclose(value, (0.1 + 0.4) / 2, rtol=1e-5)
    order = RNG.permutation(20)
    shuffled = metrics.adaptive_calibration_error(probs[order], labels[order], num_bins=7)
    np.testing.assert_allclose(shuffled, value, rtol=1e-5)


@pytest.mark.parametrize("share", [0.02, 0.5, 0.98])
@pytest.mark.parametrize("digits", [0, 1, 7])
def test_ranking_is_that_of_sklearn_with_any_ties(share, digits):
    rng = np.random.default_rng(digits)
    positives = rng.uniform(size=2000) < share
    scores = np.round(rng.normal(size=2000) + positives, digits).astype(np.float32)
    for value, expected in [
        (metrics.auroc(scores, positives), sk.roc_auc_score(positives, scores)),
        (metrics.aupr(scores, positives), sk.average_precision_score(positives, scores)),
        (metrics.fpr_at_95_tpr(scores, positives), fpr95_by_sklearn(positives, scores)),
    ]:
        np.testing.assert_allclose(value, expected, rtol=1e-5)


@pytest.mark.parametrize("num_positives", [1, 19, 20, 21, 40, 100, 101])
def test_95_percent_of_the_positives_is_counted_exactly(num_positives):
    scores = np.random.default_rng(1).permutation(400).astype(np.float32)
    positives = np.arange(400) < num_positives
    expected = fpr95_by_sklearn(positives, scores)
    np.testing.assert_allclose(metrics.fpr_at_95_tpr(scores, positives), expected, rtol=1e-6)


def test_ranking_of_infinite_scores():
    ranks = np.array([3.0, 3.0, 2.0, 2.0, 1.0, 1.0])
    positives = np.array([1, 0, 0, 1, 1, 0])
    infinite = np.select([ranks == 3, ranks == 1], [np.inf, -np.inf], ranks)
    for metric in (metrics.auroc, metrics.aupr, metrics.fpr_at_95_tpr):
        np.testing.assert_array_equal(metric(infinite, positives), metric(ranks, positives))


@pytest.mark.parametrize("digits", [0, 1, 7])
def test_risk_coverage_is_the_mean_over_orders_of_what_is_tied(digits):
    uncertainty, losses = np.round(PROBS[:, 0], digits), RNG.exponential(size=500)
    curve = metrics.risk_coverage_curve(uncertainty, losses)
    np.testing.assert_allclose(curve.coverage, np.arange(1, 501) / 500, rtol=1e-6)
    expected = risk_by_loop(uncertainty.astype(np.float32), losses)
    np.testing.assert_allclose(curve.risk, expected, rtol=1e-4)


def test_sample_crps_tends_to_the_closed_form_and_is_not_biased():
    mean, deviation, target = 0.3, 1.7, 1.0
    exact = metrics.gaussian_crps(mean, deviation**2, target)
    rng = np.random.default_rng(0)
    many = rng.normal(mean, deviation, (100_000, 1))
    np.testing.assert_allclose(metrics.sample_crps(many, jnp.full(1, target)), exact, rtol=0.01)
    few = rng.normal(mean, deviation, (2, 100_000))
    # The empirical estimator is 40% too high here.
    value = metrics.sample_crps(few, jnp.full(100_000, target))
    np.testing.assert_allclose(value, exact, rtol=0.02)


def test_energy_score_of_one_output_is_the_crps_and_sees_the_correlation():
    one = metrics.energy_score(DRAWS[..., None], TARGETS[:, None])
    np.testing.assert_allclose(one, metrics.sample_crps(DRAWS, TARGETS), rtol=1e-5)
    rng = np.random.default_rng(0)
    common = np.repeat(rng.normal(size=(300, 200, 1)), 2, axis=-1)
    apart = rng.normal(size=(300, 200, 2))
    truth = np.repeat(rng.normal(size=(200, 1)), 2, axis=-1)
    assert metrics.energy_score(common, truth) < metrics.energy_score(apart, truth)


def test_energy_score_has_a_gradient_where_draws_meet_themselves():
    slope = jax.grad(metrics.energy_score)(jnp.asarray(VECTORS), jnp.asarray(TRUTHS))
    assert np.isfinite(slope).all()


@pytest.mark.parametrize("level", [0.5, 0.9, 0.99])
def test_gaussian_intervals_are_those_of_scipy(level):
    lower, upper = metrics.gaussian_interval(MEAN, VARIANCE, level=level)
    expected = stats.norm.interval(level, MEAN, np.sqrt(VARIANCE))
    np.testing.assert_allclose((lower, upper), expected, rtol=1e-4, atol=1e-6)
    coverage = metrics.interval_coverage(MEAN, VARIANCE, TARGETS, level=level)
    np.testing.assert_allclose(metrics.picp(lower, upper, TARGETS), coverage)


def test_the_ends_belong_to_the_interval():
    ends = jnp.array([0.0, 1.0])
    assert metrics.picp(jnp.zeros(2), jnp.ones(2), ends) == 1.0


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
    "accuracy of logits": ("accuracy", np.abs(LOGITS), LABELS),
    "negative probability": ("brier_score", PROBS + np.array([1, -1, 0, 0]), LABELS),
    "adaptive of no class": ("adaptive_calibration_error", PROBS, np.full(500, 4)),
    "adaptive of NaN": ("adaptive_calibration_error", ONE_NAN, LABELS),
    "classwise of no class": ("classwise_calibration_error", PROBS, np.full(500, -1)),
    "classwise of NaN": ("classwise_calibration_error", ONE_NAN, LABELS),
    "maximum of NaN": ("maximum_calibration_error", ONE_NAN, LABELS),
    "maximum of no class": ("maximum_calibration_error", PROBS, np.full(500, 4)),
    "precision of no positive": ("aupr", TIED, np.zeros(500, bool)),
    "precision of no negative": ("aupr", TIED, np.ones(500, bool)),
    "precision of NaN": ("aupr", ONE_NAN[:, 0], LABELS == 0),
    "precision of a flag of 2": ("aupr", TIED, LABELS),
    "rate of no positive": ("fpr_at_95_tpr", TIED, np.zeros(500, bool)),
    "rate of no negative": ("fpr_at_95_tpr", TIED, np.ones(500, bool)),
    "rate of NaN": ("fpr_at_95_tpr", ONE_NAN[:, 0], LABELS == 0),
    "NaN uncertainty": ("aurc", ONE_NAN[:, 0], WRONG),
    "NaN loss": ("aurc", TIED, ONE_NAN[:, 0]),
    "reversed interval": ("picp", UPPER, LOWER, TARGETS),
    "reversed width": ("mean_interval_width", UPPER, LOWER),
    "NaN outside": ("picp", LOWER, UPPER, np.full(300, np.nan)),
    "NaN end": ("picp", LOWER, np.full(300, np.nan), TARGETS),
    "NaN draw": ("sample_crps", np.where(DRAWS > 2, np.nan, DRAWS), TARGETS),
    "NaN vector": ("energy_score", np.where(VECTORS > 2, np.nan, VECTORS), TRUTHS),
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
    "which is NaN": (
        "accuracy",
        (ONE_NAN, LABELS),
        {},
        ValueError,
        "probs: expected numbers, got 5",
    ),
    "NaN losses": ("aurc", (TIED, ONE_NAN[:, 0]), {}, ValueError, "losses: expected numbers"),
    "lengths of losses": ("aurc", (TIED, WRONG[:3]), {}, ValueError, "losses: expected shape"),
    "no losses": ("aurc", (TIED[:0], WRONG[:0]), {}, ValueError, "uncertainty: expected at least"),
    "a table of losses": ("aurc", (PROBS, PROBS), {}, ValueError, r"uncertainty: expected shape"),
    "one kind": ("aupr", (TIED, WRONG * 0), {}, ValueError, r"positives: expected both 0 and 1"),
    "one kind of rate": ("fpr_at_95_tpr", (TIED, WRONG * 0), {}, ValueError, "both 0 and 1"),
    "lengths of flags": ("aupr", (TIED, WRONG[:3]), {}, ValueError, "positives: expected shape"),
    "no scores": ("aupr", (TIED[:0], WRONG[:0]), {}, ValueError, "scores: expected shape"),
    "reversed ends": ("picp", (UPPER, LOWER, TARGETS), {}, ValueError, "upper: expected no end"),
    "no ends": ("mean_interval_width", ([], []), {}, ValueError, "lower: expected at least one"),
    "lengths of ends": ("picp", (LOWER, UPPER[:3], TARGETS), {}, ValueError, "upper: expected sh"),
    "NaN ends": ("picp", (LOWER, UPPER + np.nan, TARGETS), {}, ValueError, "upper: expected num"),
    "one draw": ("sample_crps", (DRAWS[:1], TARGETS), {}, ValueError, "S at least 2"),
    "no draws": ("sample_crps", (DRAWS[:, :0], TARGETS[:0]), {}, ValueError, "targets: expected"),
    "draws last": ("sample_crps", (DRAWS.T, TARGETS), {}, ValueError, r"shape \(S, 300\)"),
    "infinite": (
        "sample_crps",
        (DRAWS + np.inf, TARGETS),
        {},
        ValueError,
        "samples: expected finite",
    ),
    "no vectors": ("energy_score", (DRAWS[:, 0], DRAWS[0, 0]), {}, ValueError, "targets: expect"),
    "level of ends": (
        "gaussian_interval",
        (MEAN, VARIANCE),
        {"level": 0},
        ValueError,
        "level: expected 0 < level < 1",
    ),
    "bins of a curve": (
        "reliability_curve",
        (PROBS, LABELS),
        {"num_bins": 1.5},
        TypeError,
        "num_bins: expected an integer",
    ),
    "flags": ("auroc", (MEAN, np.arange(300)), {}, ValueError, "both 0 and 1"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(case):
    name, arrays, kwargs, error, message = REFUSALS[case]
    with pytest.raises(error, match=message):
        getattr(metrics, name)(*[jnp.asarray(a) for a in arrays], **kwargs)
