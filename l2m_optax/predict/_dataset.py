"""Predictions for more data than fits on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from l2m_optax._support.checks import check_batched, check_count, complaint, path_name
from l2m_optax._support.loaders import as_arrays, batches
from l2m_optax._support.types import PyTree
from l2m_optax.predict._serving import Predictive


def predict_dataset(
    predictive: Callable[[PyTree], Any],
    loader: PyTree | Iterable[Any],
    *,
    batch_size: int = 256,
) -> Any:
    """The predictions for every batch of a loader, put together in the host's memory.

    One batch is on the device while the one before it is brought home, so that device memory stays
    flat, and a shorter last batch is filled up, so that one program serves all. A progress bar is
    shown if tqdm is installed.

    Args:
      predictive: a `Predictive`, or any function of inputs whose outputs have a leading axis of
        examples.
      loader: an array of inputs, or a dict of arrays, which are cut into batches; or any iterable
        of batches: a list, a generator, a loader of grain, torch or your own. As is the custom, a
        batch that is a tuple or a list holds the inputs first, and what else it holds is left out.
      batch_size: of the batches that arrays are cut into.

    Returns:
      What `predictive` returns, a tree of NumPy arrays with a leading axis of all examples.

    Raises:
      ValueError: if there are no data, a loader ends before the number of batches that it said it
        holds, or outputs have no leading axis of examples.
      TypeError: if `loader` cannot be iterated over or holds what is no array of numbers.
      FloatingPointError: if a prediction is NaN: for which input, and in which draw.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import l2m_optax as l2m
      >>> moment = l2m.SecondMoment(nu=jnp.ones((3, 2)))
      >>> posterior = l2m.laplace(jnp.zeros((3, 2)), moment, num_data=100, batch_size=10)
      >>> predictive = l2m.make_predictive(
      ...     jax.random.key(0), lambda w, x: x @ w, posterior, summary=l2m.classification
      ... )
      >>> l2m.predict_dataset(predictive, jnp.ones((1000, 3))).probs.shape
      (1000, 2)
    """
    check_count("batch_size", batch_size)
    parts = [
        _checked(predictive, part) for part in _one_behind(_launch(predictive, loader, batch_size))
    ]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


class _Part(NamedTuple):
    """One batch on its way: inputs, the index of the first, their number, what was predicted."""

    inputs: PyTree
    start: int
    size: int
    predicted: Any


def _launch(predictive: Callable[[PyTree], Any], loader: Any, batch_size: int) -> Iterator[_Part]:
    """Predictions that may still be computed when they are yielded."""
    start = largest = 0
    for inputs in _inputs(loader, batch_size):
        size = _size(inputs)
        largest = max(largest, size)
        predicted = predictive(_filled(inputs, largest))
        if start == 0:
            _check_examples_first(predictive, inputs, size, predicted)
        yield _Part(inputs, start, size, predicted)
        start += size


def _one_behind(parts: Iterator[_Part]) -> Iterator[_Part]:
    """The same, each once the next was launched."""
    before = None
    for part in parts:
        if before is not None:
            yield before
        before = part
    if before is not None:
        yield before


def _checked(predictive: Callable[[PyTree], Any], part: _Part) -> Any:
    """The predictions of a part on the host, without what it was filled up with."""
    fetched = jax.tree.map(lambda leaf: np.asarray(leaf)[: part.size], part.predicted)
    for path, leaf in jax.tree_util.tree_leaves_with_path(fetched):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            continue
        bad = np.isnan(leaf.astype(np.float32)).reshape(part.size, -1).any(axis=1)
        if bad.any():
            row = int(np.argmax(bad))
            got = f"NaN for input {part.start + row}{_draw_at_fault(predictive, part.inputs, row)}"
            remedy = "look for NaN in this input and in the parameters; a posterior that is too "
            remedy += "wide sends draws where the network overflows"
            raise FloatingPointError(
                complaint(path_name(path, "prediction"), "numbers", got, remedy)
            )
    return fetched


def _draw_at_fault(predictive: Any, inputs: PyTree, row: int) -> str:
    """Which draw gave NaN, where the draws can be repeated."""
    if not isinstance(predictive, Predictive):
        return ""
    outputs = predictive.outputs(jax.tree.map(lambda x: x[row : row + 1], inputs))
    draws = np.flatnonzero(np.isnan(outputs).reshape(len(outputs), -1).any(axis=1))
    return f" in draw {draws[0]} ({len(draws)} of {len(outputs)} draws)" if len(draws) else ""


def _check_examples_first(
    predictive: Callable[[PyTree], Any], inputs: PyTree, size: int, predicted: Any
) -> None:
    """The first axis must be that of examples, and not one of as many draws."""
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(predicted)]
    first = all(shape[:1] == (size,) for shape in shapes)
    if first and any(shape[1:2] == (size,) for shape in shapes):
        more = predictive(_filled(inputs, size + 1))
        first = all(jnp.shape(leaf)[0] == size + 1 for leaf in jax.tree.leaves(more))
    if not first:
        got = f"shapes {sorted(set(shapes))} for {size} examples"
        remedy = "give make_predictive a summary, such as summary=l2m.classification"
        expected = "outputs with a leading axis of examples"
        raise ValueError(complaint("predictive", expected, got, remedy))


def _inputs(loader: Any, batch_size: int) -> Iterator[PyTree]:
    """The inputs of each batch."""
    if isinstance(loader, dict) or hasattr(loader, "shape"):
        check_batched(loader, "inputs")
        size = _size(loader)
        loader = [
            jax.tree.map(lambda x, i=start: x[i : i + batch_size], loader)
            for start in range(0, size, batch_size)
        ]
    for batch in batches(loader, "loader", "predicting"):
        inputs = as_arrays(batch[0] if isinstance(batch, tuple | list) else batch)
        check_batched(inputs)
        yield inputs


def _filled(inputs: PyTree, size: int) -> PyTree:
    """The last example repeated until there are `size`."""

    def fill(leaf: Any) -> Any:
        missing = size - len(leaf)
        return np.concatenate([leaf, np.repeat(leaf[-1:], missing, axis=0)]) if missing else leaf

    return jax.tree.map(fill, inputs)


def _size(inputs: PyTree) -> int:
    return len(jax.tree.leaves(inputs)[0])
