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
from l2m_optax.tuning._leave_one_out import joint_covariance, softmax_root

CLOTHES = Path(__file__).parents[1] / "notebooks" / "data" / "fashion_mnist_subset.npz"
INPUTS = 300
DRAWS = 64
GRID = np.logspace(-5, 1, 37)
KEY = jax.random.key(0)


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


def deviations(posterior, inputs, key=KEY) -> jax.Array:
    """Draws of the linearised logits at temperature 1, less the mean's."""
    unit = posterior._replace(temperature=jnp.ones(()))
    drawn = l2m.linearized(key, apply_fn, unit, inputs, num_samples=DRAWS, antithetic=True)
    return drawn - apply_fn(posterior.mean, inputs)


class Case(NamedTuple):
    """One posterior and all that a rule may look at."""

    task: Task
    whole: l2m.posterior.Posterior
    posterior: l2m.posterior.Posterior

    @property
    def few(self) -> Data:
        """Some training inputs; they were shuffled before."""
        return jax.tree.map(lambda a: a[:INPUTS], self.task.train)


def leave_one_out(case: Case) -> float:
    """`fit_temperature`; 0 stands for the mode."""
    info = l2m.fit_temperature(
        apply_fn,
        case.posterior,
        *case.few,
        num_data=len(case.task.train.y),
        trained=case.whole,
    ).info
    return float(info.value)


def validation(case: Case) -> float:
    info = l2m.tune(apply_fn, case.posterior, *case.task.validation, num_samples=DRAWS).info
    return float(info.value)


def full_covariance(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues of the whitened matrix, and the logits' variances under the full posterior."""
    x = case.few.x
    weight = len(case.task.train.y) / len(x)
    root = np.float64(softmax_root(apply_fn(case.posterior.mean, x))) * math.sqrt(weight)
    prior = case.posterior._replace(data_scale=jnp.zeros(()))
    gram = np.float64(joint_covariance(prior, apply_fn, x))
    size = len(x) * 10
    cross = np.einsum("iak,iajb->ikjb", root, gram, optimize=True).reshape(size, size)
    whitened = np.einsum("sjb,jbl->sjl", cross.reshape(size, -1, 10), root).reshape(size, size)
    lower = np.linalg.cholesky(whitened + np.eye(size))
    known = np.square(np.linalg.solve(lower, cross)).sum(axis=0)
    return np.linalg.eigvalsh(whitened), np.diag(gram.reshape(size, size)) - known


def trace_ratios(case: Case) -> tuple[float, float, float]:
    """Ratios of full to diagonal: tr HΣ at one prior, effective parameters at two, variances."""
    values, variances = full_covariance(case)
    posterior = case.posterior
    delta = float(posterior.prior_precision)
    free = jax.tree.leaves(l2m.posterior.free_mean(posterior))
    squares = sum(float(jnp.sum(jnp.square(leaf))) for leaf in free)

    def gamma(other: float) -> float:
        scaled = np.maximum(values, 0.0) * delta / other
        return float(np.sum(scaled / (scaled + 1.0)))

    low, high = 1e-9, 1e9
    for _ in range(100):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if gamma(middle) > middle * squares else (low, middle)
    unit = posterior._replace(temperature=jnp.ones(()))
    x = case.few.x
    root = np.float64(softmax_root(apply_fn(posterior.mean, x)))
    covariance = np.float64(l2m.output_covariance(apply_fn, unit, x))
    rise = len(case.task.train.y) / len(x) * np.einsum("nka,nkl,nla->", root, covariance, root)
    return (
        gamma(delta) / rise,
        gamma(low) / float(l2m.tuning.effective_parameters(posterior)),
        float(variances.sum() / np.einsum("nkk->", covariance)),
    )


def elbo(case: Case) -> float:
    """The best evidence lower bound over T: expected log-likelihood less the KL divergence."""
    posterior, few = case.posterior, jax.tree.map(lambda a: a[:1000], case.task.train)
    weight = len(case.task.train.y) / len(few.y)
    logits, moves = apply_fn(posterior.mean, few.x), deviations(posterior, few.x)
    prior = float(posterior.prior_precision)
    variances = l2m.posterior.free_variance(posterior._replace(temperature=jnp.ones(())))
    number = sum(v.size for v in jax.tree.leaves(variances))
    trace = prior * float(sum(jnp.sum(v) for v in jax.tree.leaves(variances)))

    def bound(temperature: float) -> float:
        drawn = logits + math.sqrt(temperature) * moves
        losses = optax.softmax_cross_entropy_with_integer_labels(
            drawn, jnp.broadcast_to(few.y, drawn.shape[:2])
        )
        divergence = 0.5 * (temperature * trace - number * math.log(temperature))
        return -weight * float(losses.mean(axis=0).sum()) - divergence

    return float(GRID[np.argmax([bound(t) for t in GRID])])


class Judge:
    """Scores of one posterior on the test data at any temperature; 0 is the mode."""

    def __init__(self, case: Case):
        self.labels = case.task.test.y
        self.logits = apply_fn(case.posterior.mean, case.task.test.x)
        self.moves = deviations(case.posterior, case.task.test.x, jax.random.key(1))

    def __call__(self, temperature: float) -> tuple[float, float]:
        probs = l2m.classification(self.logits + math.sqrt(temperature) * self.moves).probs
        return (
            float(metrics.negative_log_likelihood(probs, self.labels)),
            float(metrics.expected_calibration_error(probs, self.labels)),
        )


def temperatures(case: Case, judge: Judge) -> Iterator[tuple[str, float]]:
    yield "mode", 0.0
    yield "T = 1", 1.0
    yield "ELBO", elbo(case)
    rise, gammas, variances = trace_ratios(case)
    yield "γ of full over γ of diagonal, each with its own prior", gammas
    yield "tr HΣ of full over diagonal, one prior", rise
    yield "variances of full over diagonal, one prior", variances
    yield "**leave-one-out: `fit_temperature`**", leave_one_out(case)
    yield "validation: `tune`", validation(case)
    yield "best on the test data", float(min([0.0, *GRID], key=lambda t: judge(t)[0]))


def study(make: Callable[[], Task], seeds: int) -> dict[str, dict[str, np.ndarray]]:
    """By layers and rule, the means over seeds of T, NLL and ECE."""
    task = make()
    rows: dict[str, dict[str, list]] = {"all layers": {}, "last layer": {}}
    for seed in range(seeds):
        whole = train(task, seed)
        last = l2m.restrict(whole, lambda path: path[0] == 2)
        cases = {"all layers": whole, "last layer": l2m.fit_prior_precision(last).posterior}
        for layers, posterior in cases.items():
            case = Case(task, whole, posterior)
            judge = Judge(case)
            for rule, temperature in temperatures(case, judge):
                outcome = (temperature, *judge(temperature))
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
