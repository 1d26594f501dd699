"""Posteriors of the networks of `evidence`, without validation data, and ensembles of them.

An alarm sees the test inputs and others: MNIST's digits for a network of clothes, and for one of
digits the test digits turned by 45 degrees. The entropy is that of the mean probabilities, for a
posterior `decisions.novelty`; the information is that between the label and the parameters.
"""

import functools
from collections.abc import Callable
from typing import Any

import images
import jax
import jax.numpy as jnp
import numpy as np
import optax
from everyday_methods import in_chunks
from evidence_tasks import Task
from evidence_training import added, by_evidence, diagonal, l2, pull, timed, validation
from scipy.ndimage import rotate

import l2m_optax as l2m
from l2m_optax import metrics

MEMBERS = 5


def others(task: Task, x: np.ndarray) -> np.ndarray:
    """What the network was not made for."""
    if x.ndim == 4:
        return images.load().digits
    turned = rotate(x.reshape(-1, 8, 8), 45, (1, 2), reshape=False, order=1)
    return turned.reshape(x.shape)


def tracked(strength: Any, rate: Any, task: Task, centre: Any) -> optax.GradientTransformation:
    """As `added`; the moment is that of the gradients of the data."""
    tracker = l2m.track_second_moment(0.999)
    return optax.chain(tracker, pull(strength, centre), optax.adam(rate))


def figures(probs: Any, entropy: Any, information: Any, labels: Any) -> dict[str, float]:
    """Of the test inputs, whose labels these are, and of what comes after them."""
    inside = len(labels)
    is_new = np.arange(len(probs)) >= inside
    scores = {"entropy": entropy, "information": information}  # a network alone has none of this
    return {
        "NLL": float(metrics.negative_log_likelihood(probs[:inside], labels)),
        "ECE": float(metrics.expected_calibration_error(probs[:inside], labels)),
    } | {
        f"AUROC, {name}": np.nan if each is None else float(metrics.auroc(each, is_new))
        for name, each in scores.items()
    }


def entropy(probs: Any) -> jax.Array:
    return -jnp.sum(jax.scipy.special.xlogy(probs, probs), axis=-1)


def probabilities(task: Task, params: Any, inputs: Any) -> jax.Array:
    return jax.nn.softmax(task.apply_fn(params, inputs))


def of_network(task: Task, params: Any, inputs: Any, labels: Any) -> dict[str, float]:
    probs = probabilities(task, params, inputs)
    return figures(probs, entropy(probs), None, labels)


def of_ensemble(task: Task, members: list[Any], inputs: Any, labels: Any) -> dict[str, float]:
    each = jnp.stack([probabilities(task, params, inputs) for params in members])
    total = entropy(each.mean(0))
    return figures(each.mean(0), total, total - entropy(each).mean(0), labels)


def of_fit(
    task: Task, data: tuple, params: Any, state: Any, inputs: Any, labels: Any
) -> dict[str, float]:
    posterior, said = l2m.fit(
        task.apply_fn, params, state, data=data[:2], batch_size=task.batch_size
    )
    print(said, flush=True)
    classify = functools.partial(l2m.classify, task.apply_fn, posterior)
    novelty = functools.partial(l2m.decisions.novelty, task.apply_fn, posterior)
    found = in_chunks(classify, inputs)
    return figures(found.probs, in_chunks(novelty, inputs), found.epistemic, labels)


def members(task: Task, optimizer: Callable, strength: float, seed: int) -> list[Any]:
    """Networks of the same data, from other starts and with other batches."""
    data, seeds = task.data(seed), range(100 * (seed + 1), 100 * (seed + 1) + MEMBERS)
    return [timed(task, optimizer, strength, one, data)[0] for one in seeds]


def on_top(task: Task, seed: int) -> dict[str, dict[str, float]]:
    """Figures of networks, of their posteriors, and of ensembles."""
    data = task.data(seed)
    seen = np.concatenate([data[4], others(task, data[4])]), data[5]
    tried = l2(task, seed, optimizer=tracked)
    table = {}
    for name, one in (
        ("no decay", tried[0]),
        ("L2, by validation data", min(tried, key=validation)),
        ("**evidence**", by_evidence(task, seed)),
    ):
        table[name] = of_network(task, one.params, *seen)
        table[f"{name}, `fit`"] = of_fit(task, data, one.params, one.state, *seen)
    for name, optimizer, strength in (("no decay", added, 0.0), ("**evidence**", diagonal, 10.0)):
        networks = members(task, optimizer, strength, seed)
        table[f"{name}, ensemble of {MEMBERS}"] = of_ensemble(task, networks, *seen)
    return table
