"""Tasks of ordinary users: their data, networks and optimizers, trained once and kept on disk.

`trained(name, seed)` is a `Task`: what a person holds when training is over, and the data.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import everyday_data
import everyday_networks
import flax.linen as nn
import images
import jax
import jax.numpy as jnp
import numpy as np
import optax
import training
from everyday_data import ALPHABET, LENGTH, Data
from everyday_networks import CNN, MLP, NormalisedCNN, Transformer
from measure import cached
from sklearn import datasets

import l2m_optax as l2m

SEEDS = 3
TRAINING = __file__, everyday_data.__file__, everyday_networks.__file__, training.__file__


class Task(NamedTuple):
    """A trained network; `apply_fn(params, x)` predicts with running statistics where it has any.

    `kind` is ``"categorical"`` or ``"gaussian"``; `prior_mean` is None but after fine-tuning.
    """

    name: str
    seed: int
    kind: str
    apply_fn: Callable[[Any, Any], jax.Array]
    params: Any
    opt_state: Any
    tx: optax.GradientTransformation
    data: Data
    batch_size: int
    loss_scale: float
    prior_mean: Any = None


class Recipe(NamedTuple):
    load: Callable[[int], Data]
    network: nn.Module
    epochs: int
    batch_size: int = 32
    make_tx: Callable[[int], optax.GradientTransformation] = lambda steps: optax.adam(1e-3)
    pretrain: Callable[[int], Any] | None = None  # the seed to weights, without those of the head


def decayed(rate: float) -> Callable[[int], optax.GradientTransformation]:
    """Adam whose rate falls to zero."""
    return lambda steps: optax.adam(optax.cosine_decay_schedule(rate, steps))


def constant(rate: float) -> Callable[[int], optax.GradientTransformation]:
    return lambda steps: optax.adam(rate)


def with_decay(steps: int) -> optax.GradientTransformation:
    return optax.adamw(1e-3, weight_decay=1e-2)


def for_text(steps: int) -> optax.GradientTransformation:
    """As transformers are trained, and the moment kept from before the clipping."""
    rate = optax.warmup_cosine_decay_schedule(0.0, 3e-3, steps // 10, steps)
    return optax.chain(
        l2m.track_second_moment(0.999),
        optax.clip_by_global_norm(1.0),
        optax.adamw(rate, weight_decay=1e-2),
    )


def pretrained(seed: int) -> Any:
    """The hidden layers of the perceptron that knows clothes."""
    params = trained("Fashion-MNIST MLP, 20 epochs", seed).params
    return {name: layer for name, layer in params.items() if name != "Dense_2"}


CANCER, WINE, IRIS, DIABETES = (
    everyday_data.packaged(load)
    for load in (
        datasets.load_breast_cancer,
        datasets.load_wine,
        datasets.load_iris,
        datasets.load_diabetes,
    )
)
CLASSIFIERS = {
    "digits CNN, 15 epochs": Recipe(everyday_data.digits, CNN(), 15, 64, constant(2e-3)),
    "digits CNN, 60 epochs": Recipe(everyday_data.digits, CNN(), 60, 64, constant(2e-3)),
    "digits MLP, interpolates": Recipe(everyday_data.digits, MLP((128, 128, 10)), 150, 64),
    "digits CNN, BatchNorm, Dropout, AdamW": Recipe(
        everyday_data.digits, NormalisedCNN(), 40, 64, with_decay
    ),
    "breast cancer": Recipe(CANCER, MLP((64, 32, 2)), 60),
    "wine": Recipe(WINE, MLP((32, 3)), 50, 16, constant(1e-2)),
    "iris": Recipe(IRIS, MLP((32, 32, 3)), 60, 16, constant(1e-2)),
    "10 noisy classes": Recipe(everyday_data.noisy_classes, MLP((128, 128, 10)), 40),
    "red wine, 3 classes": Recipe(everyday_data.tasters, MLP((64, 64, 3)), 60),
    "Fashion-MNIST MLP, 20 epochs": Recipe(
        everyday_data.fashion, MLP((128, 128, 10)), 20, 128, decayed(2e-3)
    ),
    "Fashion-MNIST MLP, 100 epochs": Recipe(everyday_data.fashion, MLP((128, 128, 10)), 100, 128),
    "Fashion-MNIST CNN, 10 epochs": Recipe(
        everyday_data.fashion, CNN((8, 16)), 10, 128, decayed(3e-3)
    ),
    "letters, transformer": Recipe(
        everyday_data.text, Transformer(len(ALPHABET) + 1, LENGTH), 12, 16, for_text
    ),
    "MNIST from Fashion-MNIST, fine-tuned": Recipe(
        everyday_data.few_digits, MLP((128, 128, 10)), 40, 32, constant(3e-4), pretrained
    ),
}
REGRESSIONS = {
    f"{title}, {layers}": Recipe(load, MLP((*widths, 1)), epochs, 32, constant(3e-3))
    for title, load, epochs in (
        ("friedman1", everyday_data.friedman, 100),
        ("diabetes", DIABETES, 60),
        ("concrete", everyday_data.measured("concrete"), 150),
        ("red wine", everyday_data.measured("wine_red"), 60),
    )
    for layers, widths in (("one layer", (50,)), ("three layers", (64, 64, 64)))
}
RECIPES = CLASSIFIERS | REGRESSIONS


def kind(data: Data) -> str:
    return "categorical" if np.issubdtype(data.y.dtype, np.integer) else "gaussian"


def mean_loss(outputs, y) -> jax.Array:
    """Cross-entropy over classes, or squared errors, over all observations of a batch."""
    if jnp.issubdtype(y.dtype, jnp.integer):
        return optax.softmax_cross_entropy_with_integer_labels(outputs, y).mean()
    return jnp.mean(jnp.square(outputs - y))


@functools.partial(jax.jit, static_argnames=("network", "tx", "epochs", "batch_size"))
def run(network, tx, epochs: int, batch_size: int, key, params, rest, x, y):
    """Parameters, the optimizer's state, and running statistics at the end of all epochs."""

    def loss(params, rest, rows, key):
        outputs, rest = network.apply(
            {"params": params, **rest},
            x[rows],
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": key},
        )
        return mean_loss(outputs, y[rows]), rest

    def step(carry, args):
        params, state, rest = carry
        grads, rest = jax.grad(loss, has_aux=True)(params, rest, *args)
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state, rest), None

    start = params, tx.init(params), rest
    return training.epochs(step, start, jax.random.split(key, epochs), len(x), batch_size)[0]


