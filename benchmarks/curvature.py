"""When is the curvature that L2M reads the one that it stands for?

A perceptron 784-64-10 on 5,000 Fashion-MNIST images. F, as read from the state of an optimizer, is
set against the exact diagonals of the empirical Fisher (EF) and of the Fisher, which for a softmax
is also the generalised Gauss-Newton matrix (GGN): the ratio of their sums over all weights, and the
correlation of their logarithms. One thing is changed at a time: when training is stopped, how long
it is, batch size, decay, optimizer, learning rate. Beside them stand the likelihood of the mode and
of the last layer's prediction, and what `diagnose` warns of, which sees the state alone.
Run: `make bench-curvature`; `FAST=1` for one seed.
"""

import functools
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import report
from training import run

import l2m_optax as l2m
from l2m_optax import metrics

DATA = Path(__file__).parents[1] / "notebooks" / "data" / "fashion_mnist_subset.npz"
SEEDS = range(1 if report.FAST else 3)
NUM_DATA = 5_000


class Setting(NamedTuple):
    """One way to train; `stop` is after how many of the epochs that the rate is annealed over."""

    epochs: int = 30
    stop: int | None = None
    batch_size: int = 128
    decay: float = 0.999
    optimizer: str = "adam"
    rate: float = 1e-3
    annealed: bool = True
    centered: bool = False


BASE = Setting()
STUDIES = {
    "stopped, of 30 epochs": {
        f"after {stop}": BASE._replace(stop=stop) for stop in (1, 3, 10, 20, 25, 30)
    },
    "trained, all of the rate's way": {
        f"{epochs} epochs": BASE._replace(epochs=epochs) for epochs in (1, 3, 10, 30, 100, 300)
    },
    "batch size": {
        f"{size}": BASE._replace(batch_size=size, epochs=epochs)
        for size, epochs in ((16, 10), (64, 30), (128, 30), (512, 100), (2_000, 300))
    },
    "decay of the squares": {
        f"{decay}": BASE._replace(decay=decay) for decay in (0.9, 0.99, 0.999, 0.9999)
    },
    "optimizer": {
        name: BASE._replace(optimizer=name)
        for name in ("adam", "adamw", "rmsprop", "adabelief", "nadam", "lamb", "sgd, tracked")
    },
    "learning rate": {
        "1e-3, annealed": BASE,
        "1e-3, constant": BASE._replace(annealed=False),
        "1e-2, annealed": BASE._replace(rate=1e-2),
        "1e-2, constant": BASE._replace(rate=1e-2, annealed=False),
        "1e-4, annealed": BASE._replace(rate=1e-4),
        "1e-4, annealed, centered": BASE._replace(rate=1e-4, centered=True),
    },
}


def initial(key):
    one, two = jax.random.split(key)
    return {
        "body": {"kernel": jax.random.normal(one, (784, 64)) / 28.0, "bias": jnp.zeros(64)},
        "head": {"kernel": jax.random.normal(two, (64, 10)) / 8.0, "bias": jnp.zeros(10)},
    }


def network(params, x):
    hidden = jax.nn.relu(x @ params["body"]["kernel"] + params["body"]["bias"])
    return hidden @ params["head"]["kernel"] + params["head"]["bias"]


def loss(params, x, y):
    """Mean negative log-likelihood of a batch, or that of one example."""
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(network(params, x), y))


