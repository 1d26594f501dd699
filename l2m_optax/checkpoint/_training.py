"""A posterior straight out of a training checkpoint, of which only what is needed is read."""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from l2m_optax._support.checks import complaint
from l2m_optax._support.types import Array, PyTree
from l2m_optax.checkpoint._directory import orbax
from l2m_optax.checkpoint._record import everywhere
from l2m_optax.moments._moment import SecondMoment, bias_weight
from l2m_optax.moments._second_moment import check_decay, second_moment
from l2m_optax.posterior._laplace import laplace
from l2m_optax.posterior._posterior import Posterior

_SIBLINGS = {
    frozenset({"count", "mu", "nu"}),  # adam and its kin
    frozenset({"count", "mu", "nu", "nu_max"}),  # amsgrad
    frozenset({"count", "nu"}),  # rmsprop with bias correction
    frozenset({"nu"}),  # rmsprop
    frozenset({"mu", "nu"}),  # rmsprop, centered
}


def from_training_state(
    path: str | os.PathLike[str],
    *,
    like: PyTree,
    num_data: int,
    batch_size: int,
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
    saved = _Saved(_item(Path(path).absolute(), str(path), step), str(path), everywhere(like))
    mean = saved.read((params,), like)
    if tx is None:
        moment = _vouched(saved, like, decay, count)
    else:
        state = saved.optimizer_state(tx, like)
        moment = second_moment(state, mean, tx=tx, decay=decay, count=count)
    return laplace(mean, moment, num_data=num_data, batch_size=batch_size, **arguments)


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


def _vouched(saved: _Saved, like: PyTree, decay: Any, count: int | None) -> SecondMoment:
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


class _Saved:
    """The tree of a checkpoint, its leaves by the keys that lead to them, unread."""

    def __init__(self, where: Path, name: str, copies: Any) -> None:
        """Read the metadata; `copies` is the sharding of what is no parameter."""
        self.name, self._where, self._copies = name, where, copies
        self._checkpointer = orbax().PyTreeCheckpointer()
        try:
            # The checkpointer itself would look for metadata of a step, and log that it has none.
            held = self._checkpointer.handler.metadata(where)
            metadata = getattr(held, "tree", held)  # older versions give the tree itself
        except Exception as error:  # of orbax, tensorstore and json, which have no type in common
            got = f"{type(error).__name__}: {error}"
            remedy = "the files were changed or damaged; take an earlier checkpoint"
            raise ValueError(complaint(name, "a checkpoint", got[:300], remedy)) from error
        self._tree = metadata
        with_paths = jax.tree_util.tree_leaves_with_path(metadata, is_leaf=_is_array)
        self._paths = {_keys(path): path for path, _ in with_paths}
        self._leaves = {_keys(path): leaf for path, leaf in with_paths}

    def second_moment(self) -> tuple[str, ...]:
        """The keys of the one node that holds a second moment.

        Raises:
          ValueError: if there is none, or more than one.
        """
        parents = {keys[: keys.index("nu")] for keys in self._leaves if "nu" in keys}
        found = [at for at in parents if self._children(at) in _SIBLINGS]
        if len(found) != 1:
            got = ", ".join(sorted(".".join(at) for at in found)) or "none"
            expected = "one node with nu, and count and mu beside it"
            remedy = "restore the optimizer state and pass it to second_moment(..., tx=tx)"
            raise ValueError(complaint(self.name, expected, got, remedy))
        return found[0]

    def optimizer_state(self, tx: optax.GradientTransformation, like: PyTree) -> PyTree:
        """The state of `tx`, leaf by leaf; leaves shaped like a parameter are sharded like it.

        Raises:
          ValueError: if it is not there, or more than once.
        """
        shapes = jax.eval_shape(tx.init, like)
        wanted = [_keys(path) for path, _ in jax.tree_util.tree_leaves_with_path(shapes)]
        ends = {
            keys[: -len(w)] for w in wanted[:1] for keys in self._leaves if keys[-len(w) :] == w
        }
        found = [at for at in ends if all((*at, *keys) in self._leaves for keys in wanted)]
        if wanted and len(found) != 1:
            got = ", ".join(sorted(".".join(at) for at in found))[:200] or "none"
            remedy = "pass tx=, the optimizer that was trained with, in every wrapper that it had"
            raise ValueError(complaint(self.name, "one optimizer state of tx", got, remedy))
        return self.read(found[0], _shard_like(shapes, like)) if wanted else shapes

    def read(self, at: tuple[str, ...], like: PyTree) -> PyTree:
        """The arrays below `at`, one after the other, in the structure and sharding of `like`.

        Raises:
          ValueError: if one is missing or of another shape.
        """

        def leaf(path: Any, wanted: Any) -> Array:
            keys = (*at, *_keys(path))
            held = self._leaves.get(keys)
            if held is None or tuple(held.shape) != tuple(np.shape(wanted)):
                got = "no such leaf" if held is None else f"shape {tuple(held.shape)}"
                where = f"{self.name}: {'.'.join(keys)}"
                remedy = "pass like=, the parameters that were trained, and their key, params="
                raise ValueError(complaint(where, f"shape {np.shape(wanted)}", got, remedy))
            return self._array(keys, getattr(wanted, "sharding", None))

        return jax.tree_util.tree_map_with_path(leaf, like)

    def number(self, keys: tuple[str, ...]) -> Array | None:
        """A scalar, if there is one."""
        return self._array(keys, None) if keys in self._leaves else None

    def _children(self, at: tuple[str, ...]) -> frozenset[str]:
        return frozenset(
            keys[len(at)] for keys in self._leaves if keys[: len(at)] == at and len(keys) > len(at)
        )

    def _array(self, keys: tuple[str, ...], sharding: Any) -> Array:
        ocp = orbax()
        own = sharding or self._copies

        def item(path: Any, held: Any) -> Any:
            if _keys(path) != keys:
                return ocp.PLACEHOLDER
            return jax.ShapeDtypeStruct(held.shape, held.dtype)  # type: ignore[no-untyped-call]

        def how(_: Any) -> Any:
            return ocp.ArrayRestoreArgs(restore_type=jax.Array, sharding=own)

        wanted = ocp.args.PyTreeRestore(
            item=jax.tree_util.tree_map_with_path(item, self._tree, is_leaf=_is_array),
            restore_args=jax.tree.map(how, self._tree, is_leaf=_is_array),
        )
        try:
            restored = self._checkpointer.restore(self._where, args=wanted)
        except Exception as error:  # see __init__
            got = f"{type(error).__name__}: {error}"
            remedy = "the files were changed or damaged; take an earlier checkpoint"
            where = f"{self.name}: {'.'.join(keys)}"
            raise ValueError(complaint(where, "an array", got[:300], remedy)) from error
        leaves = jax.tree_util.tree_leaves_with_path(restored, is_leaf=lambda x: x is ...)
        return next(leaf for path, leaf in leaves if _keys(path) == keys)


def _shard_like(shapes: PyTree, like: PyTree) -> PyTree:
    """The shapes of a state, each that belongs to a parameter with the sharding of that one."""
    owners = {_keys(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(like)}

    def leaf(path: Any, wanted: Any) -> Any:
        keys = _keys(path)
        found = [owners[keys[i:]] for i in range(len(keys) + 1) if keys[i:] in owners]
        fits = [owner for owner in found if np.shape(owner) == wanted.shape]
        sharding = getattr(fits[0], "sharding", None) if fits else None
        return jax.ShapeDtypeStruct(wanted.shape, wanted.dtype, sharding=sharding)  # type: ignore[no-untyped-call]

    return jax.tree_util.tree_map_with_path(leaf, shapes)


def _is_array(node: Any) -> bool:
    return hasattr(node, "shape")


def _keys(path: Any) -> tuple[str, ...]:
    """The keys of a path as words; nnx puts a last one, ``value``, around every array."""
    words = tuple(
        str(next(getattr(key, name) for name in ("key", "idx", "name") if hasattr(key, name)))
        for key in path
    )
    return words[:-1] if words and words[-1] == "value" else words


def _item(where: Path, name: str, step: int | None) -> Path:
    """The directory of the pytree: `where`, one of its steps, or the one item of a step.

    Raises:
      FileNotFoundError: if there is nothing.
      ValueError: if it is no checkpoint, holds several, or has no such step.
    """
    if not where.is_dir():
        remedy = "pass the directory of a checkpoint, or the root of a CheckpointManager"
        raise FileNotFoundError(complaint(name, "a directory", "nothing", remedy))
    folders = [folder for folder in where.iterdir() if folder.is_dir()]
    is_checkpoint = (where / "_METADATA").is_file()
    steps = {} if is_checkpoint else {int(f.name): f for f in folders if f.name.isdigit()}
    if steps or step is not None:
        return _item(_step(steps, name, step), name, None)
    if is_checkpoint:
        return where
    items = [folder for folder in folders if (folder / "_METADATA").is_file()]
    if len(items) != 1:
        got = ", ".join(sorted(folder.name for folder in items))[:200] or "none"
        remedy = "pass the directory of the item that holds params and opt_state"
        raise ValueError(complaint(name, "a checkpoint that orbax wrote", got, remedy))
    return items[0]


def _step(steps: dict[int, Path], name: str, step: int | None) -> Path:
    """The directory of a step, the last by default.

    Raises:
      ValueError: naming some of the steps, if this one is not among them.
    """
    chosen = max(steps) if step is None else step
    if chosen not in steps:
        last = ", ".join(map(str, sorted(steps)[-5:]))
        got = f"{len(steps)} steps, the last of them {last}" if steps else "no steps"
        remedy = "pass one of them, or leave step= out"
        raise ValueError(complaint(name, f"step {step}", got, remedy))
    return steps[chosen]
