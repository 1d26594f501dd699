"""Arrays in, scalars out: how good, and how well calibrated, predictions are."""

from __future__ import annotations

import math
from statistics import NormalDist

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy import special, stats

from l2m_optax._checks import check_count, complaint, is_concrete
from l2m_optax._tree import statistics_dtype
from l2m_optax._types import Array, ArrayLike

# How far from 1 a softmax may sum, where rounding alone takes it past 1e-3: two units of rounding.
_SUM_TOLERANCE = {"bfloat16": 2.0**-6, "float16": 2.0**-9}


def negative_log_likelihood(probs: ArrayLike, labels: ArrayLike) -> Array:
    r"""Mean of $-\log p_{n, y_n}$, in nats; infinite if a true label was given probability 0.

    Args:
      probs: class probabilities, shape (N, K).
      labels: integer labels, shape (N,).

    Returns:
      A scalar; NaN if under `jit` a label is out of range or `probs` holds NaN.

    Raises:
      TypeError: if `labels` are no integers.
      ValueError: if shapes do not match, labels are out of range, or rows of `probs` are no
        probabilities.

    Example:
      >>> import jax.numpy as jnp
      >>> from l2m_optax import metrics
      >>> print(f"{metrics.negative_log_likelihood(jnp.array([[0.5, 0.5]]), jnp.array([0])):.3f}")
      0.693
    """
    probs, labels = _check_classified(probs, labels)
    return -jnp.mean(jnp.log(_of_label(probs, labels)))


def accuracy(probs: ArrayLike, labels: ArrayLike) -> Array:
    """Share of examples whose most probable class is the label.

    Args:
      probs: class probabilities, shape (N, K).
      labels: integer labels, shape (N,).

    Returns:
      A scalar between 0 and 1; NaN as for `negative_log_likelihood`.

    Raises:
      TypeError: if `labels` are no integers.
      ValueError: as for `negative_log_likelihood`.

    Example:
      >>> import jax.numpy as jnp
      >>> from l2m_optax import metrics
      >>> print(metrics.accuracy(jnp.array([[0.9, 0.1], [0.8, 0.2]]), jnp.array([0, 1])))
      0.5
    """
    probs, labels = _check_classified(probs, labels)
    return jnp.mean(_hits(probs, labels))


def brier_score(probs: ArrayLike, labels: ArrayLike) -> Array:
    r"""Mean over examples of $\sum_k (p_{nk} - [y_n = k])^2$.

    Args:
      probs: class probabilities, shape (N, K).
      labels: integer labels, shape (N,).

    Returns:
      A scalar between 0 and 2; NaN as for `negative_log_likelihood`.

    Raises:
      TypeError: if `labels` are no integers.
      ValueError: as for `negative_log_likelihood`.

    Example:
      >>> import jax.numpy as jnp
      >>> from l2m_optax import metrics
      >>> print(metrics.brier_score(jnp.array([[0.5, 0.5]]), jnp.array([0])))
      0.5

    Reference:
      Brier, Verification of forecasts expressed in terms of probability (1950).
    """
    probs, labels = _check_classified(probs, labels)
    truth = jax.nn.one_hot(labels, probs.shape[1], dtype=probs.dtype)
    scores = jnp.sum(jnp.square(probs - truth), axis=1)
    return jnp.mean(jnp.where(_is_sound(probs, labels), scores, jnp.nan))


