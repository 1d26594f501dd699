"""Which temperature does a classifier need, and which rule finds it without validation data?

Networks are trained on scikit-learn's digits and on the Fashion-MNIST images beside the quickstart,
and every rule chooses a temperature for the posterior over all layers and for that over the last;
the prior is the evidence's. The tables are those of docs/temperature.md.
Run: `make bench-temperature`.
"""

import argparse
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import l2m_optax as l2m
from l2m_optax import metrics

CLOTHES = Path(__file__).parents[1] / "notebooks" / "data" / "fashion_mnist_subset.npz"
GRID = np.logspace(-5, 1, 25)


class Data(NamedTuple):
    """Inputs and labels."""

    x: jax.Array
    y: jax.Array


class Task(NamedTuple):
    """A data set, and how long a network of two hidden layers of a width is trained on it."""

    train: Data
    validation: Data
    test: Data
    width: int
    epochs: int


def data(images: np.ndarray, labels: np.ndarray, brightest: float) -> Data:
    x = images.reshape(len(images), -1) / brightest
    return Data(jnp.asarray(x, jnp.float32), jnp.asarray(labels, jnp.int32))


def clothes(num_data: int) -> Task:
    arrays = np.load(CLOTHES)
    parts = [data(arrays[f"x_{p}"], arrays[f"y_{p}"], 255.0) for p in ("train", "val", "test")]
    train = jax.tree.map(lambda a: a[:num_data], parts[0])
    return Task(train, parts[1], parts[2], width=128, epochs=30)


def digits(epochs: int) -> Task:
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    parts = [order[:1000], order[1000:1200], order[1200:]]
    return Task(*(data(images[i], labels[i], 16.0) for i in parts), width=64, epochs=epochs)


TASKS = {
    "Fashion-MNIST, 5,000 images": lambda: clothes(5000),
    "Fashion-MNIST, 1,000 images": lambda: clothes(1000),
    "digits, 100 epochs": lambda: digits(100),
    "digits, 400 epochs": lambda: digits(400),
}


def initial(key: jax.Array, sizes: tuple[int, ...]) -> list[dict[str, jax.Array]]:
    keys = jax.random.split(key, len(sizes) - 1)
    shapes = zip(keys, sizes[:-1], sizes[1:], strict=True)
    return [
        {"w": jax.random.normal(k, (a, b)) / math.sqrt(a), "b": jnp.zeros(b)} for k, a, b in shapes
    ]


def apply_fn(params, x):
    for layer in params[:-1]:
        x = jax.nn.relu(x @ layer["w"] + layer["b"])
    return x @ params[-1]["w"] + params[-1]["b"]


def train(task: Task, seed: int, batch_size: int = 128) -> l2m.posterior.Posterior:
    """The posterior over all layers, its prior by the evidence."""
    number = len(task.train.y)
    per_epoch = number // batch_size
    tx = optax.adam(optax.cosine_decay_schedule(1e-3, per_epoch * task.epochs))

    def loss(params, batch):
        logits = apply_fn(params, task.train.x[batch])
        labels = task.train.y[batch]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def step(carry, batch):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params, batch), state, params)
        return (optax.apply_updates(params, updates), state), None

    def epoch(carry, key):
        order = jax.random.permutation(key, number)[: per_epoch * batch_size]
        return jax.lax.scan(step, carry, order.reshape(per_epoch, batch_size))

    one, two = jax.random.split(jax.random.key(seed))
    params = initial(one, (task.train.x.shape[1], task.width, task.width, 10))
    keys = jax.random.split(two, task.epochs)
    params, state = jax.jit(lambda c: jax.lax.scan(epoch, c, keys)[0])((params, tx.init(params)))
    moment = l2m.second_moment(state, params, tx=tx)
    whole = l2m.laplace(params, moment, num_data=number, batch_size=batch_size)
    return l2m.fit_prior_precision(whole).posterior


class Case(NamedTuple):
    """One posterior and all that a rule may look at."""

    task: Task
    posterior: l2m.posterior.Posterior


def cold(case: Case) -> float:
    """What `fit` takes without validation data; for the last layer, its own γ."""
    return float(l2m.tuning.cold_temperature(case.posterior, 10))


def validation(case: Case) -> float:
    info = l2m.tuning.calibrate_temperature(apply_fn, case.posterior, *case.task.validation).info
    return float(info.value)


def elbo(case: Case) -> float:
    """The best evidence lower bound of the training data over T."""
    info = l2m.tune(apply_fn, case.posterior, *case.task.train, objective="elbo").info
    return float(info.value)


def judge(case: Case, temperature: float) -> tuple[float, float]:
    """NLL and ECE on the test data at a temperature; 0 is the mode."""
    posterior = case.posterior._replace(temperature=jnp.asarray(temperature, jnp.float32))
    probs, labels = l2m.classify(apply_fn, posterior, case.task.test.x).probs, case.task.test.y
    return (
        float(metrics.negative_log_likelihood(probs, labels)),
        float(metrics.expected_calibration_error(probs, labels)),
    )


def temperatures(case: Case) -> Iterator[tuple[str, float]]:
    yield "the network alone", 0.0
    yield "T = 1", 1.0
    yield "ELBO", elbo(case)
    yield "`cold_temperature`", cold(case)
    yield "validation: `calibrate_temperature`", validation(case)
    yield "best on the test data", min([0.0, *GRID], key=lambda t: judge(case, t)[0])


def study(make: Callable[[], Task], seeds: int) -> dict[str, dict[str, np.ndarray]]:
    """By layers and rule, the means over seeds of T, NLL and ECE."""
    task = make()
    rows: dict[str, dict[str, list]] = {"all layers": {}, "last layer": {}}
    for seed in range(seeds):
        whole = train(task, seed)
        last = l2m.restrict(whole, lambda path: path[0] == 2)
        cases = {"all layers": whole, "last layer": l2m.fit_prior_precision(last).posterior}
        for layers, posterior in cases.items():
            case = Case(task, posterior)
            for rule, temperature in temperatures(case):
                outcome = (temperature, *judge(case, temperature))
                rows[layers].setdefault(rule, []).append(outcome)
    return {
        layers: {rule: np.mean(outcomes, axis=0) for rule, outcomes in by_rule.items()}
        for layers, by_rule in rows.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1, help="networks to average over")
    arguments = parser.parse_args()
    for name, make in TASKS.items():
        tables = study(make, arguments.seeds)
        print(f"\n## {name}\n")
        print("| | all layers: T | NLL | ECE | last layer: T | NLL | ECE |")
        print("|---|---|---|---|---|---|---|")
        for rule, (t, nll, ece) in tables["all layers"].items():
            t2, nll2, ece2 = tables["last layer"][rule]
            figures = f"{t:.2g} | {nll:.3f} | {ece:.3f} | {t2:.2g} | {nll2:.3f} | {ece2:.3f}"
            print(f"| {rule} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
