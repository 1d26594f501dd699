r"""The Jacobian of a leaf in the basis of its second moment, $W = L \hat W R^\top$.

In its basis a leaf has independent coordinates. Where it enters one product, $y = a W$, with d the
cotangent of y, $a L$ and $d R$ stand in the places of a and d: the network runs as it is, and only
what is squared is rotated, a once for all outputs. Of other leaves the gradient is rotated.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from l2m_optax._support.shardings import everywhere
from l2m_optax._support.types import Array
from l2m_optax.jacobians._program import JaxprEqn
from l2m_optax.jacobians._reach import Reach
from l2m_optax.jacobians._rules import Rule
from l2m_optax.jacobians._uses import FullGradient, SingleUse
from l2m_optax.moments._basis import Basis, diagonal, rotate_into
from l2m_optax.predict._basis_entry import Entry, entered_by, entry_of, patches_of, times


def use_in_basis(
    jaxpr: Any, leaf: Any, use: SingleUse | FullGradient, one: Basis | None
) -> SingleUse | FullGradient:
    """How the squared gradient of a leaf in its basis is computed.

    Args:
      jaxpr: of the network.
      leaf: its variable there.
      use: how it is computed of the leaf itself.
      one: the basis.
    """
    if one is None:
        return use
    rule = _rule_of_rows(jaxpr, leaf, use, one)
    entry = None if rule else entry_of(jaxpr, leaf, one)
    if entry is not None:
        rule = _rule(entry)
    if rule is not None:
        equation, position = entered_by(jaxpr, leaf)[0]
        return SingleUse((), equation, position, rule)
    why = "which its basis folds in another way" if isinstance(use, SingleUse) else use.why
    return FullGradient(why, leaf.aval.size, functools.partial(_turned, one))


def _turned(one: Basis, gradient: Array) -> Array:
    """A gradient in a basis. That of a vector is a row, as the outputs of products are."""
    left, right = one
    if right is None and left is not None and left.shape == (gradient.size, gradient.size):
        return times(gradient.reshape(1, -1), left).reshape(gradient.shape)
    return rotate_into(one, gradient)


def way_in_basis(jaxpr: Any, leaf: Any, way: Reach | None, one: Basis | None) -> Reach | None:
    """The way of a leaf in its basis to the outputs, from that of the leaf itself."""
    if way is None or one is None:
        return way
    if not way.product:
        return way._replace(entering=lambda v, _: diagonal(one, everywhere(v)), mixed=True)
    entry = entry_of(jaxpr, leaf, one)
    if entry is None:
        return None
    return way._replace(entering=entry.variances, mixed=entry.right is not None)


def _rule(entry: Entry) -> Rule:
    """How squared gradients of the coordinates factorise, or are formed of rotated rows."""
    sizes = len(entry.inner), len(entry.outer)
    if entry.rows == 1:
        return Rule(
            "factorised",
            _always,
            lambda _, a: entry.inputs(a),
            lambda _, d, rotated: entry.cotangents(d),
            lambda _, position, v, rotated: entry.multiply(jnp.square(rotated), entry.numbers(v)),
            lambda *_: sizes[1],
        )
    patches = entry.rows_of is patches_of
    return Rule(
        "gradient from patches" if patches else "gradient, shared by positions",
        _always,
        lambda _, a: entry.inputs(a),
        lambda _, d, rotated: entry.multiply(rotated.T, entry.cotangents(d)),
        lambda _, position, v, rotated: entry.numbers(v),
        lambda *_: math.prod(sizes),
    )


def _always(equation: JaxprEqn, position: int) -> bool:
    del equation, position
    return True


def _rule_of_rows(jaxpr: Any, leaf: Any, use: SingleUse | FullGradient, one: Basis) -> Rule | None:
    """That of a table of which whole rows are taken, and only the right side is rotated."""
    if not isinstance(use, SingleUse) or use.equation.primitive.name != "gather":
        return None
    if one.left is not None or one.right is None or one.right.ndim > 2:
        return None
    _, moved = entered_by(jaxpr, leaf)
    columns = one.right.shape[-1]
    if not np.array_equal(moved.ravel(), np.arange(moved.size)) or columns != moved[0].size:
        return None
    plain = use.rule

    def factor(equation: JaxprEqn, d: Array, indices: Array) -> Array:
        rows = plain.factor(equation, d, indices).reshape(-1, columns)
        return times(rows, one.right)

    def weights(equation: JaxprEqn, position: int, v: Array, indices: Array) -> Array:
        table = everywhere(v).reshape(moved.shape)
        return plain.weights(equation, position, table, indices).reshape(-1, columns)

    return plain._replace(factor=factor, weights=weights)
