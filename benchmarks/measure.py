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
    """What a call returns, and the seconds of the fastest of a few, after one that compiles."""
    result, all_seconds = jax.block_until_ready(function(*args)), []
    while sum(all_seconds) < 2 and len(all_seconds) < 5:
        start = time.perf_counter()
        jax.block_until_ready(function(*args))
        all_seconds.append(time.perf_counter() - start)
    return result, min(all_seconds)


def answers(predict: Callable[[np.ndarray], Any], inputs: np.ndarray) -> tuple[np.ndarray, float]:
    """Predictions for all inputs, in ten batches, and seconds per 1,000 of them, compiled."""
    batches = inputs.reshape(10, -1, *inputs.shape[1:])
    jax.block_until_ready(predict(batches[0]))
    start = time.perf_counter()
    found = [np.asarray(predict(batch), np.float64) for batch in batches]
    return np.concatenate(found), (time.perf_counter() - start) / len(inputs) * 1_000


def cached(name: str, make: Callable[[], Any], *sources: str) -> Any:
    """The pytree of arrays that `make()` returns, kept in `benchmarks/cache`.

    Args:
      name: of the file.
      make: called where there is no such file.
      sources: ``__file__`` of the code behind `make`; the file's name changes with their text, so
        that nothing stale is read.
    """
    text = b"".join(Path(source).read_bytes() for source in sources)
    path = CACHE / f"{name}-{hashlib.sha256(text).hexdigest()[:8]}.joblib"
    if not path.exists():
        CACHE.mkdir(exist_ok=True)
        joblib.dump(jax.tree.map(np.asarray, make()), path)
    return jax.tree.map(jnp.asarray, joblib.load(path))
