"""A state and what `identify` found in, a `SecondMoment` out."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from l2m_optax._support.checks import complaint, is_concrete
from l2m_optax._support.trees import statistics_dtype, words
from l2m_optax._support.types import Array, ArrayLike, PyTree
from l2m_optax.moments._basis import Basis
from l2m_optax.moments._factored import rows_and_columns
from l2m_optax.moments._identification.verdict import Identification, LeafMoment
from l2m_optax.moments._moment import (
    NEGLIGIBLE,
    SecondMoment,
    bias_weight,
    check_updated,
    updated_weight,
)
from l2m_optax.moments._read_basis import with_basis

_ENTRY = re.compile(
    r"""\.(?P<field>\w+) | \[(?P<key> '(?:[^'\\]|\\.)*' | "(?:[^"\\]|\\.)*" | [^\]]* )\]""",
    re.VERBOSE,
)
"""One entry of a path as `jax.tree_util.keystr` writes it."""

_FLAT = re.compile(r"<flat index (?P<index>\d+)>")
"""The entry for a child of a node that gives its children no keys."""


class _Scale(NamedTuple):
    """What undoes the bias of one array: ``(nu - offset) / weight``."""

    weight: ArrayLike
    offset: ArrayLike
    count: ArrayLike | None  # type: ignore[assignment]  # hides tuple.count
    decay: ArrayLike | None


