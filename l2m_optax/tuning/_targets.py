"""Whether targets fit the outputs of a network, and what to do if they do not."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from l2m_optax._support.checks import complaint, is_concrete
from l2m_optax._support.types import Array, ArrayLike, Likelihood


def check_targets(outputs: Any, targets: Array, likelihood: Likelihood | None = None) -> int:
    """Refuse targets that do not fit the outputs, or the likelihood if there is one.

    Class numbers have the shape of the outputs without their last axis; real numbers have the
    shape of the outputs.

    Args:
      outputs: what has the shape and the dtype of the outputs.
      targets: an array.
      likelihood: as in `tune`.

    Returns:
      The number of observations.

    Raises:
      ValueError: if they do not fit, are none, or are out of range.
    """
    if math.prod(targets.shape) == 0:
        got = f"an empty array of shape {targets.shape}"
        raise ValueError(complaint("targets", "at least one", got, "pass what was observed"))
    if likelihood is not None:
        return _check_likelihood(likelihood, outputs, targets)
    if not _fits(outputs.shape, targets):
        got = f"{targets.dtype} of shape {targets.shape}"
        remedy = _remedy(outputs.shape, targets)
        raise ValueError(complaint("targets", _expected(outputs.shape), got, remedy))
    if are_labels(targets):
        _check_classes("targets", targets, outputs.shape[-1])
    else:
        _check_finite(targets)
    return math.prod(targets.shape)


def are_labels(targets: ArrayLike) -> bool:
    """Whether targets are class numbers: arrays of an integer type are."""
    return bool(jnp.issubdtype(jnp.result_type(targets), jnp.integer))


def are_one_hot(outputs: Any, targets: Array) -> bool:
    """Whether targets are real numbers with a single 1 along the last axis, and 0 elsewhere."""
    if are_labels(targets) or targets.shape != outputs.shape or not _has_classes(outputs.shape):
        return False
    if not is_concrete(targets):
        return False
    values = np.asarray(targets)
    return bool(np.all((values == 0) | (values == 1)) and np.all(np.sum(values, axis=-1) == 1))


def _has_classes(shape: tuple[int, ...]) -> bool:
    return len(shape) > 1 and shape[-1] > 1


def _fits(shape: tuple[int, ...], targets: Array) -> bool:
    if are_labels(targets):
        return _has_classes(shape) and targets.shape == shape[:-1]
    return targets.shape == shape and bool(jnp.issubdtype(targets.dtype, jnp.floating))


def _expected(shape: tuple[int, ...]) -> str:
    numbers = f"real numbers of shape {shape}, as the outputs have"
    return f"class numbers of shape {shape[:-1]} or {numbers}" if _has_classes(shape) else numbers


def _remedy(shape: tuple[int, ...], targets: Array) -> str:
    """One sentence: the remedy of a frequent mistake, or else the rule."""
    row, column, deeper = shape[:-1], (*shape[:-1], 1), (*shape, 1)
    numbers, classes = "for numbers pass targets.astype(float)", "for two classes return jnp."
    if targets.dtype == bool:
        return "pass targets.astype(int) for classes, targets.astype(float) for numbers"
    if are_labels(targets) and _has_classes(shape):
        mends = {
            column: "pass targets[..., 0]",
            shape: "for one-hot classes pass targets.argmax(-1), for numbers targets.astype(float)",
        }
    elif are_labels(targets):
        mends = {
            row: f"{numbers}[..., None]; {classes}concatenate([0 * z, z], -1) of the logit z",
            shape: f"{numbers}; {classes}stack([0 * z, z], -1) of the logit z",
        }
    elif _has_classes(shape):
        mends = {
            row: "for classes pass targets.astype(int)",
            column: "for classes pass targets[..., 0].astype(int)",
        }
    else:
        mends = {row: "pass targets[..., None]"}
    mends.setdefault(deeper, "pass targets[..., 0]")
    return mends.get(targets.shape, f"pass the targets of these {shape[0]} inputs in such a shape")


def _check_classes(name: str, labels: ArrayLike, number: int) -> None:
    """Refuse classes that the outputs do not have; traced labels pass.

    Raises:
      ValueError: if a label is below 0, or not below the number of classes.
    """
    if not is_concrete(labels):
        return
    values = np.asarray(labels)
    low, high = values.min(), values.max()
    if low < 0 or high >= number:
        remedy = "number the classes from 0, as the outputs do"
        expected = f"classes from 0 to {number - 1}"
        raise ValueError(complaint(name, expected, f"{low} to {high}", remedy))


def _check_finite(targets: Array) -> None:
    if not is_concrete(targets):
        return
    bad = np.sum(~np.isfinite(np.asarray(targets)))
    if bad:
        got = f"{bad} NaN or infinite of {targets.size}"
        raise ValueError(complaint("targets", "numbers", got, "leave out what was not measured"))


def _check_likelihood(likelihood: Likelihood, outputs: Any, targets: Array) -> int:
    """Refuse values without an axis of examples, and more values than outputs: a broadcast."""
    values = jax.eval_shape(likelihood, outputs, targets)
    size = math.prod(values.shape)
    if values.shape[:1] != outputs.shape[:1] or size > math.prod(outputs.shape):
        got = f"shape {values.shape} from outputs {outputs.shape} and targets {targets.shape}"
        expected = f"one value for each observation, a leading axis {outputs.shape[:1]}"
        remedy = "give the targets the shape that it expects: most often that of the outputs"
        raise ValueError(complaint("likelihood", expected, got, remedy))
    return size
