"""Seconds without compilation, and results that are kept from run to run."""

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import joblib
import numpy as np

CACHE = Path(__file__).parent / "cache"


def timed(function: Callable, *args: Any) -> tuple[Any, float]:
    """What a second call returns, which compiles nothing, and its seconds."""
    jax.block_until_ready(function(*args))
    start = time.perf_counter()
    result = jax.block_until_ready(function(*args))
    return result, time.perf_counter() - start


def cached(name: str, source: str, make: Callable[[], Any]) -> Any:
    """The pytree of arrays that `make()` returns, kept in `benchmarks/cache`.

    Args:
      name: of the file.
      source: ``__file__`` of the code behind `make`; the file's name changes with its text, so that
        nothing stale is read.
      make: called where there is no such file.
    """
    version = hashlib.sha256(Path(source).read_bytes()).hexdigest()[:8]
    path = CACHE / f"{name}-{version}.joblib"
    if not path.exists():
        CACHE.mkdir(exist_ok=True)
        joblib.dump(jax.tree.map(np.asarray, make()), path)
    return jax.tree.map(jnp.asarray, joblib.load(path))
