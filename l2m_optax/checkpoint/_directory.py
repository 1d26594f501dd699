"""A posterior as a directory that orbax writes: sharded, in the background, whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from l2m_optax._support.checks import complaint
from l2m_optax._support.types import Array, PyTree
from l2m_optax.checkpoint import _record
from l2m_optax.checkpoint._place import check_place, clear, failure
from l2m_optax.posterior._posterior import Posterior


class Pending:
    """A posterior that is being written; its arrays may be changed or donated meanwhile."""

    def __init__(self, checkpointer: Any, where: Path) -> None:
        """Made by `save_async`."""
        self._checkpointer, self._where = checkpointer, where

    def wait(self) -> None:
        """Return once it is on disk.

        Raises:
          OSError: if it could not be written. Nothing is left at the path then.
          ValueError: if somebody else has saved under the same path meanwhile.
        """
        try:
            self._checkpointer.wait_until_finished()
        except Exception as error:
            raise _failed(self._where, error) from error
        finally:
            self._checkpointer.close()


def save(path: str | os.PathLike[str], posterior: Posterior) -> None:
    """Write a posterior into a new directory; `restore` reads it.

    Every process writes its own shards. The directory appears under its name when all is in it:
    a process that is killed leaves nothing there, and no checkpoint that was there before is
    touched. What a killed process left beside it is removed when the same path is saved again.
    Let no two programs write to one path at the same time: at most one of them succeeds.

    Args:
      path: a directory that does not exist yet.
      posterior: a `Posterior`.

    Raises:
      ModuleNotFoundError: if orbax is not installed (the extra ``checkpoint``).
      ValueError: if `path` exists or no directory can be made there, or an array was donated.
      OSError: if the files cannot be written, because the disk is full, say.

    Example:
      >>> import tempfile, jax.numpy as jnp
      >>> import l2m_optax as l2m
      >>> params = {"w": jnp.ones(3)}
      >>> moment = l2m.SecondMoment(nu={"w": jnp.ones(3)})
      >>> posterior = l2m.laplace(params, moment, num_data=100, batch_size=10)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     l2m.checkpoint.save(f"{folder}/posterior", posterior)
      ...     restored = l2m.checkpoint.restore(f"{folder}/posterior", like=params)
      >>> print(restored.second_moment.nu["w"])
      [1. 1. 1.]
    """
    save_async(path, posterior).wait()


def save_async(path: str | os.PathLike[str], posterior: Posterior) -> Pending:
    """`save` in the background: returns once the arrays are copied, while files are written.

    Args:
      path: as in `save`.
      posterior: as in `save`.

    Returns:
      A `Pending`: call its ``wait()`` before the process ends.

    Raises:
      ModuleNotFoundError: as `save`.
      ValueError: as `save`.
      OSError: as `save`.

    Example:
      >>> import tempfile, jax.numpy as jnp
      >>> import l2m_optax as l2m
      >>> moment = l2m.SecondMoment(nu=jnp.ones(3))
      >>> posterior = l2m.laplace(jnp.ones(3), moment, num_data=100, batch_size=10)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     l2m.checkpoint.save_async(f"{folder}/posterior", posterior).wait()
    """
    ocp, where = orbax(), Path(path).absolute()
    check_place(where)
    arrays, header = _record.write(posterior)
    # Files are called by numbers; the names of the leaves stand in the header only.
    numbered = {str(i): _same_everywhere(x) for i, x in enumerate(arrays.values())}
    items = ocp.args.Composite(
        arrays=ocp.args.StandardSave(numbered), header=ocp.args.JsonSave(header)
    )
    checkpointer = _checkpointer(ocp)
    try:
        checkpointer.save(where, args=items)
    except Exception as error:
        checkpointer.close()
        raise _failed(where, error) from error
    return Pending(checkpointer, where)


def restore(path: str | os.PathLike[str], *, like: PyTree) -> Posterior:
    """A posterior that was saved, in the structure and the shardings of `like`.

    Args:
      path: what `save` was given.
      like: the parameters, or what `jax.eval_shape` says of them. Leaves with a sharding, which may
        be that of another mesh than the saved one, give it to the arrays restored.

    Returns:
      The `Posterior`, bit for bit that which was saved.

    Raises:
      ModuleNotFoundError: if orbax is not installed (the extra ``checkpoint``).
      FileNotFoundError: if there is nothing at `path`.
      ValueError: if it holds no posterior, one for other parameters, or one that was damaged.

    Example:
      See `save`.
    """
    ocp, where = orbax(), Path(path).absolute()
    if not where.exists():
        remedy = "look for the name that was saved; an interrupted save leaves nothing"
        raise FileNotFoundError(complaint(str(path), "a directory", "nothing", remedy))
    # orbax creates what it is asked to read: look before.
    if not (where / "header").is_dir() or not (where / "arrays").is_dir():
        remedy = "pass a directory that l2m_optax.checkpoint.save wrote"
        raise ValueError(complaint(str(path), "a posterior", "none", remedy))
    checkpointer = ocp.Checkpointer(ocp.CompositeCheckpointHandler())
    header = _record.check_header(
        _read(checkpointer, where, header=ocp.args.JsonRestore())["header"], str(path)
    )
    targets = _record.targets(header, like, str(path))
    numbered = {str(i): target for i, target in enumerate(targets.values())}
    found = _read(checkpointer, where, arrays=ocp.args.StandardRestore(numbered))["arrays"]
    arrays = {name: found[str(i)] for i, name in enumerate(targets)}
    return _record.read(header, arrays, like, str(path))


def orbax() -> Any:
    """The module, imported when it is needed.

    Raises:
      ModuleNotFoundError: saying how to install it.
    """
    try:
        import orbax.checkpoint as ocp
    except ModuleNotFoundError as error:
        remedy = 'pip install "l2m-optax[checkpoint]"'
        raise ModuleNotFoundError(
            complaint("l2m_optax.checkpoint", "orbax-checkpoint", "none", remedy)
        ) from error
    return ocp


def _checkpointer(ocp: Any) -> Any:
    """What writes in the background, into directories that are made before its threads start.

    Threads that wait for a directory keep the process alive for 20 minutes if it cannot be made.
    """
    options = ocp.AsyncOptions()
    options.create_directories_asynchronously = False  # older versions never do, and ignore this
    composite = ocp.handlers.CompositeCheckpointHandler()
    return ocp.AsyncCheckpointer(composite, async_options=options)


def _failed(where: Path, error: Exception) -> Exception:
    """What to raise when orbax could not write, once what it began is removed."""
    if jax.process_index() == 0:
        clear(where)
    return failure(where, error)


def _same_everywhere(x: Array) -> Array | np.ndarray:
    """An array of which every process has its own copy, as NumPy's: orbax writes the first one."""
    return np.asarray(x) if jax.process_count() > 1 and x.is_fully_addressable else x


def _read(checkpointer: Any, where: Path, **items: Any) -> Any:
    """What orbax restores, or a ValueError that names the directory.

    Raises:
      ValueError: if orbax cannot.
    """
    try:
        return checkpointer.restore(where, args=orbax().args.Composite(**items))
    except Exception as error:  # of orbax, tensorstore and json, which have no type in common
        remedy = "the files were changed or damaged; restore an earlier checkpoint"
        got = f"{type(error).__name__}: {error}"
        raise ValueError(complaint(str(where), "a whole posterior", got[:300], remedy)) from error
