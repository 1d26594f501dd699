"""A posterior straight out of a training checkpoint, of which only what is needed is read."""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optax

from l2m_optax._support.checks import complaint
from l2m_optax._support.types import PyTree
from l2m_optax.checkpoint._item import find_item
from l2m_optax.checkpoint._record import everywhere
from l2m_optax.checkpoint._saved_tree import SavedTree
from l2m_optax.moments._moment import SecondMoment, bias_weight
from l2m_optax.moments._prior import declared_prior
from l2m_optax.moments._second_moment import check_decay, second_moment
from l2m_optax.posterior._laplace import laplace
from l2m_optax.posterior._posterior import Posterior


def from_training_state(
    path: str | os.PathLike[str],
    *,
    like: PyTree,
    num_data: int,
    batch_size: int | Sequence[int],
    tx: optax.GradientTransformation | None = None,
    decay: float | None = None,
    count: int | None = None,
    step: int | None = None,
    params: str = "params",
    **arguments: Any,
) -> Posterior:
    """The posterior that a training checkpoint of orbax already holds.

    The directory is one that orbax wrote: a pytree with parameters and an optimizer state, such as
    flax's ``TrainState``, the `nnx.state` of a model and its ``nnx.Optimizer``, or the root of a
    ``CheckpointManager``. Leaves are read one by one, in the shardings of `like`.

    With ``tx=``, the optimizer state is read in the structure that ``tx.init`` gives it, and
    `second_moment` says what it holds. This is the safe way.

    Without it, only the parameters and the second moment are read. A checkpoint does not keep the
    names of classes, so the second moment is found by the names beside it (``count, mu, nu``).
    As in `second_moment`, names do not say all. By `decay` you vouch that the state is a running
    mean of squared gradients (of adam, adamw, nadam, radam, lamb or rmsprop, and not of adamax,
    yogi or adopt), without gradient accumulation, or with ``batch_size`` counting all examples
    that one update saw.

    The posterior holds no batch statistics (``batch_stats`` of flax's ``BatchNorm``). Where they
    stand in the same checkpoint, read them with orbax and put them into your ``apply_fn`` (under a
    ``CheckpointManager``, `path` is that of the step's item, ``run/12/default``)::

        batch_stats = ocp.StandardCheckpointer().restore(path)["batch_stats"]
        apply_fn = lambda p, x: model.apply({"params": p, "batch_stats": batch_stats}, x)

    Args:
      path: the checkpoint.
      like: the parameters, or what `jax.eval_shape` says of them, with or without shardings.
      num_data: as in `laplace`.
      batch_size: as in `laplace`.
      tx: the optimizer that made the state.
      decay: decay of the squares, Adam's `b2`; not needed with `tx`.
      count: number of updates, where the state does not hold it (plain rmsprop).
      step: which step of a ``CheckpointManager``; the last by default.
      params: key of the parameters at the top of the tree; ``"model"``, say.
      **arguments: what `laplace` takes besides.

    Returns:
      The `Posterior`.

    Raises:
      ModuleNotFoundError: if orbax is not installed (the extra ``checkpoint``).
      FileNotFoundError: if there is nothing at `path`.
      TypeError: if a keyword is unknown, or if `second_moment` cannot read the state of `tx`.
      ValueError: if there is no checkpoint, no such step, neither `tx` nor `decay`, no or more than
        one second moment, or a leaf is missing or of another shape; and as `laplace`.

    Example:
      >>> import tempfile, jax.numpy as jnp, optax
      >>> import orbax.checkpoint as ocp
      >>> import l2m_optax as l2m
      >>> params, tx = {"w": jnp.ones(3)}, optax.adam(1e-3)
      >>> _, opt_state = tx.update({"w": jnp.arange(3.0)}, tx.init(params))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     with ocp.StandardCheckpointer() as checkpointer:
      ...         checkpointer.save(f"{folder}/1", {"params": params, "opt_state": opt_state})
      ...     posterior = l2m.checkpoint.from_training_state(
      ...         f"{folder}/1", like=params, tx=tx, num_data=100, batch_size=10
      ...     )
      >>> print(l2m.moments.debiased(posterior.second_moment)["w"].round(3))
      [0. 1. 4.]
    """
    _check_arguments(tx, decay, arguments)
    saved = SavedTree(
        find_item(Path(path).absolute(), str(path), step), str(path), everywhere(like)
    )
    mean = saved.read((params,), like)
    if tx is None:
        held: PyTree = _vouched(saved, like, decay, count)
    else:
        state = saved.optimizer_state(tx, like)
        moment = second_moment(state, mean, tx=tx, decay=decay, count=count)
        held = moment, declared_prior(state)
    return laplace(mean, held, num_data=num_data, batch_size=batch_size, **arguments)


def _check_arguments(tx: Any, decay: float | None, arguments: dict[str, Any]) -> None:
    known = [name for name in inspect.signature(laplace).parameters if name != "opt_state"]
    unknown = [name for name in arguments if name not in known]
    if unknown:
        remedy = f"see its documentation; laplace takes {', '.join(known[3:])}"
        where = "from_training_state()"
        raise TypeError(complaint(where, "keywords that it knows", unknown[0], remedy))
    if tx is None and decay is None:
        remedy = "pass tx=, the optimizer, or decay=, Adam's b2"
        raise ValueError(complaint("from_training_state()", "tx= or decay=", "neither", remedy))
    check_decay("decay", decay)


def _vouched(saved: SavedTree, like: PyTree, decay: Any, count: int | None) -> SecondMoment:
    """The second moment that is found by the names beside it.

    Raises:
      ValueError: if the number of updates is unknown.
    """
    at = saved.second_moment()
    nu = saved.read((*at, "nu"), like)
    updates: Any = saved.number((*at, "count")) if count is None else count
    if updates is None:
        remedy = "pass count=, the number of updates"
        raise ValueError(complaint(saved.name, "a count of updates", "none", remedy))
    return SecondMoment(nu=nu, weight=bias_weight(decay, updates), count=updates, decay=decay)
