"""A posterior straight out of a training checkpoint, of which only what is needed is read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from l2m_optax._support.checks import complaint
from l2m_optax._support.types import Array, PyTree
from l2m_optax.checkpoint._directory import orbax
from l2m_optax.moments._moment import SecondMoment, bias_weight
from l2m_optax.moments._second_moment import check_decay
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
    decay: float,
    num_data: int,
    batch_size: int,
    count: int | None = None,
    params: str = "params",
    **arguments: Any,
) -> Posterior:
    """The posterior that a training checkpoint of orbax already holds.

    The directory is one that orbax wrote: a pytree with parameters and an optimizer state, such as
    flax's ``TrainState``, the `nnx.state` of a model and its ``nnx.Optimizer``, or the root of a
    ``CheckpointManager``, whose last step is taken. Names of classes are gone there, so the second
    moment is found by the names of its siblings (``count, mu, nu``) and read leaf by leaf, with the
    parameters; nothing else is read, and no optimizer is built.

    As in `second_moment` without ``tx=``, names do not say all: `decay` vouches for a running mean
    of squared gradients (of adam, adamw, nadam, radam, lamb or rmsprop, and not of adamax, yogi or
    adopt), without gradient accumulation, or with ``batch_size`` counting all that one update saw.

    Args:
      path: the checkpoint.
      like: the parameters, or what `jax.eval_shape` says of them, with or without shardings.
      decay: decay of the squares, Adam's `b2`.
      num_data: as in `laplace`.
      batch_size: as in `laplace`.
      count: number of updates, where the state does not hold it (plain rmsprop).
      params: key of the parameters at the top of the tree; ``"model"``, say.
      **arguments: what `laplace` takes besides.

    Returns:
      The `Posterior`.

    Raises:
      ModuleNotFoundError: if orbax is not installed (the extra ``checkpoint``).
      FileNotFoundError: if there is nothing at `path`.
      ValueError: if there is no checkpoint, no or more than one second moment, or a leaf of `like`
        is missing or of another shape; and as `laplace`.

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
      ...         f"{folder}/1", like=params, decay=0.999, num_data=100, batch_size=10
      ...     )
      >>> print(l2m.moments.debiased(posterior.second_moment)["w"].round(3))
      [0. 1. 4.]
    """
    check_decay("decay", decay)
    saved = _Saved(_item(Path(path).absolute(), str(path)), str(path))
    at = saved.second_moment()
    mean = saved.read((params,), like)
    nu = saved.read((*at, "nu"), like)
    counted = saved.number((*at, "count"))
    if counted is None and count is None:
        remedy = "pass count=, the number of updates"
        raise ValueError(complaint(str(path), "a count of updates", "none", remedy))
    updates: Any = counted if count is None else count
    held = SecondMoment(nu=nu, weight=bias_weight(decay, updates), count=updates, decay=decay)
    return laplace(mean, held, num_data=num_data, batch_size=batch_size, **arguments)


class _Saved:
    """The tree of a checkpoint, its leaves by the keys that lead to them, unread."""

    def __init__(self, where: Path, name: str) -> None:
        """Read the metadata."""
        self._where, self._name = where, name
        self._checkpointer = orbax().PyTreeCheckpointer()
        try:
            metadata = self._checkpointer.metadata(where).item_metadata.tree
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
            raise ValueError(complaint(self._name, expected, got, remedy))
        return found[0]

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
                where = f"{self._name}: {'.'.join(keys)}"
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
        own = sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

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
            where = f"{self._name}: {'.'.join(keys)}"
            raise ValueError(complaint(where, "an array", got[:300], remedy)) from error
        leaves = jax.tree_util.tree_leaves_with_path(restored, is_leaf=lambda x: x is ...)
        return next(leaf for path, leaf in leaves if _keys(path) == keys)


def _is_array(node: Any) -> bool:
    return hasattr(node, "shape")


def _keys(path: Any) -> tuple[str, ...]:
    """The keys of a path as words; nnx puts a last one, ``value``, around every array."""
    words = tuple(
        str(next(getattr(key, name) for name in ("key", "idx", "name") if hasattr(key, name)))
        for key in path
    )
    return words[:-1] if words and words[-1] == "value" else words


def _item(where: Path, name: str) -> Path:
    """The directory of the pytree: `where`, its last step, or the one item of a step.

    Raises:
      FileNotFoundError: if there is nothing.
      ValueError: if it is no checkpoint, or holds several.
    """
    if not where.is_dir():
        remedy = "pass the directory of a checkpoint, or the root of a CheckpointManager"
        raise FileNotFoundError(complaint(name, "a directory", "nothing", remedy))
    if (where / "_METADATA").is_file():
        return where
    folders = [folder for folder in where.iterdir() if folder.is_dir()]
    steps = [folder for folder in folders if folder.name.isdigit()]
    if steps:
        return _item(max(steps, key=lambda folder: int(folder.name)), name)
    items = [folder for folder in folders if (folder / "_METADATA").is_file()]
    if len(items) != 1:
        got = ", ".join(sorted(folder.name for folder in items)) or "none"
        remedy = "pass the directory of the item that holds params and opt_state"
        raise ValueError(complaint(name, "a checkpoint that orbax wrote", got, remedy))
    return items[0]
