"""Training and validation data as `fit` takes them: counted once, and some examples kept."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from l2m_optax._support.checks import check_batched, complaint, few
from l2m_optax._support.loaders import as_arrays, pairs
from l2m_optax._support.trees import rows
from l2m_optax._support.types import PyTree
from l2m_optax.tuning._targets import are_labels

_BATCH = 1024
"""Number of examples of arrays that are read at a time."""


class Sample(NamedTuple):
    """Some examples of the data, and how many there are.

    Attributes:
      inputs: a tree of arrays with a leading axis.
      targets: an array with the same axis.
      examples: number of examples of all the data.
      per_example: number of observations of an example: 1, or the length of its sequence.
    """

    inputs: PyTree
    targets: Any
    examples: int
    per_example: int


def as_loader(data: Any, name: str) -> Iterable[Any]:
    """Batches of (inputs, targets) out of arrays, or a loader as it is.

    Raises:
      ValueError: if inputs and targets are not of one length.
      TypeError: if there are no targets.
    """
    if isinstance(data, tuple) and len(data) == 2 and not isinstance(data[0], tuple | list):
        inputs, targets = as_arrays(data)
        check_batched((inputs, targets), name)
        return [
            jax.tree.map(lambda x, i=i: x[i : i + _BATCH], (inputs, targets))
            for i in range(0, len(targets), _BATCH)
        ]
    if hasattr(data, "shape") or isinstance(data, dict | tuple):
        remedy = "pass (inputs, targets), each an array, or a loader of such pairs"
        got = f"a {type(data).__name__}"
        if isinstance(data, tuple):
            got += f" of {few(type(part).__name__ for part in data)}"
        raise TypeError(complaint(name, "a pair of arrays", got, remedy))
    return data


def sample(data: Any, name: str, most: int) -> Sample:
    """At most `most` examples, chosen uniformly at random; the same ones in every call.

    Raises:
      ValueError: if there are no data, a loader ends early, or lengths differ.
      TypeError: if a loader does not yield pairs.
    """
    kept: Any
    rng, kept, ranks, examples = np.random.default_rng(0), None, np.empty(0), 0
    for inputs, targets in pairs(as_loader(data, name), name, "reading"):
        check_batched((inputs, targets), name)
        examples += len(targets)
        ranks = np.concatenate([ranks, rng.random(len(targets))])
        best = np.sort(np.argsort(ranks, kind="stable")[:most])
        kept = rows(_joined(kept, (inputs, targets)), best)
        ranks = ranks[best]
    inputs, targets = kept
    # An observation is one label, or the row of real numbers along the last axis.
    per_example = targets.shape[1:] if are_labels(targets) else targets.shape[1:-1]
    return Sample(inputs, targets, examples, math.prod(per_example))


def _joined(kept: Any, batch: Any) -> Any:
    if kept is None:
        return batch
    return jax.tree.map(lambda *x: np.concatenate([np.asarray(leaf) for leaf in x]), kept, batch)


def share_seen(validation: Sample, training: Any) -> float:
    """The share of validation inputs that are training inputs too, byte for byte.

    It is 0 for a loader that is no list, which would have to be read once more.
    """
    if not isinstance(training, tuple | list):
        return 0.0
    held_out = list(_as_bytes(validation.inputs))
    wanted, seen = set(held_out), set[bytes]()
    for inputs, _ in as_loader(training, "data"):
        seen.update(example for example in _as_bytes(inputs) if example in wanted)
    return sum(example in seen for example in held_out) / len(held_out)


def _as_bytes(inputs: PyTree) -> Iterator[bytes]:
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(inputs)]
    return (b"".join(part.tobytes() for part in example) for example in zip(*leaves, strict=True))
