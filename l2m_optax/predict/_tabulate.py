"""How the exact variances of a network are computed, leaf by leaf, for people to read."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax

from l2m_optax._support.checks import check_batched, check_hashable, path_name
from l2m_optax._support.types import ApplyFn, PyTree
from l2m_optax.posterior._posterior import Posterior, free_mean
from l2m_optax.predict._jacobian import explained, jacobian_of


class Step(NamedTuple):
    """How one leaf is squared.

    Attributes:
      shape: of the leaf.
      how: factorised, or that its gradient is formed, and why.
      entries: numbers that exist for each example and output; the leaf's own size if its gradient
        is formed.
    """

    shape: tuple[int, ...]
    how: str
    entries: int


class VarianceTable(NamedTuple):
    """What `output_variance` does; `str` of it is a table.

    Attributes:
      steps: a `Step` by path, for the leaves that are no points.
    """

    steps: dict[str, Step]

    def __str__(self) -> str:
        """The table, with what a Jacobian would take."""
        rows = [("leaf", "shape", "entries", "how")]
        rows += [(path, str(s.shape), f"{s.entries:,}", s.how) for path, s in self.steps.items()]
        total = sum(step.entries for step in self.steps.values())
        jacobian = sum(math.prod(step.shape) for step in self.steps.values())
        rows.append(("total", "", f"{total:,}", f"of a Jacobian's {jacobian:,}"))
        path, shape, entries, _ = (max(map(len, column)) for column in zip(*rows, strict=True))
        return "\n".join(f"{p:{path}}  {s:{shape}}  {e:>{entries}}  {h}" for p, s, e, h in rows)


def tabulate(apply_fn: ApplyFn, posterior: Posterior, inputs: PyTree) -> VarianceTable:
    """How `output_variance` squares the Jacobian of each leaf, and what it holds in memory for it.

    Nothing is computed: the network is only traced, for one example.

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
      ['b']  (2,)          2  gradient, enters add
      ['w']  (3, 2)        2  factorised in dot_general
      total                4  of a Jacobian's 8
    """
    check_hashable("apply_fn", apply_fn)
    check_batched(inputs)
    with explained():
        uses = jacobian_of(apply_fn, posterior, inputs).uses
    leaves = jax.tree_util.tree_leaves_with_path(free_mean(posterior))
    return VarianceTable(
        {
            path_name(path, ""): Step(leaf.shape, use.how, use.size)
            for (path, leaf), use in zip(leaves, uses, strict=True)
        }
    )