def expected_calibration_error(probs: ArrayLike, labels: ArrayLike, *, num_bins: int = 15) -> Array:
    r"""$\sum_b \frac{n_b}{N} |\mathrm{accuracy}_b - \mathrm{confidence}_b|$ over bins.

    The confidence is the largest probability; bins are of equal width and closed on the right.

    Args:
      probs: class probabilities, shape (N, K).
      labels: integer labels, shape (N,).
      num_bins: number of bins between 0 and 1; static under `jit`.

    Returns:
      A scalar between 0 and 1; NaN as for `negative_log_likelihood`.

    Raises:
      TypeError: if `labels` or `num_bins` are no integers.
      ValueError: if ``num_bins < 1``, or as for `negative_log_likelihood`.

    Example:
      >>> import jax.numpy as jnp
      >>> from l2m_optax import metrics
      >>> probs = jnp.array([[0.75, 0.25], [0.75, 0.25]])
      >>> print(metrics.expected_calibration_error(probs, jnp.array([0, 1])))
      0.25

    Reference:
      Guo et al., On calibration of modern neural networks (2017).
    """
    check_count("num_bins", num_bins)
    probs, labels = _check_classified(probs, labels)
    confidence = jnp.max(probs, axis=1)
    # Compared with rounded edges: confidence * num_bins may round past an edge it lies on.
    edges = jnp.asarray(np.arange(1, num_bins) / num_bins, confidence.dtype)
    bins = jnp.searchsorted(edges, confidence, side="left")
    gaps = jax.ops.segment_sum(_hits(probs, labels) - confidence, bins, num_bins)
    return jnp.sum(jnp.abs(gaps)) / probs.shape[0]


def auroc(scores: ArrayLike, positives: ArrayLike) -> Array:
    r"""Probability that a positive scores higher than a negative, ties counted half.

    This is the area under the receiver operating characteristic; for out-of-distribution detection
    the scores are uncertainties and the positives are what lies outside.

    Args:
      scores: real scores, shape (N,).
      positives: whether each example is a positive, booleans or 0 and 1, shape (N,).

    Returns:
      A scalar between 0 and 1; NaN if under `jit` there is one class only, a score is NaN, or a
      flag is neither 0 nor 1.

    Raises:
      ValueError: if shapes do not match, scores are NaN, flags are neither 0 nor 1, or there is
        one class only.

    Example:
      >>> import jax.numpy as jnp
      >>> from l2m_optax import metrics
      >>> print(metrics.auroc(jnp.array([0.1, 0.4, 0.35, 0.8]), jnp.array([0, 0, 1, 1])))
      0.75

    Reference:
      Mann & Whitney (1947); Fawcett, An introduction to ROC analysis (2006).
    """
    scores, positives = _check_detection(scores, positives)
    return _auroc(scores, positives)


def gaussian_negative_log_likelihood(
    mean: ArrayLike, variance: ArrayLike, targets: ArrayLike
) -> Array:
    r"""Mean of $\tfrac12 [\log(2\pi v) + (y - m)^2 / v]$, in nats.

    Args:
      mean: predicted means m, any shape.
      variance: predicted variances v > 0, of the same shape.
      targets: observations y, of the same shape.

    Returns:
      A scalar.

    Raises:
      ValueError: if shapes do not match, a variance is not positive, or something is NaN.

    Example:
      >>> import jax.numpy as jnp
      >>> from l2m_optax import metrics
      >>> one = jnp.ones(1)
      >>> print(f"{metrics.gaussian_negative_log_likelihood(one, one, one):.3f}")
      0.919
    """
    mean, variance, targets = _check_gaussian(mean, variance, targets)
    return -jnp.mean(stats.norm.logpdf(targets, mean, jnp.sqrt(variance)))


def root_mean_squared_error(mean: ArrayLike, targets: ArrayLike) -> Array:
    r"""$\sqrt{\overline{(y - m)^2}}$, in the unit of the targets.

    Args:
      mean: predicted means m, any shape.
      targets: observations y, of the same shape.

    Returns:
      A scalar.

    Raises:
      ValueError: if shapes do not match, or something is NaN.

    Example:
      >>> import jax.numpy as jnp
      >>> from l2m_optax import metrics
      >>> print(metrics.root_mean_squared_error(jnp.array([1.0, 2.0]), jnp.array([1.0, 2.0])))
      0.0
    """
    mean, targets = _as_statistics(mean, targets)
    _require_equal_shapes(mean=mean, targets=targets)
    _require_numbers(mean=mean, targets=targets)
    return jnp.sqrt(jnp.mean(jnp.square(targets - mean)))


