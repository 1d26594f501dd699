"""A training whose weight decay the evidence found: four numbers over its steps."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray

from l2m_optax._support.types import PyTree
from l2m_optax.metrics._arguments import require
from l2m_optax.plot._arguments import finite
from l2m_optax.plot._figure import BLUE, CYCLE, four_axes
from l2m_optax.transforms import EvidenceRecord, EvidenceWeightDecayState

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def training(history: PyTree, *, axes: Sequence[Axes] | None = None) -> tuple[Axes, ...]:
    """Loss, log evidence, effective parameters γ and prior precisions δ, over the steps.

    γ and δ have a line for each group of leaves that share a δ. What a search finds is drawn from
    the first search on.

    Args:
      history: what `evidence_weight_decay` had in its state from step to step: a list of states of
        the optimizer, or of ``opt_state[0].record()``, which holds the numbers alone and is small;
        or what `jax.lax.scan` stacks of these.
      axes: where to draw, four of them, such as ``plt.subplots(2, 2)[1]``; a new figure by default.

    Returns:
      The four axes.

    Raises:
      ImportError: if a figure is wanted and Matplotlib is missing.
      ValueError: if there is no such state in the history, its steps do not increase, it is of more
        than one training, or holds NaN or infinity.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> import l2m_optax as l2m
      >>> tx = optax.chain(l2m.evidence_weight_decay(num_data=100, batch_size=10), optax.sgd(0.1))
      >>> params = {"w": jnp.ones(2)}
      >>> state, history = tx.init(params), []
      >>> for loss in (0.7, 0.5):
      ...     _, state = tx.update({"w": jnp.ones(2)}, state, params, value=loss)
      ...     history.append(state[0].record())
      >>> axes = l2m.plot.training(history)
      >>> [ax.get_ylabel() for ax in axes][:2]
      ['loss, running mean', 'log evidence (nats)']
    """
    record = _stacked(history)
    steps, loss = _over_steps(record, "step"), _over_steps(record, "loss")
    evidence, groups = _over_steps(record, "log_evidence"), _groups(record)
    rises = all(a < b for a, b in pairwise(steps))
    remedy = "pass one state a step, of one training"
    require(rises, "history", "steps that increase", f"{len(steps)} that do not", remedy)
    found = np.sum([group.gamma for group in groups], axis=0) > 0  # a search was made
    drawn = four_axes(axes)
    marker = "o" if len(steps) == 1 else None
    drawn[0].plot(steps, loss, color=BLUE, marker=marker)
    drawn[1].plot(steps, np.where(found, evidence, np.nan), color=BLUE, marker=marker)
    for group, color in zip(groups, cycle(CYCLE), strict=False):
        gamma = np.where(found, group.gamma, np.nan)
        drawn[2].plot(steps, gamma, color=color, marker=marker, label=group.name)
        drawn[3].plot(steps, group.delta, color=color, marker=marker, label=group.name)
    labels = ("loss, running mean", "log evidence (nats)", "effective parameters γ", "prior δ")
    for ax, label in zip(drawn, labels, strict=True):
        ax.set(xlabel="step", ylabel=label)
    for ax in drawn[2:]:
        ax.legend(frameon=False, fontsize="small")
    drawn[0].set_yscale("log" if loss.min() > 0 else "linear")
    drawn[3].set_yscale("log")
    return drawn


class _Group(NamedTuple):
    """Leaves that share a prior precision: their name, and their γ and δ over the steps."""

    name: str
    gamma: NDArray[np.float64]
    delta: NDArray[np.float64]


def _stacked(history: PyTree) -> EvidenceRecord:
    """All records in a history as one, whose numbers are vectors over steps."""
    nodes = [node for node in jax.tree.leaves(history, is_leaf=_is_record) if _is_record(node)]
    remedy = "append opt_state, or opt_state[0].record(), after each step"
    got = f"none in a {type(history).__name__}"
    require(nodes, "history", "states of evidence_weight_decay", got, remedy)
    records = [n.record() if isinstance(n, EvidenceWeightDecayState) else n for n in nodes]
    alike = len({jax.tree.structure(record) for record in records}) == 1
    remedy = "pass the states of one training"
    require(alike, "history", "states of the same parameters", "others", remedy)
    return jax.tree.map(
        lambda *x: np.concatenate([np.atleast_1d(finite("history", each)) for each in x]), *records
    )


def _is_record(node: Any) -> bool:
    return isinstance(node, EvidenceWeightDecayState | EvidenceRecord)


def _over_steps(record: EvidenceRecord, field: str) -> NDArray[np.float64]:
    values: NDArray[np.float64] = getattr(record, field)
    remedy = "pass the history of one member of an ensemble"
    require(values.ndim == 1, f"history.{field}", "a number a step", values.shape, remedy)
    return values


def _groups(record: EvidenceRecord) -> list[_Group]:
    """The leaves whose δ were equal at each step, which those of a group always are."""
    leaves = jax.tree_util.tree_leaves_with_path(record.prior_precision)
    gammas = jax.tree.leaves(record.effective_parameters)
    members: dict[bytes, list[int]] = {}
    for i, (_, delta) in enumerate(leaves):
        members.setdefault(delta.tobytes(), []).append(i)
    paths = [path for path, _ in leaves]
    return [
        _Group(_name(paths, own), np.sum([gammas[i] for i in own], axis=0), leaves[own[0]][1])
        for own in members.values()
    ]


def _name(paths: list[Any], own: list[int]) -> str:
    """The module that holds these leaves and no other, or the leaves' own names."""
    if len(own) == len(paths):
        return "all"
    modules = {_dotted(paths[i][:-1]) for i in own}
    alone = "" not in modules and modules.isdisjoint(
        _dotted(p[:-1]) for i, p in enumerate(paths) if i not in own
    )
    name = ", ".join(sorted(modules if alone else (_dotted(paths[i]) for i in own)))
    return name if len(name) <= 40 else f"{name[:37]}..."


def _dotted(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")
