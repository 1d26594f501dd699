"""The tasks of `evidence`: data, networks and trainings.

Digits and tables are split anew by every seed; the images have one split. Tables are standardised
by what is trained on.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import everyday
import everyday_data
import images
import jax
import jax.numpy as jnp
import numpy as np
from everyday_networks import Transformer
from sklearn.datasets import (
    load_breast_cancer,
    load_diabetes,
    load_digits,
    load_wine,
    make_friedman1,
)


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
      observations: of one input: a sequence has one at every place.
      is_fine_tuning: whether decays are towards the weights at the start.
    """

    data: Callable[[int], tuple]
    initial: Callable[[Any, tuple], Any]
    apply_fn: Callable[[Any, jax.Array], jax.Array]
    epochs: int
    batch_size: int
    rate: float
    kind: str = "categorical"
    observations: int = 1
    is_fine_tuning: bool = False


@functools.cache
def clothes(seed: int) -> tuple:
    found = images.load()
    return found.x, found.y, found.x_val, found.y_val, found.x_test, found.y_test


@functools.cache
def digits(seed: int) -> tuple:
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(x))
    test, val, train = np.split(order, [540, 740])
    arrays = np.float32(x / 16), y.astype(np.int32)
    return tuple(a[rows] for rows in (train, val, test) for a in arrays)


@functools.cache
def mislabelled_digits(seed: int) -> tuple:
    """`digits`, a tenth of whose labels are drawn anew."""
    x, y, *others = digits(seed)
    rng, parts = np.random.default_rng(seed), [x, y, *others]
    for i in (1, 3, 5):
        drawn = rng.integers(0, 10, len(parts[i]), dtype=np.int32)
        parts[i] = np.where(rng.random(len(drawn)) < 0.1, drawn, parts[i])
    return tuple(parts)


@functools.cache
def measured(load: Callable, seed: int) -> tuple:
    """30% for tests, 10% for validation."""
    x, y = load(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(x))
    test, val, train = np.split(order, [int(0.3 * len(x)), int(0.4 * len(x))])
    arrays = np.float32((x - x[train].mean(0)) / x[train].std(0)), y.astype(np.int32)
    return tuple(a[rows] for rows in (train, val, test) for a in arrays)


def packed(name: str) -> tuple:
    found = np.load(images.DATA / f"{name}.npz")
    return found["x"], found["y"]


@functools.cache
def table(load: Callable[[], tuple], seed: int) -> tuple:
    """A tenth for tests, a tenth for validation."""
    x, y = load()
    y = y.astype(np.float64)[:, None]
    order, tenth = np.random.default_rng(seed).permutation(len(x)), len(x) // 10
    test, val, train = np.split(order, [tenth, 2 * tenth])
    x = (x - x[train].mean(0)) / (x[train].std(0) + 1e-8)
    y = (y - y[train].mean()) / y[train].std()
    return tuple(np.float32(a[rows]) for rows in (train, val, test) for a in (x, y))


def perceptron(params: Any, x: jax.Array, key: Any = None, rate: float = 0.0) -> jax.Array:
    """The layers in the order of their names; with a key, hidden units are dropped."""
    x = x.reshape(len(x), -1)
    for i, name in enumerate(sorted(params)):
        x = x @ params[name]["kernel"] + params[name]["bias"]
        if name == max(params):
            return x
        x = jax.nn.relu(x)
        if key is not None:
            kept = jax.random.bernoulli(jax.random.fold_in(key, i), 1 - rate, x.shape)
            x = jnp.where(kept, x / (1 - rate), 0)


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


def of_table(load: Callable[[], tuple], *widths: int, epochs: int = 200) -> Task:
    initial = functools.partial(initial_perceptron, (*widths, 1))
    data = functools.partial(table, load)
    return Task(data, initial, perceptron, epochs, 32, 1e-2, "gaussian")


def of_classes(data: Callable[[int], tuple], *widths: int, epochs: int, batch_size: int) -> Task:
    initial = functools.partial(initial_perceptron, widths)
    return Task(data, initial, perceptron, epochs, batch_size, 1e-3)


@functools.cache
def text(seed: int) -> tuple:
    """Letters, and the letter after each."""
    return tuple(everyday_data.text(seed)[:6])


@functools.cache
def few_digits(seed: int) -> tuple:
    """The digits of MNIST, and a perceptron that knows clothes, with a new head at zero."""
    name = "MNIST from Fashion-MNIST, fine-tuned"
    recipe, data = everyday.RECIPES[name], everyday_data.few_digits(seed)
    return *data[:6], everyday.start(recipe, data, seed)[0]


def friedman() -> tuple:
    return make_friedman1(625, noise=1.0, random_state=0)


LETTERS = Transformer(len(everyday_data.ALPHABET) + 1, everyday_data.LENGTH)


def initial_of_letters(seed: Any, data: tuple) -> Any:
    return LETTERS.init(jax.random.key(seed), data[0][:1])["params"]


def pretrained(seed: Any, data: tuple) -> Any:
    return data[6]


DIABETES = functools.partial(load_diabetes, return_X_y=True)
CONCRETE = functools.partial(packed, "concrete")
TASKS = {
    "Fashion-MNIST, 5,000 images, MLP": Task(clothes, initial_of_images, perceptron, 60, 128, 2e-3),
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
    "concrete, one layer of 50": of_table(CONCRETE, 50),
    "concrete, two layers of 64": of_table(CONCRETE, 64, 64),
    "concrete, three layers of 64": of_table(CONCRETE, 64, 64, 64),
    "red wine, one layer of 50": of_table(functools.partial(packed, "wine_red"), 50),
    "diabetes, one layer of 50": of_table(DIABETES, 50),
    "diabetes, three layers of 64": of_table(DIABETES, 64, 64, 64),
    "friedman1, one layer of 50": of_table(friedman, 50),
    "friedman1, three layers of 64": of_table(friedman, 64, 64, 64),
    "letters, transformer": Task(
        text,
        initial_of_letters,
        everyday.plain(LETTERS),
        12,
        16,
        3e-3,
        observations=everyday_data.LENGTH,
    ),
    "MNIST from Fashion-MNIST, fine-tuned MLP": Task(
        few_digits, pretrained, perceptron, 40, 32, 2e-3, is_fine_tuning=True
    ),
    "MNIST from Fashion-MNIST, fine-tuned MLP, at a rate that is too small": Task(
        few_digits, pretrained, perceptron, 40, 32, 3e-4, is_fine_tuning=True
    ),
}
