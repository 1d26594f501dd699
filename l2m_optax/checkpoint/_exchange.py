"""A posterior as one safetensors file: plain arrays and JSON, for other programs to read."""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path
from typing import Any

import jax
import numpy as np

from l2m_optax._support.checks import complaint
from l2m_optax._support.types import PyTree
from l2m_optax.checkpoint import _record
from l2m_optax.checkpoint._place import check_place, failure
from l2m_optax.posterior._posterior import Posterior


def save_safetensors(path: str | os.PathLike[str], posterior: Posterior) -> None:
    """Write a posterior into one new file of the safetensors format.

    Tensors are named by their paths, such as ``mean['body']['kernel']``; numbers and digests are
    JSON under the key ``l2m_optax`` of the file's metadata. Everything passes through this
    process's memory; for what is sharded over processes use `save`.

    Args:
      path: a file that does not exist yet.
      posterior: a `Posterior`.

    Raises:
      ModuleNotFoundError: if safetensors is not installed (the extra ``checkpoint``).
      ValueError: if `path` exists or no file can be made there, or an array was donated.
      OSError: if the file cannot be written, because the disk is full, say.

    Example:
      >>> import tempfile, jax.numpy as jnp
      >>> import l2m_optax as l2m
      >>> params = {"w": jnp.ones(3)}
      >>> moment = l2m.SecondMoment(nu={"w": jnp.ones(3)})
      >>> posterior = l2m.laplace(params, moment, num_data=100, batch_size=10)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     l2m.checkpoint.save_safetensors(f"{folder}/posterior.safetensors", posterior)
      ...     restored = l2m.checkpoint.load_safetensors(
      ...         f"{folder}/posterior.safetensors", like=params
      ...     )
      >>> print(restored.mean["w"])
      [1. 1. 1.]
    """
    numpy, where = _safetensors().numpy, Path(path).absolute()
    check_place(where)
    arrays, header = _record.write(posterior)
    tensors = {name: np.asarray(x, order="C") for name, x in jax.device_get(arrays).items()}
    _write(where, numpy.save(tensors, {"l2m_optax": json.dumps(header)}))


def _write(where: Path, data: bytes) -> None:
    """A new file, which gets its name only once it is whole, and only if that is still free.

    Raises:
      OSError: if it cannot be written.
      ValueError: if another one has the name by then.
    """
    temporary = where.with_name(f"{where.name}.{secrets.token_hex(8)}")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, where)
    except OSError as error:
        raise failure(where, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def load_safetensors(path: str | os.PathLike[str], *, like: PyTree) -> Posterior:
    """A posterior from a file that `save_safetensors` wrote.

    Args:
      path: the file.
      like: as in `restore`.

    Returns:
      The `Posterior`, bit for bit that which was saved.

    Raises:
      ModuleNotFoundError: if safetensors is not installed (the extra ``checkpoint``).
      FileNotFoundError: if there is no such file.
      ValueError: if it holds no posterior, one for other parameters, or one that was damaged.

    Example:
      See `save_safetensors`.
    """
    package, where = _safetensors(), str(path)
    try:
        with package.safe_open(path, framework="numpy") as file:
            header = _record.check_header(_header(file), where)
            arrays = {
                name: jax.device_put(_tensor(file, name, target, where), target.sharding)
                for name, target in _record.targets(header, like, where).items()
            }
    except FileNotFoundError:
        raise
    except (package.SafetensorError, OSError) as error:
        remedy = "the file was changed or damaged, or is none that save_safetensors wrote"
        got = f"{type(error).__name__}: {error}"
        raise ValueError(complaint(where, "a posterior", got[:300], remedy)) from error
    return _record.read(header, arrays, like, where)


def _header(file: Any) -> Any:
    """What the metadata hold of a posterior, or `None`; `check_header` looks at it."""
    try:
        return json.loads((file.metadata() or {}).get("l2m_optax", "null"))
    except (ValueError, RecursionError):  # no JSON, a number of thousands of digits, or too deep
        return None


def _tensor(file: Any, name: str, target: jax.ShapeDtypeStruct, where: str) -> np.ndarray:
    """A tensor as it was saved.

    Raises:
      ValueError: if it has another shape or dtype.
    """
    tensor = file.get_tensor(name)
    if tensor.shape != target.shape or tensor.dtype != target.dtype:
        remedy = "the file was changed or damaged; load an earlier one"
        expected = f"{target.dtype} of shape {target.shape}"[:100]
        got = f"{tensor.dtype} of shape {tensor.shape}"
        raise ValueError(complaint(f"{where}: {name}", expected, got, remedy))
    return tensor


def _safetensors() -> Any:
    try:
        import safetensors
        import safetensors.numpy
    except ModuleNotFoundError as error:
        remedy = 'pip install "l2m-optax[checkpoint]"'
        raise ModuleNotFoundError(
            complaint("l2m_optax.checkpoint", "safetensors", "none", remedy)
        ) from error
    return safetensors
