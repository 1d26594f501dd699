"""The checks that all metrics share; each returns the arguments in float32 or wider.

Traced values cannot raise an error. There a bad value becomes NaN, and so does the metric.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from l2m_optax._support.checks import complaint, few, is_concrete
from l2m_optax._support.trees import statistics_dtype
from l2m_optax._support.types import Array, ArrayLike

# Rows may sum to 1 within 1e-3. In these narrow types rounding alone can exceed that, so two units
# of rounding are allowed.
_SUM_TOLERANCE = {"bfloat16": 2.0**-6, "float16": 2.0**-9}


def classified(probs: ArrayLike, labels: ArrayLike) -> tuple[Array, Array]:
    """Check probabilities (N, K) and labels (N,); under `jit` a bad row becomes NaN."""
    (table,), truth = as_statistics(probs), jnp.asarray(labels)
    remedy = "pass one row of class probabilities an example"
    filled = table.ndim == 2 and table.size
    require(filled, "probs", "shape (N, K), not empty", table.shape, remedy)
    where = "labels"
    remedy = "pass one integer label an example"
    require(truth.shape == table.shape[:1], where, f"shape {table.shape[:1]}", truth.shape, remedy)
    if not jnp.issubdtype(truth.dtype, jnp.integer):
        raise TypeError(complaint(where, "integers", str(truth.dtype), remedy))
    require_numbers(probs=table)
    tolerance = _SUM_TOLERANCE.get(jnp.result_type(probs).name, 1e-3)
    sums, lows = _sums_and_lows(table)
    if is_concrete(table):
        found, low = np.asarray(sums), np.asarray(lows).min()
        off = np.abs(found - 1.0)
        got = f"a sum of {found[np.argmax(off)]:.4g}"
        remedy = "pass probabilities, not logits"
        require(np.max(off) <= tolerance, "probs", "rows that sum to 1", got, remedy)
        require(low >= 0, "probs", "nothing below 0", f"{low:.4g}", remedy)
    if is_concrete(truth):
        low, high = np.asarray(truth).min(), np.asarray(truth).max()
        in_range = low >= 0 and high < table.shape[1]
        expected = f"0 to {table.shape[1] - 1}"
        require(in_range, where, expected, f"{low} to {high}", "number the classes from 0")
    # The number of classes may not fit into the labels' type: 300 does not fit into int8.
    truth = truth.astype(jnp.int32) if truth.dtype.itemsize < 4 else truth
    return _with_bad_rows_nan(table, sums, lows, truth, tolerance), truth


@jax.jit
def _sums_and_lows(table: Array) -> tuple[Array, Array]:
    return jnp.sum(table, axis=1), jnp.min(table, axis=1)


@jax.jit
def _with_bad_rows_nan(
    table: Array, sums: Array, lows: Array, truth: Array, tolerance: float
) -> Array:
    summed = jnp.abs(sums - 1.0) <= tolerance
    sound = summed & (lows >= 0) & (truth >= 0) & (truth < table.shape[1])
    return jnp.where(sound[:, None], table, jnp.nan)


def detection(scores: ArrayLike, positives: ArrayLike) -> tuple[Array, Array]:
    """Check scores (N,) and flags (N,) of both kinds; under `jit` a bad flag's score is NaN."""
    (values,), flags = as_statistics(scores), jnp.asarray(positives)
    remedy = "pass one score and one flag an example"
    require(
        values.ndim == 1 and values.size, "scores", "shape (N,), not empty", values.shape, remedy
    )
    require_equal_shapes(scores=values, positives=flags)
    require_numbers(scores=values)
    if is_concrete(flags):
        kinds = np.unique(np.asarray(flags)).tolist()
        remedy = "positives are compared with negatives"
        require(kinds == [0, 1], "positives", "both 0 and 1", few(kinds), remedy)
    sound = (flags == 0) | (flags == 1)
    return jnp.where(sound, values, jnp.nan), flags == 1


def gaussian(
    mean: ArrayLike, variance: ArrayLike, targets: ArrayLike
) -> tuple[Array, Array, Array]:
    """Check three arrays of one shape; under `jit` a variance that is not positive is NaN."""
    m, v, y = as_statistics(mean, variance, targets)
    require_equal_shapes(mean=m, variance=v, targets=y)
    require_numbers(mean=m, variance=v, targets=y)
    if is_concrete(v):
        low = np.asarray(v).min()
        require(low > 0, "variance", "positive values", f"{low:.4g}", "pass variances of outputs")
    return m, jnp.where(v > 0, v, jnp.nan), y


def intervals(lower: ArrayLike, upper: ArrayLike, **others: Array) -> tuple[Array, Array]:
    """Check lower and upper ends; under `jit` both ends of a reversed interval are NaN."""
    low, high = as_statistics(lower, upper)
    require_equal_shapes(lower=low, upper=high, **others)
    require_numbers(lower=low, upper=high, **others)
    if is_concrete(low) and is_concrete(high):
        number = int(np.sum(np.asarray(low) > np.asarray(high)))
        remedy = "swap the ends"
        require(number == 0, "upper", "no end below lower", f"{number} of {low.size}", remedy)
    sound = low <= high
    return jnp.where(sound, low, jnp.nan), jnp.where(sound, high, jnp.nan)


def ensemble(samples: ArrayLike, targets: ArrayLike) -> tuple[Array, Array]:
    """Check at least 2 finite draws, shape (S, ...), and their targets, shape (...)."""
    draws, y = as_statistics(samples, targets)
    expected = f"shape (S, {', '.join(map(str, y.shape))}) with S at least 2"
    shaped = draws.shape[1:] == y.shape and draws.ndim and draws.shape[0] >= 2
    require(y.size, "targets", "at least one entry", y.shape, "pass data")
    require(shaped, "samples", expected, draws.shape, "pass draws of observations, first axis S")
    for name, array in {"samples": draws, "targets": y}.items():
        require_numbers(**{name: array})
        if is_concrete(array):
            finite = bool(np.all(np.isfinite(np.asarray(array))))
            require(finite, name, "finite numbers", "infinite ones", "find where it diverged")
    return draws, y


def as_statistics(*arrays: ArrayLike) -> tuple[Array, ...]:
    """The arrays in float32, or in their own type where it is wider."""
    return tuple(jnp.asarray(a, statistics_dtype(a)) for a in arrays)


def require_equal_shapes(**arrays: Array) -> None:
    """Refuse empty arrays, and arrays whose shape is not that of the first."""
    (name, first), *others = arrays.items()
    remedy = f"give it the shape of {name}"
    require(first.size, name, "at least one entry", first.shape, "pass data")
    for other, array in others:
        expected = f"shape {first.shape}"
        require(array.shape == first.shape, other, expected, array.shape, remedy)


def require_numbers(**arrays: Array) -> None:
    """Refuse NaN; traced arrays pass."""
    for name, array in arrays.items():
        if is_concrete(array):
            number = int(np.sum(np.isnan(np.asarray(array))))
            got = f"{number} NaN of {array.size}"
            require(number == 0, name, "numbers", got, "find where the prediction diverged")


def require(condition: object, where: str, expected: str, got: object, remedy: str) -> None:
    """Raise `ValueError` unless the condition holds."""
    if not condition:
        raise ValueError(complaint(where, expected, str(got), remedy))
