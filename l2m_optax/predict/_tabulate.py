"""A table of the leaves of a network: how `output_variance` treats each, for people to read."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax

from l2m_optax._support.checks import check_batched, path_name
from l2m_optax._support.types import ApplyFn, PyTree
from l2m_optax.posterior._posterior import Posterior, free_mean
from l2m_optax.predict._jacobian import any_reach, explained, jacobian_of
from l2m_optax.predict._outputs import check_call


class Row(NamedTuple):
    """One leaf in the table.

    Attributes:
      shape: of the leaf.
      how: that its squared gradient factorises, or that its gradient is formed, and why. ``once
        for all outputs``: they come from it by moves and additions alone, as of the last layer.
      entries: numbers that exist for each example and output, or for each example where they are
        computed once for all outputs: the leaf's own size if its gradient is formed.
    """

    shape: tuple[int, ...]
    how: str
    entries: int


class VarianceTable(NamedTuple):
    """What `tabulate` returns; `str` of it is the table.

    Attributes:
      rows: a `Row` by path, for the free leaves.
    """

    rows: dict[str, Row]

    def __str__(self) -> str:
        """The table, with what a Jacobian would take."""
        lines = [("leaf", "shape", "entries", "how")]
        lines += [(path, str(s.shape), f"{s.entries:,}", s.how) for path, s in self.rows.items()]
        total = sum(row.entries for row in self.rows.values())
        jacobian = sum(math.prod(row.shape) for row in self.rows.values())
        lines.append(("total", "", f"{total:,}", f"of a Jacobian's {jacobian:,}"))
        path, shape, entries, _ = (max(map(len, column)) for column in zip(*lines, strict=True))
        return "\n".join(f"{p:{path}}  {s:{shape}}  {e:>{entries}}  {h}" for p, s, e, h in lines)


def tabulate(apply_fn: ApplyFn, posterior: Posterior, inputs: PyTree) -> VarianceTable:
    """Creates a summary of a network's leaves as a table.

    A row for each free leaf: its path, its shape, how `output_variance` computes its part of the
    variance, and how many numbers that takes for each example and output. Like `tabulate` of flax,
    it traces the network with abstract arrays, for one example: nothing is computed.

    Args:
      apply_fn: ``apply_fn(params, inputs) -> outputs``; hashable.
      posterior: a `Posterior`.
      inputs: a tree of arrays, or of `jax.ShapeDtypeStruct`, with a leading axis of examples.

    Returns:
      A `VarianceTable`: print it.

    Raises:
      ValueError: as `output_variance`.
      TypeError: as `output_variance`.

    Example:
      >>> import jax.numpy as jnp
      >>> import l2m_optax as l2m
      >>> params = {"w": jnp.zeros((3, 2)), "b": jnp.zeros(2)}
      >>> moment = l2m.SecondMoment(nu={"w": jnp.ones((3, 2)), "b": jnp.ones(2)})
      >>> posterior = l2m.laplace(params, moment, num_data=2, batch_size=1)
      >>> print(l2m.predict.tabulate(lambda p, x: x @ p["w"] + p["b"], posterior, jnp.ones((1, 3))))
      leaf   shape   entries  how
      ['b']  (2,)          2  moved, once for all outputs
      ['w']  (3, 2)        2  factorised in dot_general, once for all outputs
      total                4  of a Jacobian's 8
    """
    check_call(apply_fn, posterior)
    check_batched(inputs)
    with explained():
        uses = jacobian_of(apply_fn, posterior, inputs, any_reach).uses
    leaves = jax.tree_util.tree_leaves_with_path(free_mean(posterior))
    return VarianceTable(
        {
            path_name(path, ""): Row(leaf.shape, use.how, use.size)
            for (path, leaf), use in zip(leaves, uses, strict=True)
        }
    )
