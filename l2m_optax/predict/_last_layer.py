"""Which leaves are the last layer: those in which a network's outputs are linear, found by trying.

A leaf is moved by random steps, as large as its entries and at least 1, and again 30 times as far.
Outputs that are affine in it, and in the leaves found before, add up exactly. Nearly every other
function fails by as much as it moves.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from l2m_optax._support.checks import check_hashable, complaint, is_concrete
from l2m_optax._support.types import ApplyFn, Array, PyTree
from l2m_optax.jacobians._program import Program, trace
from l2m_optax.jacobians._rules import rearranges
from l2m_optax.predict._outputs import check_outputs

_EXAMPLES = 8
"""How many inputs are looked at."""
_TOLERANCE = 0.1
"""What counts as rounding, relative to how far outputs move. That of bfloat16 reaches 0.05."""
_FAR = 30.0
"""How many times as large a second trial's steps are."""

Moved: TypeAlias = Callable[[np.ndarray], np.ndarray]
"""The outputs with leaves moved: ``moved(c)`` by c[0, l] of a step and c[1, l] of another one."""


class Move(NamedTuple):
    """What one leaf does to the outputs.

    Attributes:
      leaf: its number.
      size: how far a step moves an output.
      affine: whether steps of this leaf alone add up.
    """

    leaf: int
    size: float
    affine: bool


def last_layer(apply_fn: ApplyFn, params: PyTree, inputs: PyTree) -> PyTree:
    r"""The leaves in which the outputs are linear, as a mask for `restrict`.

    A set S of leaves in which the outputs are jointly affine, whatever the other leaves are fixed
    at: for all steps $d, e$ within S and numbers a, b

    $$f(\theta + a\,d + b\,e) - f(\theta) = a\,[f(\theta + d) - f(\theta)]
      + b\,[f(\theta + e) - f(\theta)] .$$

    There a linearised network is the network itself. It is tried on a few inputs, with large random
    steps. Such a set is not unique: a product $W_2 W_1 x$ is linear in each factor, and not in
    both. Matrices come before vectors and those before scalars, so that a scale behind the last
    layer does not replace it; among equals those nearest to the output come first; and
    each is taken if the outputs are affine in it together with those that were taken before.

    A weight that is used twice, as a tied embedding, is not linear. An adapter $A B$ is linear in
    the factor next to the output. All leaves of a linear model are found. Leaves that do not move
    the outputs are left out.

    Args:
      apply_fn: ``apply_fn(params, inputs) -> outputs``, one array of real numbers; hashable.
      params: the trained parameters, with values: not under `jit`.
      inputs: what `apply_fn` takes, rows being examples, of which the first 8 are used.

    Returns:
      A tree of booleans like `params`.

    Raises:
      ValueError: if there is no such leaf, as in networks that end with a softmax or a tanh.
      TypeError: if `params` are traced, `apply_fn` is not hashable, or the outputs are not one
        array of real numbers.
      FloatingPointError: if the outputs hold NaN or infinity.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import l2m_optax as l2m
      >>> params = {"body": jnp.eye(3), "head": jnp.ones((3, 2)), "bias": jnp.zeros(2)}
      >>> f = lambda p, x: jnp.tanh(x @ p["body"]) @ p["head"] + p["bias"]
      >>> print(l2m.last_layer(f, params, jax.random.normal(jax.random.key(0), (8, 3))))
      {'bias': True, 'body': False, 'head': True}

    Reference:
      Kristiadi, Hein & Hennig, Being Bayesian, even just a bit, fixes overconfidence in ReLU
      networks (2020).
    """
    check_hashable("apply_fn", apply_fn)
    leaves, treedef = jax.tree.flatten(params)
    _check_values(leaves)
    few = jax.tree.map(lambda x: jnp.asarray(x)[:_EXAMPLES], inputs)
    check_outputs(jax.eval_shape(apply_fn, params, few))

    def moved(coefficients: np.ndarray) -> np.ndarray:
        steps = [_moved_leaf(i, leaf, coefficients[:, i]) for i, leaf in enumerate(leaves)]
        return np.asarray(_outputs(apply_fn, jax.tree.unflatten(treedef, steps), few), np.float64)

    chosen = _jointly_affine(moved, len(leaves), _in_order(apply_fn, treedef, leaves, few))
    if not chosen:
        remedy = "return the logits or means, before a softmax or tanh, or name leaves to restrict"
        raise ValueError(complaint("apply_fn", "outputs linear in some leaf", "none", remedy))
    return jax.tree.unflatten(treedef, [leaf in chosen for leaf in range(len(leaves))])


def _check_values(leaves: Sequence[Any]) -> None:
    if not all(map(is_concrete, leaves)):
        remedy = "call it outside of jit, and close over the mask"
        raise TypeError(complaint("params", "arrays with values", "traced ones", remedy))


