"""Where the evidence's weight decay breaks: data, batches and epochs; and what its value ranks.

The tasks are variations of those of `evidence_tasks`: a perceptron of some images of clothes, and
one of noisy classes that are made, of which there are as many as are asked for.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import evidence_tasks
import evidence_training
import images
import jax
import numpy as np
from evidence_tasks import TASKS, Task, clothes, digits, initial_perceptron, perceptron
from evidence_training import by_evidence, diagonal, early, l2, mean_loss, short_memory
from measure import cached
from scipy.stats import spearmanr
from sklearn.datasets import make_classification

COARSE = (1.0, 10.0, 100.0, 1000.0)
WIDTHS, DEPTHS = (16, 32, 64, 128, 256, 512), (1, 2, 3, 4)


@functools.cache
def some_clothes(number: int, seed: int) -> tuple:
    x, y, *rest = clothes(seed)
    return x[:number], y[:number], *rest


@functools.cache
def many_clothes(number: int, seed: int) -> tuple:
    """Of all of Fashion-MNIST; the validation images are among them, and choose nothing here."""
    return *images.whole(number), *clothes(seed)[2:]


@functools.cache
def noisy_classes(number: int, seed: int) -> tuple:
    """Ten classes, a tenth of whose labels are by chance."""
    x, y = make_classification(
        number + 3_000, 20, n_informative=10, n_classes=10, flip_y=0.1, random_state=seed
    )
    test, val, train = np.split(np.arange(len(x)), [2_000, 3_000])
    arrays = np.float32((x - x[train].mean(0)) / x[train].std(0)), y.astype(np.int32)
    return tuple(a[rows] for rows in (train, val, test) for a in arrays)


def of_clothes(number: int, epochs: int, batch_size: int) -> Task:
    return TASKS["Fashion-MNIST, 5,000 images, MLP"]._replace(
        data=functools.partial(some_clothes, number), epochs=epochs, batch_size=batch_size
    )


def of_many_clothes(number: int, kind: str, epochs: int) -> Task:
    data = functools.partial(many_clothes, number)
    return TASKS[f"Fashion-MNIST, 5,000 images, {kind}"]._replace(data=data, epochs=epochs)


def of_noisy_classes(number: int, epochs: int) -> Task:
    initial = functools.partial(initial_perceptron, (128, 128, 10))
    return Task(functools.partial(noisy_classes, number), initial, perceptron, epochs, 128, 2e-3)


def updates(task: Task) -> int:
    return task.epochs * (len(task.data(0)[0]) // task.batch_size)


BATCHES = {
    f"batches of {batch_size}, {epochs} epochs": of_clothes(1_000, epochs, batch_size)
    for batch_size in (16, 128, 512)
    for epochs in (10, 40, 200)
}
NUMBERS = {
    **{f"{number:,} images": of_clothes(number, 60, 128) for number in (500, 1_000, 5_000)},
    **{
        f"{number:,} images, {kind}": of_many_clothes(number, kind, epochs)
        for kind in ("MLP", "CNN")
        for number, epochs in ((20_000, 30), (60_000, 10))
    },
    **{
        f"{number:,} of noisy classes": of_noisy_classes(number, epochs)
        for number, epochs in ((1_000, 60), (5_000, 60), (20_000, 30), (60_000, 10))
    },
}


def of_limits(tasks: dict[str, Task], seeds: Sequence[int]) -> dict[str, list[dict[str, float]]]:
    """The test NLL of each way, for each task."""
    return {
        f"{name}, {updates(task):,} updates": [nlls(task, seed) for seed in seeds]
        for name, task in tasks.items()
    }


def nlls(task: Task, seed: int) -> dict[str, float]:
    tried = l2(task, seed, COARSE)
    print([round(one.test, 4) for one in tried], flush=True)
    return {
        "no decay": tried[0].test,
        "L2, by the test data": min(one.test for one in tried),
        "**evidence**": by_evidence(task, seed, optimizer=diagonal).test,
        "**evidence**, `start=10`": by_evidence(task, seed, optimizer=early).test,
        "**evidence**, `decay=0.99`": by_evidence(task, seed, optimizer=short_memory).test,
    }


def of_balance(tasks: dict[str, Task], seeds: Sequence[int]) -> dict[str, list[dict[str, float]]]:
    """Whether loss and decay are in balance at the end of each task's training."""
    return {
        f"{name}, {updates(task):,} updates": [balance(task, seed) for seed in seeds]
        for name, task in tasks.items()
    }


def balance(task: Task, seed: int) -> dict[str, float]:
    one = by_evidence(task, seed)
    state = one.state[0]
    return {
        "balance": float(state.balance),
        "error of one": float(state.balance_error),
        "test NLL": one.test,
    }


RANKED: dict[str, tuple[Callable[[int], tuple], int]] = {
    "Fashion-MNIST, 1,000 images": (functools.partial(some_clothes, 1_000), 40),
    "digits": (digits, 60),
}


def of_architecture(data: Callable[[int], tuple], epochs: int, width: int, depth: int) -> Task:
    initial = functools.partial(initial_flat, (*[width] * depth, 10))
    return Task(data, initial, perceptron, epochs, 32, 1e-3)


def initial_flat(widths: tuple[int, ...], seed: Any, data: tuple) -> Any:
    return initial_perceptron(widths, seed, (data[0].reshape(len(data[0]), -1),))


def scores(name: str, width: int, depth: int) -> dict[str, jax.Array]:
    """The NLL of test data, and what could rank networks without these; kept on disk."""

    def find() -> dict[str, float]:
        data, epochs = RANKED[name]
        task = of_architecture(data, epochs, width, depth)
        one = by_evidence(task, 0, optimizer=short_memory)
        return {
            "test": one.test,
            "log evidence": -float(one.state[0].log_evidence) / len(data(0)[0]),
            "NLL of validation data": one.validation,
            "NLL of training data": float(mean_loss(task, one.params, *data(0)[:2])),
        }

    sources = (evidence_tasks.__file__, evidence_training.__file__)
    return cached(f"evidence-{slug(name)}-{width}-{depth}", find, *sources)


def slug(name: str) -> str:
    return "".join(letter for letter in name if letter.isalnum())


def of_ranks(name: str) -> dict[str, list[dict[str, float]]]:
    """How each score orders all widths and depths, under one seed."""
    networks = [(width, depth) for width in WIDTHS for depth in DEPTHS]
    found = [scores(name, *network) for network in networks]
    tests = np.array([each["test"] for each in found])
    table = {}
    for score in found[0].keys() - {"test"}:
        values = np.array([each[score] for each in found])
        table[f"by the {score}"] = [
            {
                "Spearman's correlation": float(spearmanr(values, tests).statistic),
                "test NLL of the first": float(tests[values.argmin()]),
                "of the best": float(tests.min()),
                "of the worst": float(tests.max()),
            }
        ]
    return dict(sorted(table.items()))
