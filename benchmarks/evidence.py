"""A weight decay by the evidence of one training, beside a grid of L2 decays.

    make bench-evidence

The test NLL of the network itself, without a posterior. The grid is seven trainings and one
without a decay; the one of the best NLL on validation data is taken, or that on the test data.
"a" is the overcount, by which F is divided. For numbers the targets are standardised, and the noise
is the mean squared training residual, for `evidence_weight_decay` its own. `FAST=1` for one seed.
"""

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import images
import jax
import jax.numpy as jnp
import numpy as np
import optax
import report
import training

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
    sizes = (data[0].shape[1], *widths, 1)
    keys = jax.random.split(jax.random.key(seed), len(sizes))
    return {
        f"layer{i}": {
            "kernel": jax.random.normal(key, (n, m)) * (2 / n) ** 0.5,
            "bias": jnp.zeros(m),
        }
        for i, (key, n, m) in enumerate(zip(keys, sizes, sizes[1:], strict=False))
    }


def of_images(kind: str) -> Task:
    initial = lambda seed, data: images.initial(kind, jax.random.key(seed))  # noqa: E731
    return Task(clothes, initial, images.network, 60, 128, 2e-3)


def of_table(name: str, *widths: int, epochs: int = 200) -> Task:
    initial = functools.partial(initial_perceptron, widths)
    data = functools.partial(table, name)
    return Task(data, initial, perceptron, epochs, 32, 1e-2, "gaussian")


TASKS = {
    "Fashion-MNIST, 5,000 images, MLP": of_images("mlp"),
    "Fashion-MNIST, 5,000 images, CNN": of_images("cnn"),
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


def grid(task: Task, seed: int, data: tuple) -> dict[str, dict[str, float]]:
    """No decay, the best of the grid on validation data, and on test data."""

    def plain(strength):
        return optax.add_decayed_weights(strength / len(data[0]))

    found, start = {}, time.perf_counter()
    for strength in (0.0, *(s * (0.1 if task.kind == "gaussian" else 1.0) for s in GRID)):
        params, _ = trained(task, plain, strength, seed, data)
        noise = 2 * mean_loss(task, params, *data[:2])
        found[strength] = both(task, params, noise, data)
    seconds = (time.perf_counter() - start) / len(found)
    chosen, best = (min(found, key=lambda s, i=i: found[s][i]) for i in (0, 1))
    rows = {"no decay": 0.0, "grid, validation": chosen, "grid, test": best}
    return {
        name: {"test NLL": found[s][1], "δ": f"{s:g}", "seconds": seconds}
        for name, s in rows.items()
    }


def by_evidence(task: Task, seed: int, data: tuple, overcount: float) -> dict[str, Any]:
    def found_decay(a):
        return l2m.evidence_weight_decay(
            num_data=len(data[0]),
            batch_size=task.batch_size,
            likelihood=task.kind,
            overcount=a,
        )

    start = time.perf_counter()
    params, state = jax.block_until_ready(trained(task, found_decay, overcount, seed, data))
    seconds = time.perf_counter() - start
    deltas = {name: layer["kernel"] for name, layer in state[0].prior_precision.items()}
    noise = state[0].noise_variance if task.kind == "gaussian" else 1.0
    return {
        "test NLL": both(task, params, noise, data)[1],
        "δ": ", ".join(f"{float(delta):.3g}" for delta in deltas.values()),
        "seconds": seconds,
        "log evidence": float(state[0].log_evidence),
    }


def rows(task: Task, seed: int) -> Iterator[tuple[str, dict[str, Any]]]:
    data = task.data(seed)
    yield from grid(task, seed, data).items()
    for overcount in OVERCOUNTS:
        yield f"evidence, a = {overcount:g}", by_evidence(task, seed, data, overcount)


def main(names=tuple(TASKS)) -> None:
    for name in names:
        for seed in SEEDS:
            for row, figures in rows(TASKS[name], seed):
                print(name, seed, row, figures, flush=True)


if __name__ == "__main__":
    import sys

    main([name for name in TASKS if any(word in name for word in sys.argv[1:] or [""])])