def read(
    found: Identification,
    opt_state: PyTree,
    *,
    decay: ArrayLike | None = None,
    mean_decay: ArrayLike | None = None,
    count: ArrayLike | None = None,
) -> SecondMoment:
    r"""The second moment that a state holds, from what was found by running its transformation.

    With $t$ updates, rescaling $r$, initial value $n_0$ and variance factor $v$, a mean that
    started from $n_0$ has the expectation $d^t n_0 + r^2 v (1 - d^t)\,\mathbb{E}[g^2]$; one whose
    weights sum to 1 has $r^2\,\mathbb{E}[g^2]$; a sum has $n_0 + r^2 t\,\mathbb{E}[g^2]$.

    Args:
      found: the `Identification` of the transformation.
      opt_state: a state that it made.
      decay: decay of the squares, if not the one that was found.
      mean_decay: decay of the gradients' mean, if not the one that was found.
      count: number of updates, for the parts of the state that do not count.

    Returns:
      The `SecondMoment`, in the structure of the parameters.

    Raises:
      TypeError: if the state is not one of that transformation.
      ValueError: if the state was never updated, or does not count and `count` is not given.
    """
    arrays = {words(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(opt_state)}
    parts = {_part(m): _scale(m, arrays, decay, count) for m in found.moments}
    scales = [None if m is None else parts[_part(m)] for m in found.leaves]
    alone = len(parts) == 1
    pairs = [_with_basis(i, found, arrays, scale) for i, scale in enumerate(scales)]
    nu, basis = zip(*pairs, strict=True)
    scales = [s and _after_reading(m, s) for m, s in zip(found.leaves, scales, strict=True)]
    one = next(scale for scale in scales if scale is not None)
    moment = SecondMoment(
        nu=_tree(found, nu),
        weight=one.weight if alone else _tree(found, [s and s.weight for s in scales]),
        count=one.count if alone else None,
        decay=one.decay if alone else None,
        offset=one.offset if alone else _tree(found, [s and s.offset for s in scales]),
        micro_steps=_micro_steps(found),
        basis=_tree(found, basis) if any(basis) else None,
    )
    return _with_mean(moment, found, arrays, mean_decay) if alone else moment


def _tree(found: Identification, leaves: Sequence[Any]) -> PyTree:
    return found.treedef.unflatten(leaves)


def _part(moment: LeafMoment) -> LeafMoment:
    """What the arrays of one part of the optimizer share."""
    kind = "unbiased" if moment.kind == "factored" else moment.kind
    return moment._replace(path="", mean=None, kind=kind, matrices=())


def _scale(
    moment: LeafMoment,
    arrays: dict[tuple[str, ...], Any],
    decay: ArrayLike | None,
    given: ArrayLike | None,
) -> _Scale:
    """The weight and the offset of the arrays of one part."""
    count = _count(moment, arrays, given)
    scale = moment.rescaling**2 * moment.variance_factor
    if moment.kind in ("unbiased", "factored"):
        return _Scale(updated_weight(scale, count), 0.0, count, moment.decay)
    if count is None:
        raise ValueError(
            complaint(
                "opt_state.count",
                "the number of updates",
                "a state that does not count (optax.rmsprop without bias_correction, adagrad)",
                "pass count=, or wrap the optimizer in l2m_optax.expose_second_moment",
            )
        )
    if moment.kind == "sum":
        total = scale * jnp.asarray(count, jnp.float32)
        return _Scale(updated_weight(total, count), moment.initial, count, None)
    decay = _injected_decay(moment, arrays) if decay is None else decay
    weight = bias_weight(decay, count)
    if moment.kind == "centered":
        _check_settled(moment, count)
    offset = moment.initial * (1.0 - weight) if moment.initial else 0.0
    weight = weight if scale == 1.0 else scale * weight
    return _Scale(updated_weight(weight, count), offset, count, decay)


def _after_reading(moment: LeafMoment | None, scale: _Scale) -> _Scale:
    """The scale of what was read: from products the offset has been taken away already."""
    return scale._replace(offset=0.0) if moment is not None and moment.products else scale


def _count(
    moment: LeafMoment, arrays: dict[tuple[str, ...], Any], given: ArrayLike | None
) -> ArrayLike | None:
    """The number of updates that the moment has seen: the state's, or else the caller's."""
    count = given
    if moment.count is not None:
        held = _held(moment.count, arrays)
        count = held if moment.first_count == 0 else held - moment.first_count
        if (moment.first, moment.every) != (1, 1):
            count = jnp.maximum(count - moment.first + moment.every, 0) // moment.every
    node = "" if moment.count is None else moment.count.rpartition(".")[0]
    check_updated(f"opt_state{node}", count)
    return count


def _held(path: str, arrays: dict[tuple[str, ...], Any]) -> Any:
    """What the state holds at `path`; its containers may have lost their types."""
    keys = words(_keys(path))
    if keys not in arrays:
        remedy = "pass the tx and the params of the training that made this state"
        got = f"no such array among {len(arrays)}"
        raise TypeError(complaint(f"opt_state{path}", "what tx keeps there", got, remedy))
    return arrays[keys]


def _keys(path: str) -> list[str]:
    """The keys in a path that is written out: ``[0].nu['w']`` has 0, nu and w."""
    return [match["field"] or _unquoted(match["key"]) for match in _ENTRY.finditer(path)]


def _unquoted(key: str) -> str:
    flat = _FLAT.fullmatch(key)
    if flat is not None:
        return flat["index"]
    return str(ast.literal_eval(key)) if key[:1] in ("'", '"') else key


def _injected_decay(moment: LeafMoment, arrays: dict[tuple[str, ...], Any]) -> Any:
    """The decay, as rounded in a state of `optax.inject_hyperparams`, which is what was used."""
    decay: Any = moment.decay
    if moment.injected is None or not isinstance(decay, float):
        return decay
    held = _held(moment.injected, arrays)
    if not is_concrete(held) or np.ndim(held):
        return decay
    value = float(np.asarray(held, np.float64))
    if abs(value - decay) > 1e-6:
        remedy = "keep it constant, in float32 (hyperparam_dtype=), or use track_second_moment"
        where, expected = f"opt_state{moment.injected}", f"the decay of tx, {decay:.9g}"
        raise ValueError(complaint(where, expected, f"{value:.9g}", remedy))
    return value


def _check_settled(moment: LeafMoment, count: ArrayLike) -> None:
    r"""A running mean that started from 0 leaves $b^s$ of the mean gradient in step $s$."""
    if not is_concrete(count) or moment.mean_decay is None:
        return
    t, d = np.asarray(count, np.float64), float(np.asarray(moment.decay))
    early = (1 - d) * d**t / (1 - moment.mean_decay**2) / -np.expm1(t * np.log(d))
    if np.any(early > NEGLIGIBLE):
        got = f"{count}, of which {np.max(early):.0%} show the mean gradient"
        remedy = "train longer, or pass tx of an optimizer that does not subtract a running mean"
        raise ValueError(complaint("opt_state.count", "enough updates", got, remedy))


def _with_basis(
    index: int,
    found: Identification,
    arrays: dict[tuple[str, ...], Any],
    scale: _Scale | None,
) -> tuple[Any, Basis | None]:
    """The array of one leaf, and the basis of its squares if it has one."""
    moment = found.leaves[index]
    if moment is None or scale is None or not moment.matrices:
        return _array(index, found, arrays), None
    matrices = [None if path is None else _held(path, arrays) for path in moment.matrices]
    squares = None if moment.products else _held(moment.path, arrays)
    return with_basis(moment, squares, matrices, scale.offset, found.shapes[index])


def _array(index: int, found: Identification, arrays: dict[tuple[str, ...], Any]) -> Any:
    """The array of one leaf: the state's own, unless it is a part or a product of others."""
    moment, shape = found.leaves[index], found.shapes[index]
    if moment is None:
        return None
    if moment.kind == "factored":
        row, column = (_held(path, arrays) for path in rows_and_columns(moment.path))
        return _product(row, column, shape)
    held = _held(moment.path, arrays)
    if not moment.whole:
        return held
    sizes = [int(np.prod(s)) for s in found.shapes]
    start = sum(sizes[:index])
    return jnp.reshape(held[start : start + sizes[index]], shape)


def _product(row: Array, column: Array, shape: tuple[int, ...]) -> Array:
    r"""The rank-1 estimate $R_i C_j / \mathrm{mean}(R)$ from means over columns and over rows.

    Both factors are exact means of $\nu_{ij}$; the product is $\nu$ where $\nu$ has rank 1, and has
    its row and column means everywhere (Shazeer & Stern, Adafactor, 2018).
    """
    second, longest = (int(axis) for axis in np.argsort(shape)[-2:])
    row, column = (jnp.asarray(x, statistics_dtype(x)) for x in (row, column))
    kept = second - (second > longest)
    mean = jnp.mean(row, axis=kept, keepdims=True)
    scaled = row / jnp.where(mean > 0, mean, 1.0)
    return jnp.expand_dims(scaled, longest) * jnp.expand_dims(column, second)


def _micro_steps(found: Identification) -> int:
    several = {moment.micro_steps for moment in found.moments}
    if len(several) > 1:
        remedy = "wrap the whole optimizer in optax.MultiSteps"
        raise TypeError(complaint("tx", "one number of micro-steps", str(several), remedy))
    return several.pop()


def _with_mean(
    moment: SecondMoment,
    found: Identification,
    arrays: dict[tuple[str, ...], Any],
    decay: ArrayLike | None,
) -> SecondMoment:
    """The moment with the running mean of the gradients beside it, where there is one."""
    first = found.moments[0]
    decay = first.mean_decay if decay is None else decay
    unusual = first.whole or first.kind != "mean" or first.rescaling != 1.0
    unusual = unusual or moment.basis is not None
    if first.mean is None or decay is None or moment.count is None or unusual:
        return moment
    mu = [None if m is None else _held(str(m.mean), arrays) for m in found.leaves]
    weight = bias_weight(decay, moment.count)
    return moment._replace(mu=_tree(found, mu), mu_weight=weight, mu_decay=decay)
