"""Checks of bad input: every error says path, expected, got and remedy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from l2m_optax._support.types import Array, PyTree


def complaint(where: str, expected: str, got: str, remedy: str) -> str:
    """The one shape of every message: path, expected, got, remedy."""
    return f"{where}: expected {expected}, got {got}; {remedy}"


def is_concrete(x: Any) -> bool:
    """Whether the value of `x` can be looked at (it is neither traced nor abstract)."""
    return not isinstance(x, jax.core.Tracer | jax.ShapeDtypeStruct)


def path_name(path: Sequence[Any], root: str = "params") -> str:
    """The path of a leaf as a user would write it: ``params['Dense_0']['kernel']``."""
    return root + jax.tree_util.keystr(tuple(path))


def or_nan(value: Any, sound: Callable[[Any], Any]) -> Any:
    """`value`, with NaN wherever it is traced and not `sound`: what is traced cannot raise.

    What is concrete was checked before, and stays as it is.
    """
    return value if is_concrete(value) else jnp.where(sound(value), value, jnp.nan)


def is_positive(x: Any) -> Any:
    """Where numbers are positive and finite."""
    return (x > 0) & (x < math.inf)


def is_not_negative(x: Any) -> Any:
    """Where numbers are 0 or more, and finite."""
    return (x >= 0) & (x < math.inf)


def check_positive(name: str, value: Any, remedy: str) -> None:
    """Refuse numbers that are not positive and finite; traced values pass.

    Raises:
      ValueError: if any entry is zero, negative, infinite or NaN.
    """
    _check_numbers(name, value, is_positive, "a positive finite number", remedy)


def check_not_negative(name: str, value: Any, remedy: str) -> None:
    """Refuse numbers that are negative, infinite or NaN; traced values pass.

    Raises:
      ValueError: if any entry is one of these.
    """
    _check_numbers(name, value, is_not_negative, "a finite number of at least 0", remedy)


def check_one_number(name: str, value: Any, remedy: str) -> None:
    """Refuse arrays with axes, which would be broadcast in silence; traced ones, too.

    Raises:
      ValueError: if the shape of `value` is not ().
    """
    if np.shape(value):
        raise ValueError(complaint(name, "one number", f"shape {np.shape(value)}", remedy))


def _check_numbers(
    name: str, value: Any, sound: Callable[[Any], Any], expected: str, remedy: str
) -> None:
    for leaf in filter(is_concrete, jax.tree.leaves(value)):
        numbers = np.asarray(leaf, dtype=np.float64)
        wrong = numbers[~sound(numbers)]
        if wrong.size:
            raise ValueError(complaint(name, expected, few(wrong), remedy))


def check_count(name: str, value: Any, minimum: int = 1) -> None:
    """Refuse anything but a whole number of at least `minimum`.

    Raises:
      TypeError: if `value` is no integer.
      ValueError: if it is below `minimum`.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(complaint(name, "an integer", repr(value), f"pass int({name})"))
    if value < minimum:
        remedy = f"pass {minimum} or more"
        raise ValueError(complaint(name, f"at least {minimum}", str(value), remedy))


def check_floating(
    tree: PyTree,
    root: str = "params",
    remedy: str = "keep such leaves out of the params (close over them in apply_fn)",
) -> None:
    """Refuse leaves that are no real floating-point arrays.

    Raises:
      TypeError: naming the first integer, boolean or complex leaf.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                complaint(path_name(path, root), "a real floating-point array", str(dtype), remedy)
            )


def check_batched(tree: PyTree, root: str = "inputs") -> None:
    """Refuse trees whose arrays have no common leading axis of examples.

    Raises:
      ValueError: if leading axes are missing, empty or different.
    """
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(tree)}
    if len(sizes) != 1 or sizes <= {(), (0,)}:
        got = f"leading axes {few(sorted(sizes))}"
        remedy = "give a single example a batch axis: x[None]"
        raise ValueError(complaint(root, "a common leading axis of examples", got, remedy))


def check_hashable(name: str, function: Any) -> None:
    """Refuse functions that cannot be static arguments of `jit`.

    Raises:
      TypeError: if `function` is not hashable.
    """
    try:
        hash(function)
    except TypeError as error:
        got = f"an unhashable {type(function).__name__}"
        remedy = f"wrap it: def {name}(params, x): return model.apply(params, x)"
        raise TypeError(complaint(name, "a hashable function", got, remedy)) from error


def check_alive(tree: PyTree, root: str) -> None:
    """Refuse arrays whose buffers were donated.

    Raises:
      ValueError: naming the first deleted array.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if isinstance(leaf, jax.Array) and is_concrete(leaf) and leaf.is_deleted():
            remedy = "read the state before it is donated, or use the one the step returned"
            raise ValueError(
                complaint(path_name(path, root), "a live array", "a donated buffer", remedy)
            )


