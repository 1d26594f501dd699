"""A weight decay by the evidence of one training, beside grids of decays.

    make bench-evidence

The test NLL of the network itself, without a posterior. A grid is seven trainings and one without a
decay; the one of the best NLL on validation data is taken, or that on the test data. L2 adds the
decay to the gradient before Adam, AdamW subtracts it behind. "a" is the overcount, by which F is
divided. For numbers the targets are standardised, and the noise is the mean squared training
residual, for `evidence_weight_decay` its own. The seconds are those of the processor, without
compilation. Names of tasks as arguments run these alone, and keep the record of the others.
`SEEDS=3` runs three of five seeds of split and training.
"""

import functools
import itertools
import json
import os
import sys
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
from sklearn.datasets import load_breast_cancer, load_digits, load_wine

import l2m_optax as l2m

SEEDS = 1 if report.FAST else int(os.environ.get("SEEDS", "5"))
GRID = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
GRID_BEHIND = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
OVERCOUNTS = (1.0, 10.0, 30.0)


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


def mislabelled_digits(seed: int) -> tuple:
    """`digits`, a tenth of whose labels are drawn anew."""
    x, y, *others = digits(seed)
    rng, parts = np.random.default_rng(seed), [x, y, *others]
    for i in (1, 3, 5):
        drawn = rng.integers(0, 10, len(parts[i]), dtype=np.int32)
        parts[i] = np.where(rng.random(len(drawn)) < 0.1, drawn, parts[i])
    return tuple(parts)


def measured(load: Callable, seed: int) -> tuple:
    """Standardised by what is trained on; 30% for tests, 10% for validation."""
    x, y = load(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(x))
    test, val, train = np.split(order, [int(0.3 * len(x)), int(0.4 * len(x))])
    arrays = np.float32((x - x[train].mean(0)) / x[train].std(0)), y.astype(np.int32)
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
    shapes = itertools.pairwise(sizes)
    return initial_layers({f"layer{i}": shape for i, shape in enumerate(shapes)}, seed)


def initial_layers(shapes: dict[str, tuple[int, int]], seed: Any) -> Any:
    keys = jax.random.split(jax.random.key(seed), len(shapes) + 1)
    return {
        name: {
            "kernel": jax.random.normal(key, (n, m)) * (2 / n) ** 0.5,
            "bias": jnp.zeros(m),
        }
        for key, (name, (n, m)) in zip(keys, shapes.items(), strict=False)
    }


def initial_of_images(seed: Any, data: tuple) -> Any:
    return images.initial("mlp", jax.random.key(seed))


def convolution(layer: Any, x: jax.Array) -> jax.Array:
    """3 x 3, stride 2, of (n, side, side, channels), as one product: in a scan it is faster so."""
    side = x.shape[1]
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifted = [x[:, i : i + side : 2, j : j + side : 2] for i in range(3) for j in range(3)]
    return jax.nn.relu(jnp.concatenate(shifted, axis=-1) @ layer["kernel"] + layer["bias"])


def convolutional(params: Any, x: jax.Array) -> jax.Array:
    x = convolution(params["conv0"], x.reshape(len(x), 28, 28, 1))
    x = convolution(params["conv1"], x).reshape(len(x), -1)
    return perceptron({name: params[name] for name in ("dense0", "dense1")}, x)


def initial_convolutional(seed: Any, data: tuple) -> Any:
    shapes = {"conv0": (9, 8), "conv1": (72, 16), "dense0": (784, 64), "dense1": (64, 10)}
    return initial_layers(shapes, seed)


def of_table(name: str, *widths: int, epochs: int = 200) -> Task:
    initial = functools.partial(initial_perceptron, (*widths, 1))
    data = functools.partial(table, name)
    return Task(data, initial, perceptron, epochs, 32, 1e-2, "gaussian")


def of_classes(data: Callable[[int], tuple], *widths: int, epochs: int, batch_size: int) -> Task:
    initial = functools.partial(initial_perceptron, widths)
    return Task(data, initial, perceptron, epochs, batch_size, 1e-3)