def gaussian_crps(mean: ArrayLike, variance: ArrayLike, targets: ArrayLike) -> Array:
    r"""Mean continuous ranked probability score of Gaussian predictions.

    With $z = (y - m)/\sqrt v$ it is $\sqrt v\, [z (2\Phi(z) - 1) + 2\phi(z) - 1/\sqrt\pi]$.

    Args:
      mean: predicted means m, any shape.
      variance: predicted variances v > 0, of the same shape.
      targets: observations y, of the same shape.

    Returns:
      A scalar, in the unit of the targets; lower is better.

    Raises:
      ValueError: if shapes do not match, a variance is not positive, or something is NaN.

    Example:
      >>> import jax.numpy as jnp
      >>> from l2m_optax import metrics
      >>> one = jnp.ones(1)
      >>> print(f"{metrics.gaussian_crps(one, one, one):.3f}")
      0.234

    Reference:
      Gneiting & Raftery, Strictly proper scoring rules (2007), equation 21.
    """
    mean, variance, targets = _check_gaussian(mean, variance, targets)
    deviation = jnp.sqrt(variance)
    z = (targets - mean) / deviation
    score = z * special.erf(z / math.sqrt(2.0)) + 2.0 * stats.norm.pdf(z) - math.pi**-0.5
    return jnp.mean(deviation * score)


def interval_coverage(
    mean: ArrayLike, variance: ArrayLike, targets: ArrayLike, *, level: float = 0.95
) -> Array:
    """Share of targets inside the central Gaussian interval of probability `level`.

    Args:
      mean: predicted means, any shape.
      variance: predicted variances, of the same shape.
      targets: observations, of the same shape.
      level: probability of the interval, above 0 and below 1; static under `jit`.

    Returns:
      A scalar between 0 and 1; near `level` if the predictions are calibrated.

    Raises:
      ValueError: if `level` is outside of (0, 1), shapes do not match, a variance is not positive,
        or something is NaN.

    Example:
      >>> import jax.numpy as jnp
      >>> from l2m_optax import metrics
      >>> mean, variance, targets = jnp.zeros(2), jnp.ones(2), jnp.array([1.0, 3.0])
      >>> print(metrics.interval_coverage(mean, variance, targets, level=0.95))
      0.5
    """
    if not 0.0 < level < 1.0:
        raise ValueError(complaint("level", "0 < level < 1", str(level), "pass 0.95 for 95%"))
    mean, variance, targets = _check_gaussian(mean, variance, targets)
    half_width = -NormalDist().inv_cdf(0.5 - 0.5 * float(level))  # exact for levels near 1
    z = jnp.abs(targets - mean) / jnp.sqrt(variance)
    return jnp.mean(jnp.where(jnp.isnan(z), jnp.nan, (z <= half_width).astype(z.dtype)))


@jax.jit
def _auroc(scores: Array, flags: Array) -> Array:
    """Wins of positives over negatives; NaN where a score or a flag is no number to count."""
    positives = flags == 1
    negatives = jnp.sort(jnp.where(positives, jnp.inf, scores))
    num_negatives = jnp.sum(~positives)
    below = jnp.minimum(jnp.searchsorted(negatives, scores, side="left"), num_negatives)
    at_most = jnp.minimum(jnp.searchsorted(negatives, scores, side="right"), num_negatives)
    # A mean of shares below 1 keeps its digits where a sum of ranks would pass 2**24.
    share = 0.5 * (below + at_most).astype(scores.dtype) / num_negatives
    area = jnp.sum(jnp.where(positives, share, 0.0)) / jnp.sum(positives)
    sound = ~jnp.isnan(scores) & (positives | (flags == 0))
    return jnp.where(jnp.all(sound), area, jnp.nan)


def _is_sound(probs: Array, labels: Array) -> Array:
    """Whether each example has a label in range and finite probabilities."""
    in_range = (labels >= 0) & (labels < probs.shape[1])
    return in_range & jnp.all(jnp.isfinite(probs), axis=1)


def _of_label(probs: Array, labels: Array) -> Array:
    """The probability of each label; NaN where the example is not sound."""
    chosen = jnp.take_along_axis(probs, labels[:, None], axis=1, mode="clip")[:, 0]
    return jnp.where(_is_sound(probs, labels), chosen, jnp.nan)


def _hits(probs: Array, labels: Array) -> Array:
    """1 where the most probable class is the label, 0 elsewhere; NaN where it is not sound."""
    hits = (jnp.argmax(probs, axis=1) == labels).astype(probs.dtype)
    return jnp.where(_is_sound(probs, labels), hits, jnp.nan)


