"""A weight decay by the evidence of one training, beside a grid of L2 decays.

    make bench-evidence

The test NLL of the network itself, without a posterior. The grid is seven trainings and one
without a decay; the one of the best NLL on validation data is taken, or that on the test data.
"a" is the overcount, by which F is divided. For numbers the targets are standardised, and the noise
is the mean squared training residual, for `evidence_weight_decay` its own. `FAST=1` for one seed.
"""

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import images
import jax
import jax.numpy as jnp
import numpy as np
import optax
import report
import training
from sklearn.datasets import load_digits

import l2m_optax as l2m

SEEDS = range(1 if report.FAST else 3)
GRID = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
OVERCOUNTS = (1.0, 3.0, 10.0, 30.0)


class Task(NamedTuple):
    """A network, its data and its training.

    Attributes:
      data: ``data(seed)``: inputs and targets of training, validation and test.
      initial: ``initial(seed, data)``: parameters.
      apply_fn: ``apply_fn(params, inputs)``.
      epochs: of batches of `batch_size`.
      batch_size: B.
      rate: Adam's, at the start of a cosine schedule.
      kind: the likelihood.
    """

    data: Callable[[int], tuple]
    initial: Callable[[Any, tuple], Any]
    apply_fn: Callable[[Any, jax.Array], jax.Array]
    epochs: int
    batch_size: int
    rate: float
    kind: str = "categorical"


@functools.cache
def clothes(seed: int) -> tuple:
    found = images.load()
    return found.x, found.y, found.x_val, found.y_val, found.x_test, found.y_test


def digits(seed: int) -> tuple:
    """Split anew by every seed."""
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(x))
    test, val, train = np.split(order, [540, 740])
    arrays = np.float32(x / 16), y.astype(np.int32)
    return tuple(a[rows] for rows in (train, val, test) for a in arrays)


def table(name: str, seed: int) -> tuple:
    """Standardised by what is trained on; a tenth for tests, a tenth for validation."""
    found = np.load(images.DATA / f"{name}.npz")
    x, y = found["x"], found["y"].astype(np.float64)[:, None]
    order, tenth = np.random.default_rng(seed).permutation(len(x)), len(x) // 10
    test, val, train = np.split(order, [tenth, 2 * tenth])
    x = (x - x[train].mean(0)) / (x[train].std(0) + 1e-8)
    y = (y - y[train].mean()) / y[train].std()
    return tuple(np.float32(a[rows]) for rows in (train, val, test) for a in (x, y))


def perceptron(params: Any, x: jax.Array) -> jax.Array:
    for name in sorted(params):
        x = x @ params[name]["kernel"] + params[name]["bias"]
        x = x if name == max(params) else jax.nn.relu(x)
    return x


def initial_perceptron(widths: tuple[int, ...], seed: Any, data: tuple) -> Any:
    sizes = (data[0].shape[1], *widths)
    keys = jax.random.split(jax.random.key(seed), len(sizes))
    return {
        f"layer{i}": {
            "kernel": jax.random.normal(key, (n, m)) * (2 / n) ** 0.5,
            "bias": jnp.zeros(m),
        }
        for i, (key, n, m) in enumerate(zip(keys, sizes, sizes[1:], strict=False))
    }


def initial_of_images(seed: Any, data: tuple) -> Any:
    return images.initial("mlp", jax.random.key(seed))


def of_table(name: str, *widths: int, epochs: int = 200) -> Task:
    initial = functools.partial(initial_perceptron, (*widths, 1))
    data = functools.partial(table, name)
    return Task(data, initial, perceptron, epochs, 32, 1e-2, "gaussian")


TASKS = {
    "Fashion-MNIST, 5,000 images, MLP": Task(
        clothes, initial_of_images, images.network, 60, 128, 2e-3
    ),
    "digits, MLP": Task(
        digits, functools.partial(initial_perceptron, (128, 128, 10)), perceptron, 100, 64, 1e-3
    ),
    "concrete, one layer of 50": of_table("concrete", 50),
    "concrete, two layers of 64": of_table("concrete", 64, 64),
    "red wine, one layer of 50": of_table("wine_red", 50),
}