TASKS = {
    "Fashion-MNIST, 5,000 images, MLP": Task(
        clothes, initial_of_images, images.network, 60, 128, 2e-3
    ),
    "Fashion-MNIST, 5,000 images, CNN": Task(
        clothes, initial_convolutional, convolutional, 60, 128, 2e-3
    ),
    "digits, MLP": of_classes(digits, 128, 128, 10, epochs=100, batch_size=64),
    "digits, a tenth of the labels by chance, MLP": of_classes(
        mislabelled_digits, 128, 128, 10, epochs=100, batch_size=64
    ),
    "breast cancer, MLP": of_classes(
        functools.partial(measured, load_breast_cancer), 64, 64, 2, epochs=150, batch_size=32
    ),
    "wines of three growers, MLP": of_classes(
        functools.partial(measured, load_wine), 64, 64, 3, epochs=200, batch_size=16
    ),
    "concrete, one layer of 50": of_table("concrete", 50),
    "concrete, two layers of 64": of_table("concrete", 64, 64),
    "concrete, three layers of 64": of_table("concrete", 64, 64, 64),
    "red wine, one layer of 50": of_table("wine_red", 50),
}


def mean_loss(task: Task, params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    outputs = task.apply_fn(params, x)
    if task.kind == "gaussian":
        return 0.5 * jnp.mean(jnp.square(outputs - y))
    return optax.softmax_cross_entropy_with_integer_labels(outputs, y).mean()


def added(strength: Any, rate: optax.Schedule, task: Task) -> optax.GradientTransformation:
    """L2: the decay goes through Adam. The strength is a prior precision where the noise is 1."""
    return optax.chain(optax.add_decayed_weights(strength), optax.adam(rate))


def behind(strength: Any, rate: optax.Schedule, task: Task) -> optax.GradientTransformation:
    return optax.adamw(rate, weight_decay=strength)


def tuned(
    structure: str, strength: Any, rate: optax.Schedule, task: Task
) -> optax.GradientTransformation:
    """The strength is the overcount."""
    evidence = l2m.evidence_weight_decay(
        num_data=len(task.data(0)[0]),
        batch_size=task.batch_size,
        likelihood=task.kind,
        overcount=strength,
        structure=structure,
    )
    return optax.chain(evidence, optax.adam(rate))


diagonal, kronecker = (functools.partial(tuned, name) for name in ("diagonal", "kronecker"))


@functools.partial(jax.jit, static_argnums=(0, 1))
def trained(task: Task, optimizer: Callable, strength: Any, seed: Any, data: tuple) -> tuple:
    """The parameters and the state at the end of a training."""
    x, y = data[:2]
    steps = task.epochs * (len(x) // task.batch_size)
    rate = optax.cosine_decay_schedule(task.rate, steps, alpha=0.01)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), 1), task.epochs)
    return training.run(
        functools.partial(mean_loss, task),
        optimizer(strength, rate, task),
        task.initial(seed, data),
        keys,
        x,
        y,
        task.batch_size,
    )[0]


@functools.cache
def program(task: Task, optimizer: Callable) -> Callable:
    """`trained`, compiled for data of the size that each seed has, and run once."""
    compiled = trained.lower(task, optimizer, 1.0, 0, task.data(0)).compile()
    jax.block_until_ready(compiled(1.0, 0, task.data(0)))  # the first is slower
    return compiled


def timed(task: Task, optimizer: Callable, strength: float, seed: int, data: tuple) -> tuple:
    """The parameters, the state, and the seconds of the processor."""
    run = program(task, optimizer)
    start = time.process_time()
    params, state = jax.block_until_ready(run(strength, seed, data))
    return params, state, time.process_time() - start


def nll(task: Task, params: Any, noise: Any, x: jax.Array, y: jax.Array) -> float:
    loss = mean_loss(task, params, x, y)
    if task.kind == "gaussian":
        loss = 0.5 * jnp.log(2 * jnp.pi * noise) + loss / noise
    return float(loss)


