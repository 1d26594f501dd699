"""A posterior as one safetensors file: plain arrays and JSON, for other programs to read."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from l2m_optax._support.checks import complaint
from l2m_optax._support.types import PyTree
from l2m_optax.checkpoint import _record as record
from l2m_optax.posterior._posterior import Posterior


def save_safetensors(path: str | os.PathLike[str], posterior: Posterior) -> None:
    """Write a posterior into one new file of the safetensors format.

    Tensors are named by their paths, ``mean['body']['kernel']`` and ``nu['body']['kernel']``;
    numbers and digests are JSON under the key ``l2m_optax`` of the file's metadata. Everything
    passes through this process's memory; for what is sharded over processes use `save`.

    Args:
      path: a file that does not exist yet.
      posterior: a `Posterior`.

    Raises:
      ModuleNotFoundError: if safetensors is not installed (the extra ``checkpoint``).
      ValueError: if `path` exists, or a buffer was donated.

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
    numpy, target = _safetensors().numpy, Path(path)
    if target.exists():
        remedy = "save under another name; nothing is overwritten"
        raise ValueError(
            complaint(str(path), "a path that does not exist", "one that does", remedy)
        )
    arrays, header = record.write(posterior)
    tensors = {name: np.asarray(x, order="C") for name, x in jax.device_get(arrays).items()}
    data = numpy.save(tensors, {"l2m_optax": json.dumps(header)})
    # Under its name only once it is whole, and only if that is still free.
    with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(file.name, target)
    except FileExistsError as error:
        remedy = "save under another name; nothing is overwritten"
        raise ValueError(
            complaint(str(path), "a path that does not exist", "one that does", remedy)
        ) from error
    finally:
        os.unlink(file.name)


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
    package = _safetensors()
    remedy = "the file was changed or damaged, or is none that save_safetensors wrote"
    try:
        with package.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            header = record.check_header(json.loads(metadata.get("l2m_optax", "null")), str(path))
            targets = record.targets(header, like, str(path))
            arrays = {
                name: jax.device_put(_typed(file.get_tensor(name), target), target.sharding)
                for name, target in targets.items()
            }
    except FileNotFoundError:
        raise
    except (package.SafetensorError, json.JSONDecodeError, UnicodeDecodeError, OSError) as error:
        got = f"{type(error).__name__}: {error}"
        raise ValueError(complaint(str(path), "a posterior", got[:300], remedy)) from error
    return record.read(header, arrays, like, str(path))


def _typed(tensor: np.ndarray, target: jax.ShapeDtypeStruct) -> np.ndarray:
    """A tensor as it was saved.

    Raises:
      ValueError: if it has another shape or dtype.
    """
    if tensor.shape != target.shape or tensor.dtype != target.dtype:
        remedy = "the file was changed or damaged; load an earlier one"
        got = f"{tensor.dtype} of shape {tensor.shape}"
        raise ValueError(
            complaint("tensor", f"{target.dtype} of shape {target.shape}", got, remedy)
        )
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
