"""The prior precision that the data ask for: the evidence's maximum, without a pass over data."""

from __future__ import annotations

import reprlib
from collections.abc import Callable

import jax.numpy as jnp

from l2m_optax._support.checks import is_concrete
from l2m_optax._support.groups import Groups
from l2m_optax._support.types import Array, PyTree
from l2m_optax.posterior._posterior import Posterior
from l2m_optax.tuning._bracket import maximize_evidence
from l2m_optax.tuning._fit import Fit, FitInfo, warn_if
from l2m_optax.tuning._groups import grouped, with_prior


def fit_prior_precision(
    posterior: Posterior,
    *,
    groups: PyTree | Callable[[PyTree], PyTree] | None = None,
) -> Fit:
    r"""The prior precision that maximises the evidence; needs no data.

    The maximum satisfies $\delta = \gamma / \lVert\theta^* - \theta_0\rVert^2$ with
    $\gamma = \sum F / (F + \delta)$, in each group on its own.

    Args:
      posterior: a `Posterior`; its prior precision is where the search starts.
      groups: `None` for one value, or a prefix tree of labels as in `optax.partition` (or a
        function from the parameters to one): leaves with the same label share a value. For a value
        of each top-level module pass ``{name: name for name in params}``, for one of each leaf
        ``jax.tree_util.tree_map_with_path(lambda path, _: jax.tree_util.keystr(path), params)``.

    Returns:
      A `Fit`. Where the evidence has no maximum (θ* = θ0, or F = 0 throughout a group),
      ``info.edge`` is true, the prior precision is left as it was (at the geometric mean where the
      leaves of a group had several), and outside of `jit` a `UserWarning` says so.

    Raises:
      ValueError: if `groups` is no prefix of the parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> import l2m_optax as l2m
      >>> moment = l2m.SecondMoment(nu=jnp.ones(4))
      >>> posterior = l2m.laplace(2.0 * jnp.ones(4), moment, num_data=10_000, batch_size=1)
      >>> posterior, info = l2m.fit_prior_precision(posterior)
      >>> print(f"{info.value:.3f}", info.converged, info.edge)
      0.250 True False

    Reference:
      MacKay, A practical Bayesian framework for backpropagation networks (1992).
    """
    grouping = grouped(posterior, groups)
    search = maximize_evidence(posterior, grouping.of_leaf)
    info = FitInfo(
        grouping.by_name(search.value),
        search.iterations,
        grouping.by_name(search.converged),
        grouping.by_name(search.edge),
    )
    warn_if(
        jnp.any(search.edge),
        "prior_precision" + _groups_at_an_edge(grouping, search.edge),
        "a maximum of the evidence",
        "none, and leaves it as it was",
        "look whether these parameters were trained: they are at the prior mean, or F is 0",
    )
    return Fit(with_prior(posterior, grouping, search.value), info)


def _groups_at_an_edge(grouping: Groups, edge: Array) -> str:
    """The first names of the groups at an edge, for the warning; nothing if they have no names."""
    if grouping.names is None or not is_concrete(edge):
        return ""
    return (
        f" of {reprlib.repr([name for name, at in zip(grouping.names, edge, strict=True) if at])}"
    )