def optimizer(setting: Setting) -> optax.GradientTransformation:
    steps = setting.epochs * (NUM_DATA // setting.batch_size)
    rate = optax.cosine_decay_schedule(setting.rate, steps) if setting.annealed else setting.rate
    if setting.optimizer == "rmsprop":
        return optax.rmsprop(rate, decay=setting.decay, bias_correction=True)
    if setting.optimizer == "sgd, tracked":
        sgd = optax.sgd(optax.cosine_decay_schedule(0.1, steps), momentum=0.9)
        return optax.chain(l2m.track_second_moment(setting.decay), sgd)
    return getattr(optax, setting.optimizer)(rate, b2=setting.decay)


@functools.partial(jax.jit, static_argnames="setting")
def train(key, x, y, setting: Setting):
    keys = jax.random.split(jax.random.fold_in(key, 1), setting.epochs)[: setting.stop]
    return run(loss, optimizer(setting), initial(key), keys, x, y, setting.batch_size)[0]


@jax.jit
def empirical_fisher(params, x, y):
    example = lambda p, e: loss(p, e[0], e[1])  # noqa: E731
    return l2m.jacobians.empirical_fisher(
        example, params, (x, y), num_data=NUM_DATA, chunk_size=500
    )


@jax.jit
def fisher(params, x):
    """The expectation of squared gradients over labels, by the model's own probabilities."""

    def weighted(p, example):
        x, label = example
        weight = jnp.sqrt(jax.lax.stop_gradient(jax.nn.softmax(network(p, x))[label]))
        return weight * loss(p, x, label)

    def of_label(label):
        labels = jnp.full(len(x), label)
        return l2m.jacobians.empirical_fisher(
            weighted, params, (x, labels), num_data=NUM_DATA, chunk_size=500
        )

    return jax.tree.map(lambda f: f.sum(0), jax.lax.map(of_label, jnp.arange(10)))


CONCERNS = {
    "looks back over": "early training",
    "batches, so that": "few batches",
    "mean gradient": "mean gradient",
    "exactly 0": "zeros",
}


def concerns(diagnosis: l2m.posterior.Diagnosis) -> str:
    """What `diagnose` warns of, in short."""
    warnings = diagnosis.warnings()
    short = [word for text, word in CONCERNS.items() if any(text in w for w in warnings)]
    return ", ".join(short) or "nothing"


def figures(setting: Setting, seed: int, data) -> dict[str, float | str]:
    x, y = data["x_train"], data["y_train"]
    params, state = train(jax.random.key(seed), x, y, setting)
    moment = l2m.second_moment(state, params, tx=optimizer(setting))
    posterior = l2m.laplace(
        params,
        moment,
        num_data=NUM_DATA,
        batch_size=setting.batch_size,
        centered=setting.centered,
    )
    against = {
        name: l2m.diagnose(posterior, moment, reference=reference).total
        for name, reference in {
            "EF": empirical_fisher(params, x, y),
            "GGN": fisher(params, x),
        }.items()
    }
    last, _ = l2m.fit_prior_precision(l2m.restrict(posterior, "head"))
    draws = l2m.linearized(jax.random.key(0), network, last, data["x_test"], num_samples=32)
    probs = {"mode": jax.nn.softmax(network(params, data["x_test"]))}
    probs["L2M"] = l2m.classification(draws).probs
    nll = {
        name: float(metrics.negative_log_likelihood(p, data["y_test"])) for name, p in probs.items()
    }
    return {
        "training loss": float(loss(params, x, y)),
        "F / EF": float(against["EF"].ratio),
        "corr. EF": float(against["EF"].log_correlation),
        "F / GGN": float(against["GGN"].ratio),
        "corr. GGN": float(against["GGN"].log_correlation),
        "NLL, mode": nll["mode"],
        "NLL, L2M": nll["L2M"],
        "diagnose warns of": concerns(l2m.diagnose(posterior, moment)),
    }


def main() -> None:
    arrays = np.load(DATA)
    data = {name: jnp.asarray(arrays[name], jnp.int32) for name in ("y_train", "y_test")}
    for name in ("x_train", "x_test"):
        data[name] = jnp.asarray(arrays[name].reshape(len(arrays[name]), -1) / 255.0, jnp.float32)
    tables = {}
    for study, settings in STUDIES.items():
        for name, setting in settings.items():
            rows = [figures(setting, seed, data) for seed in SEEDS]
            tables.setdefault(study, {})[name] = rows
            print(study, name, flush=True)
    report.write("curvature", tables, f"{len(SEEDS)} seeds; ± is the deviation over them")


if __name__ == "__main__":
    main()