def both(task: Task, params: Any, noise: Any, data: tuple) -> tuple[float, float]:
    """The NLL of validation and of test data."""
    return nll(task, params, noise, *data[2:4]), nll(task, params, noise, *data[4:6])


class Found(NamedTuple):
    """NLL on validation and on test data, the seconds of the training, and `nats_per_parameter`."""

    validation: float
    test: float
    seconds: float
    nats: float = float("nan")


def of_strength(task: Task, seed: int, data: tuple, optimizer: Callable, strength: float) -> Found:
    params, _, seconds = timed(task, optimizer, strength, seed, data)
    return Found(*both(task, params, 2 * mean_loss(task, params, *data[:2]), data), seconds)


def grids(task: Task, seed: int, data: tuple) -> dict[str, Found]:
    """No decay, and of each grid the best on validation data and on test data."""
    run = functools.partial(of_strength, task, seed, data)
    none, unit = run(added, 0.0), 1.0 / len(data[0])
    unit *= 0.1 if task.kind == "gaussian" else 1.0
    table = {"no decay": none}
    for name, optimizer, strengths in (
        ("L2", added, [s * unit for s in GRID]),
        ("AdamW", behind, GRID_BEHIND),
    ):
        tried = [none, *(run(optimizer, strength) for strength in strengths)]
        print(name, [round(one.test, 4) for one in tried], flush=True)
        table[f"{name}, by validation data"] = min(tried)
        table[f"{name}, by the test data"] = min(tried, key=lambda one: one.test)
    return table


def by_evidence(task: Task, seed: int, data: tuple) -> dict[str, Found]:
    table = {}
    for name, optimizer, a in (
        *((f"**evidence**, a = {a:g}", diagonal, a) for a in OVERCOUNTS),
        ("**evidence**, Kronecker, a = 1", kronecker, 1.0),
    ):
        params, (state, _), seconds = timed(task, optimizer, a, seed, data)
        noise = state.noise_variance if task.kind == "gaussian" else 1.0
        nats = float("nan") if task.kind == "gaussian" else float(state.nats_per_parameter)
        table[name] = Found(*both(task, params, noise, data), seconds, nats)
        deltas = [float(layer["kernel"]) for layer in state.prior_precision.values()]
        gamma = float(sum(jax.tree.leaves(state.effective_parameters)))
        print(name, round(table[name].test, 4), np.round(deltas, 2), gamma, nats, flush=True)
    return table


def rows(task: Task) -> dict[str, list[dict[str, float]]]:
    """Each method's figures under every seed."""
    table: dict[str, list[dict[str, float]]] = {}
    for seed in range(SEEDS):
        data = task.data(seed)
        found = grids(task, seed, data) | by_evidence(task, seed, data)
        for method, one in found.items():
            none = found["no decay"]
            figures = {
                "test NLL": one.test,
                "less that of no decay": one.test - none.test,
                "seconds, over those of no decay": one.seconds / none.seconds,
            }
            if task.kind == "categorical":
                figures["nats a determined parameter"] = one.nats
            table.setdefault(method, []).append(figures)
    return table


def main() -> None:
    path = report.RESULTS / "evidence.json"
    names = sys.argv[1:] or list(TASKS)
    tables = json.loads(path.read_text())["tables"] if path.exists() else {}
    for name in names:
        tables = {head: table for head, table in tables.items() if _task(head) != name}
        tables[f"{name} ({SEEDS} {'seed' if SEEDS == 1 else 'seeds'})"] = rows(TASKS[name])
        order = list(TASKS)
        tables = dict(sorted(tables.items(), key=lambda item: order.index(_task(item[0]))))
        report.write(
            "evidence", tables, "seeds of split and training; ± is the deviation over them"
        )


def _task(heading: str) -> str:
    return heading.rsplit(" (", 1)[0]


if __name__ == "__main__":
    main()