def _jointly_affine(moved: Moved, number: int, order: Iterable[int]) -> set[int]:
    """The leaves, each taken if the outputs are affine in it and in those before it."""
    start = moved(np.zeros((2, number)))
    if not np.all(np.isfinite(start)):
        remedy = "look for NaN in the params and the inputs"
        got = f"{np.sum(~np.isfinite(start))} NaN or infinite of {start.size}"
        raise FloatingPointError(complaint("apply_fn(params, inputs)", "numbers", got, remedy))
    reach = max(float(np.max(np.abs(start))), 1e-30)
    taken = np.zeros((2, number))
    for leaf in order:
        move = _alone(moved, start, leaf, number)
        if move.affine:  # a clip or a soft cap shows only far away
            move = move._replace(affine=_alone(moved, start, leaf, number, _FAR).affine)
        step = np.zeros((2, number))
        step[0, leaf] = reach / move.size if move.affine else 0.0
        if move.affine and _adds_up(moved, start, taken, step, reach):
            taken = taken + step
    return set(np.flatnonzero(taken[0]).tolist())


def _alone(moved: Moved, start: np.ndarray, leaf: int, number: int, length: float = 1.0) -> Move:
    """Whether a leaf moves the outputs, and 2 of one step with -3 of another as these do."""
    one, two = np.zeros((2, 2, number))
    one[0, leaf], two[1, leaf] = length, length
    first, second = moved(one) - start, moved(two) - start
    both = moved(2.0 * one - 3.0 * two) - start
    size = float(max(np.max(np.abs(first)), np.max(np.abs(second))))
    left = np.max(np.abs(both - 2.0 * first + 3.0 * second))
    return Move(leaf, size, bool(size > 0 and left <= _TOLERANCE * size))


def _adds_up(
    moved: Moved, start: np.ndarray, taken: np.ndarray, step: np.ndarray, reach: float
) -> bool:
    """Whether a step moves the outputs as far, from wherever the leaves taken before are."""
    if not np.any(taken):
        return True
    before = moved(taken)
    left = np.max(np.abs(moved(taken + step) - before - moved(step) + start))
    return bool(left <= _TOLERANCE * max(reach, np.max(np.abs(before - start))))


@functools.partial(jax.jit, static_argnums=0)
def _outputs(apply_fn: ApplyFn, params: PyTree, inputs: PyTree) -> Array:
    with jax.default_matmul_precision("highest"):
        outputs = apply_fn(params, inputs)
    return outputs.astype(jnp.promote_types(outputs.dtype, jnp.float32))


def _moved_leaf(number: int, leaf: Array, coefficients: np.ndarray) -> Array:
    """The leaf moved by its two random steps, which NumPy draws: a program less for each shape."""
    if not np.any(coefficients):
        return leaf
    draws = np.random.default_rng(number)
    steps = [draws.standard_normal(jnp.shape(leaf), np.float32) for _ in range(2)]
    return _move(leaf, steps, coefficients)


@jax.jit
def _move(leaf: Array, steps: Sequence[Array], coefficients: Array) -> Array:
    dtype = jnp.promote_types(leaf.dtype, jnp.float32)
    wide = leaf.astype(dtype)
    scale = jnp.maximum(jnp.sqrt(jnp.mean(jnp.square(wide))), 1.0)
    a, b = coefficients.astype(dtype)
    return (wide + scale * (a * steps[0] + b * steps[1])).astype(leaf.dtype)


def _in_order(
    apply_fn: ApplyFn, treedef: Any, leaves: Sequence[Array], inputs: PyTree
) -> Sequence[int]:
    """The leaves by number of axes, up to 2, and then from the output; those unused left out."""

    def outputs_of(leaves: Sequence[Array], inputs: PyTree) -> Array:
        return apply_fn(jax.tree.unflatten(treedef, leaves), inputs)

    distances = _distances(trace(outputs_of, leaves, inputs), len(leaves))
    used = [
        leaf
        for leaf, distance in enumerate(distances)
        if distance is not None and jnp.issubdtype(jnp.result_type(leaves[leaf]), jnp.floating)
    ]
    return sorted(used, key=lambda i: (-min(jnp.ndim(leaves[i]), 2), distances[i], -i))


def _distances(program: Program, number: int) -> list[int | None]:
    """How many operations the longest way to the outputs has; `None` where there is no way."""
    far: dict[Any, int] = {v: 0 for v in program.jaxpr.outvars if not isinstance(v, Literal)}
    for equation in reversed(program.jaxpr.eqns):
        ways = [far[v] for v in equation.outvars if v in far]
        if ways:
            way = max(ways) + (0 if rearranges(equation) else 1)
            for v in equation.invars:
                if not isinstance(v, Literal):
                    far[v] = max(far.get(v, 0), way)
    return [far.get(v) for v in program.jaxpr.invars[:number]]
