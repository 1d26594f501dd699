"""States that declare the prior with which the parameters were trained."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax

from l2m_optax._support.checks import complaint, path_name
from l2m_optax._support.types import ArrayLike, PyTree


class Prior(NamedTuple):
    """The prior of a training, and the noise that was found with it.

    Attributes:
      precision: δ, a tree of numbers like the parameters; `None` where it is not known.
      mean: θ0, like the parameters; `None` for zero.
      noise_variance: s² of Gaussian observations; `None` where it was not fitted.
    """

    precision: PyTree | None = None
    mean: PyTree | None = None
    noise_variance: ArrayLike | None = None


@runtime_checkable
class HoldsPrior(Protocol):
    """A state that declares the prior with which the parameters were trained."""

    def read_prior(self) -> Prior:
        """The prior that this state holds."""
        ...


def declared_prior(opt_state: PyTree) -> Prior | None:
    """The prior that a state inside `opt_state` declares, or `None`.

    Raises:
      TypeError: if more than one state declares one.
    """
    nodes = filter(_declares_prior, jax.tree.leaves(opt_state, is_leaf=_declares_prior))
    declared = [node if isinstance(node, Prior) else node.read_prior() for node in nodes]
    if len(declared) > 1:
        remedy = "pass second_moment(opt_state, params), and prior_precision="
        raise TypeError(complaint("opt_state", "one prior", str(len(declared)), remedy))
    return declared[0] if declared else None


def _declares_prior(node: Any) -> bool:
    return isinstance(node, Prior | HoldsPrior)


def align_precision(precision: PyTree, params: PyTree) -> PyTree:
    """A declared prior precision in the structure of `params`, matched by path.

    Raises:
      ValueError: if one of the parameters has none.
    """
    held = {path_name(p, ""): leaf for p, leaf in jax.tree_util.tree_leaves_with_path(precision)}

    def find(path: Any, _: Any) -> Any:
        name = path_name(path, "")
        if name not in held:
            remedy = "pass prior_precision=: the optimizer's is for a part of the parameters only"
            got = f"no such leaf ({len(held)} others)"
            raise ValueError(complaint(f"prior_precision{name}", "a value", got, remedy))
        return held[name]

    return jax.tree_util.tree_map_with_path(find, params)
