"""States that declare the prior with which the parameters were trained."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax

from l2m_optax._support.checks import complaint, path_name
from l2m_optax._support.trees import subtrees
from l2m_optax._support.types import ArrayLike, PyTree


class Prior(NamedTuple):
    """The prior of a training, and the noise that was found with it.

    Attributes:
      precision: δ, a tree of numbers like the parameters; `None` where it is not known.
      mean: θ0, like the parameters; `None` for zero.
      noise_variance: s² of Gaussian observations; `None` where it was not fitted.
      data_scale: the factor from the second moment to F, at unit noise, with which they were found;
        `None` where it is not known.
    """

    precision: PyTree | None = None
    mean: PyTree | None = None
    noise_variance: ArrayLike | None = None
    data_scale: ArrayLike | None = None


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


def align_declared(tree: PyTree, params: PyTree, nu: PyTree, fixed: PyTree, root: str) -> PyTree:
    """What a state declares for each parameter, in the structure of `params`, matched by path.

    Args:
      tree: what it declares, of some of the parameters.
      params: the parameters.
      nu: the second moment, `None` at fixed leaves.
      fixed: like `params`: what holds for fixed leaves of which nothing is declared.
      root: the name of `tree` in messages.

    Raises:
      ValueError: if nothing is declared for a free leaf.
    """
    held = {path_name(p, ""): leaf for p, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    wanted = jax.tree_util.tree_leaves_with_path(params)
    found = []
    for (path, _), moment, default in zip(
        wanted, subtrees(nu, params), jax.tree.leaves(fixed), strict=True
    ):
        name = path_name(path, "")
        if name not in held and moment is not None:
            remedy = f"pass {root}=: the optimizer's is for a part of the parameters only"
            got = f"no such leaf ({len(held)} others)"
            raise ValueError(complaint(root + name, "a value", got, remedy))
        found.append(held.get(name, default))
    return jax.tree.unflatten(jax.tree.structure(params), found)