def mean_loss(task: Task, params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    outputs = task.apply_fn(params, x)
    if task.kind == "gaussian":
        return 0.5 * jnp.mean(jnp.square(outputs - y))
    return optax.softmax_cross_entropy_with_integer_labels(outputs, y).mean()


@functools.partial(jax.jit, static_argnums=(0, 1))
def trained(task: Task, decay: Any, strength: Any, seed: Any, data: tuple) -> tuple:
    """The parameters and the state at the end; ``decay(strength)`` stands before Adam."""
    x, y = data[:2]
    steps = task.epochs * (len(x) // task.batch_size)
    rate = optax.cosine_decay_schedule(task.rate, steps, alpha=0.01)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), 1), task.epochs)
    return training.run(
        functools.partial(mean_loss, task),
        optax.chain(decay(strength), optax.adam(rate)),
        task.initial(seed, data),
        keys,
        x,
        y,
        task.batch_size,
    )[0]


def nll(task: Task, params: Any, noise: Any, x: jax.Array, y: jax.Array) -> float:
    loss = mean_loss(task, params, x, y)
    if task.kind == "gaussian":
        loss = 0.5 * jnp.log(2 * jnp.pi * noise) + loss / noise
    return float(loss)


def both(task: Task, params: Any, noise: Any, data: tuple) -> tuple[float, float]:
    """The NLL of validation and of test data."""
    return nll(task, params, noise, *data[2:4]), nll(task, params, noise, *data[4:6])


def grid(task: Task, seed: int, data: tuple) -> dict[str, tuple[float, float]]:
    """NLL and seconds of no decay, of the best on validation data, and of the best on test data."""

    def plain(strength):
        return optax.add_decayed_weights(strength / len(data[0]))

    found, seconds = {}, []
    for strength in (0.0, *(s * (0.1 if task.kind == "gaussian" else 1.0) for s in GRID)):
        start = time.perf_counter()
        params, _ = jax.block_until_ready(trained(task, plain, strength, seed, data))
        seconds.append(time.perf_counter() - start)
        noise = 2 * mean_loss(task, params, *data[:2])
        found[strength] = both(task, params, noise, data)
    chosen, best = (min(found, key=lambda s, i=i: found[s][i]) for i in (0, 1))
    print("grid", {strength: pair[1] for strength, pair in found.items()}, flush=True)
    names = {"no decay": 0.0, "grid, by validation data": chosen, "grid, by the test data": best}
    # The first training was compiled, too.
    return {name: (found[s][1], float(np.mean(seconds[1:]))) for name, s in names.items()}


def by_evidence(task: Task, seed: int, data: tuple) -> dict[str, tuple[float, float]]:
    """NLL and seconds for each overcount."""

    def found_decay(a):
        return l2m.evidence_weight_decay(
            num_data=len(data[0]),
            batch_size=task.batch_size,
            likelihood=task.kind,
            overcount=a,
        )

    found, seconds = {}, []
    for a in OVERCOUNTS:
        start = time.perf_counter()
        params, state = jax.block_until_ready(trained(task, found_decay, a, seed, data))
        seconds.append(time.perf_counter() - start)
        noise = state[0].noise_variance if task.kind == "gaussian" else 1.0
        found[f"**evidence**, a = {a:g}"] = both(task, params, noise, data)[1]
        deltas = [float(layer["kernel"]) for layer in state[0].prior_precision.values()]
        print("evidence", a, np.round(deltas, 2), float(state[0].log_evidence), flush=True)
    return {name: (nll, float(np.mean(seconds[1:]))) for name, nll in found.items()}


def compare(task: Task, seed: int) -> dict[str, tuple[float, float]]:
    data = task.data(seed)
    return grid(task, seed, data) | by_evidence(task, seed, data)


def rows(task: Task) -> dict[str, list[dict[str, float]]]:
    """Each method's figures under every seed."""
    table: dict[str, list[dict[str, float]]] = {}
    for seed in SEEDS:
        found = compare(task, seed)
        for method, (of_method, seconds) in found.items():
            ratio = seconds / found["no decay"][1]
            figures = {"test NLL": of_method, "seconds, over those of no decay": ratio}
            table.setdefault(method, []).append(figures)
    return table


def main() -> None:
    tables = {}
    for name, task in TASKS.items():
        tables[name] = rows(task)
        print(name, tables[name], flush=True)
    report.write(
        "evidence",
        tables,
        f"{len(SEEDS)} seeds of split and training; ± is the deviation over them",
    )


if __name__ == "__main__":
    main()