def start(recipe: Recipe, data: Data, seed: int) -> tuple[Any, Any]:
    """Parameters and running statistics before training; a new head starts at zero."""
    variables = recipe.network.init(jax.random.key(seed), data.x[:1])
    params, rest = variables.pop("params"), variables
    if recipe.pretrain is not None:
        params = jax.tree.map(jnp.zeros_like, params) | recipe.pretrain(seed)
    return params, rest


@functools.cache
def plain(network: nn.Module) -> Callable[[Any, Any], jax.Array]:
    """One function for all seeds, so that what is compiled for the first serves all."""
    return lambda params, x: network.apply({"params": params}, x)


def with_statistics(network: nn.Module, rest: Any) -> Callable[[Any, Any], jax.Array]:
    return lambda params, x: network.apply({"params": params, **rest}, x)


@functools.cache
def trained(name: str, seed: int) -> Task:
    """The task under this name, trained or read from `benchmarks/cache`."""
    recipe = RECIPES[name]
    data = recipe.load(seed)
    tx = recipe.make_tx(recipe.epochs * (len(data.x) // recipe.batch_size))

    def train():
        before, rest = start(recipe, data, seed)
        keys = jax.random.fold_in(jax.random.key(seed), 1)
        after = run(
            recipe.network, tx, recipe.epochs, recipe.batch_size, keys, before, rest, data.x, data.y
        )
        return before, *after

    slug = "".join(letter if letter.isalnum() else "-" for letter in name)
    before, params, state, rest = cached(f"{slug}-{seed}", train, *TRAINING, images.__file__)
    return Task(
        name,
        seed,
        kind(data),
        with_statistics(recipe.network, rest) if rest else plain(recipe.network),
        params,
        state,
        tx,
        data,
        recipe.batch_size,
        1.0 if kind(data) == "categorical" else 2.0,
        before if recipe.pretrain is not None else None,
    )