class _Census(NamedTuple):
    """What is wrong in one array, as counts."""

    non_finite: Array
    negative: Array
    positive: Array


@jax.jit
def _count(x: Array) -> _Census:
    return _Census(jnp.sum(~jnp.isfinite(x)), jnp.sum(x < 0), jnp.sum(x > 0))


def _census(tree: PyTree, root: str) -> list[tuple[str, int, _Census]]:
    """The path, the size and the census of each array; nothing if one is traced.

    One program serves all arrays of a shape. Arrays that a function under `jit` closes over are not
    traced; they are counted during tracing.
    """
    paths_and_leaves = jax.tree_util.tree_leaves_with_path(tree)
    if not all(is_concrete(leaf) for _, leaf in paths_and_leaves):
        return []
    with jax.ensure_compile_time_eval():
        counts = jax.device_get([_count(jnp.asarray(leaf)) for _, leaf in paths_and_leaves])
    return [
        (path_name(path, root), math.prod(jnp.shape(leaf)), census)
        for (path, leaf), census in zip(paths_and_leaves, counts, strict=True)
    ]


def check_finite(tree: PyTree, root: str, remedy: str) -> None:
    """Refuse NaN and infinity; traced arrays pass.

    Raises:
      FloatingPointError: naming the first array that holds one.
    """
    for where, size, census in _census(tree, root):
        _check_census_finite(where, size, census, remedy)


def _check_census_finite(where: str, size: int, census: _Census, remedy: str) -> None:
    if census.non_finite:
        got = f"{census.non_finite} NaN or infinite of {size}"
        raise FloatingPointError(complaint(where, "finite values", got, remedy))


def check_second_moment(nu: PyTree, root: str = "nu") -> None:
    """Refuse arrays that are no mean of squares; traced arrays pass.

    Raises:
      TypeError: if an array is not of real floating-point numbers.
      FloatingPointError: if an entry is NaN or infinite.
      ValueError: if an entry is negative, or if every entry is zero.
    """
    track = "chain l2m_optax.track_second_moment in front"
    check_floating(nu, root, f"this array is no second moment; {track}")
    check_alive(nu, root)
    found = _census(nu, root)
    for where, size, census in found:
        diverged = "training diverged: take the state of an earlier step"
        _check_census_finite(where, size, census, diverged)
        if census.negative:
            expected, got = "a mean of squares, so nothing below 0", f"{census.negative} negative"
            remedy = f"this array is no second moment; {track}"
            raise ValueError(complaint(where, expected, f"{got} of {size}", remedy))
    if found and not any(census.positive for _, _, census in found):
        remedy = "no gradient was ever squared, or it underflowed: keep the moment in float32 with "
        remedy += "l2m_optax.track_second_moment"
        raise ValueError(complaint(root, "some positive entries", "zeros everywhere", remedy))


def few(values: Iterable[Any], most: int = 3) -> str:
    """The first values and the number of the others: ``1, 2, 3 and 97 more``."""
    items = list(values)
    shown = [f"{x:.4g}" if isinstance(x, float | np.floating) else str(x) for x in items[:most]]
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return (", ".join(shown) or "none") + more