def _as_statistics(*arrays: ArrayLike) -> tuple[Array, ...]:
    """Float32 at least."""
    return tuple(jnp.asarray(a, statistics_dtype(a)) for a in arrays)


def _check_classified(probs: ArrayLike, labels: ArrayLike) -> tuple[Array, Array]:
    """Probabilities of shape (N, K) and labels of shape (N,), or an error."""
    (table,), truth = _as_statistics(probs), jnp.asarray(labels)
    remedy = "pass one row of class probabilities an example"
    filled = table.ndim == 2 and table.size
    _require(filled, "probs", "shape (N, K), not empty", table.shape, remedy)
    where = "labels"
    remedy = "pass one integer label an example"
    _require(truth.shape == table.shape[:1], where, f"shape {table.shape[:1]}", truth.shape, remedy)
    if not jnp.issubdtype(truth.dtype, jnp.integer):
        raise TypeError(complaint(where, "integers", str(truth.dtype), remedy))
    _require_numbers(probs=table)
    if is_concrete(table):
        rows = np.asarray(table)
        sums = rows.sum(axis=1)
        worst = sums[np.argmax(np.abs(sums - 1.0))]
        summed = abs(worst - 1.0) <= _SUM_TOLERANCE.get(jnp.result_type(probs).name, 1e-3)
        remedy = "pass probabilities, not logits"
        _require(summed, "probs", "rows that sum to 1", f"a sum of {worst:.4g}", remedy)
        _require(rows.min() >= 0, "probs", "nothing below 0", f"{rows.min():.4g}", remedy)
    if is_concrete(truth):
        low, high = np.asarray(truth).min(), np.asarray(truth).max()
        in_range = low >= 0 and high < table.shape[1]
        expected = f"0 to {table.shape[1] - 1}"
        _require(in_range, where, expected, f"{low} to {high}", "number the classes from 0")
    # A narrow type cannot hold the number of classes with which labels are compared.
    return table, truth.astype(jnp.int32) if truth.dtype.itemsize < 4 else truth


def _check_detection(scores: ArrayLike, positives: ArrayLike) -> tuple[Array, Array]:
    """Scores and flags of the same shape (N,), with both classes present, or an error."""
    (values,), flags = _as_statistics(scores), jnp.asarray(positives)
    remedy = "pass one score and one flag an example"
    _require(
        values.ndim == 1 and values.size, "scores", "shape (N,), not empty", values.shape, remedy
    )
    _require_equal_shapes(scores=values, positives=flags)
    _require_numbers(scores=values)
    if is_concrete(flags):
        classes = set(np.unique(np.asarray(flags)).tolist())
        expected = "both 0 and 1"
        _require(classes == {0, 1}, "positives", expected, sorted(classes), "the area needs both")
    return values, flags


def _check_gaussian(
    mean: ArrayLike, variance: ArrayLike, targets: ArrayLike
) -> tuple[Array, Array, Array]:
    """Three arrays of one shape, the second positive, or an error."""
    m, v, y = _as_statistics(mean, variance, targets)
    _require_equal_shapes(mean=m, variance=v, targets=y)
    _require_numbers(mean=m, variance=v, targets=y)
    if is_concrete(v):
        low = np.asarray(v).min()
        _require(low > 0, "variance", "positive values", f"{low:.4g}", "pass variances of outputs")
    return m, v, y


def _require_equal_shapes(**arrays: Array) -> None:
    (name, first), *others = arrays.items()
    remedy = f"give it the shape of {name}"
    _require(first.size, name, "at least one entry", first.shape, "pass data")
    for other, array in others:
        expected = f"shape {first.shape}"
        _require(array.shape == first.shape, other, expected, array.shape, remedy)


def _require_numbers(**arrays: Array) -> None:
    for name, array in arrays.items():
        if is_concrete(array):
            number = int(np.sum(np.isnan(np.asarray(array))))
            got = f"{number} NaN of {array.size}"
            _require(number == 0, name, "numbers", got, "find where the prediction diverged")


def _require(condition: object, where: str, expected: str, got: object, remedy: str) -> None:
    if not condition:
        raise ValueError(complaint(where, expected, str(got), remedy))
