"""Fashion-MNIST with shifts, a perceptron and a small convolutional network, and their training.

5,000 training images of Fashion-MNIST and 1,000 for validation; MNIST's digits as out of
distribution; rotated and noisy images as shift.
"""

import functools
import os
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import report
from scipy.ndimage import rotate
from sklearn.datasets import fetch_openml
from training import run

DATA = Path(__file__).parents[1] / "notebooks" / "data"
NUM_TEST, NUM_DIGITS, NUM_SHIFT = (200, 100, 50) if report.FAST else (2_000, 500, 100)
EPOCHS, BATCH, RATE = 30, 128, 1e-3
DROPOUT, SWAG_EPOCHS = 0.1, 10

SHAPES = {
    "mlp": {"body0": (784, 128), "body1": (128, 128), "head": (128, 10)},
    "cnn": {"conv0": (8, 1, 3, 3), "conv1": (16, 8, 3, 3), "body0": (784, 64), "head": (64, 10)},
}


class Data(NamedTuple):
    """Images (n, 1, 28, 28) between 0 and 1, and labels (n,)."""

    x: np.ndarray
    y: np.ndarray
    x_val: np.ndarray
    y_val: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    digits: np.ndarray
    shifted: tuple[np.ndarray, ...]
    y_shifted: np.ndarray

    @property
    def inputs(self) -> np.ndarray:
        """All that is predicted: test images, digits, shifted images."""
        return np.concatenate([self.x_test, self.digits, *self.shifted])


def load() -> Data:
    clothes, digits = (
        np.load(DATA / f"{name}.npz") for name in ("fashion_mnist_subset", "mnist_subset")
    )

    def images(x):
        return (x.reshape(-1, 1, 28, 28) / 255.0).astype(np.float32)

    def labels(split, number=None):
        return clothes[f"y_{split}"][:number].astype(np.int32)

    few, rng = images(clothes["x_test"][-NUM_SHIFT:]), np.random.default_rng(0)
    turned = [rotate(few, degrees, (2, 3), reshape=False, order=1) for degrees in (15, 30, 45)]
    noisy = [few + sd * rng.normal(size=few.shape).astype(np.float32) for sd in (0.1, 0.2, 0.3)]
    return Data(
        images(clothes["x_train"]),
        labels("train"),
        images(clothes["x_val"]),
        labels("val"),
        images(clothes["x_test"][:NUM_TEST]),
        labels("test", NUM_TEST),
        images(digits["x"][:NUM_DIGITS]),
        (*turned, *noisy),
        clothes["y_test"][-NUM_SHIFT:].astype(np.int32),
    )


def whole(number) -> tuple[np.ndarray, np.ndarray]:
    """The first training images of all of Fashion-MNIST, and their labels.

    Of the file that the environment variable FASHION_MNIST names, an .npz with ``x_train`` and
    ``y_train``, and otherwise of OpenML, where the 60,000 training images come first.
    """
    path = os.environ.get("FASHION_MNIST")
    if path:
        with np.load(path) as file:
            x, y = file["x_train"], file["y_train"]
    else:
        x, y = fetch_openml(data_id=40996, return_X_y=True, as_frame=False, parser="liac-arff")
    x = np.asarray(x[:number], np.float32).reshape(-1, 1, 28, 28) / 255
    return x, np.asarray(y[:number]).astype(np.int32)


def initial(kind, key):
    def layer(i, shape):
        fan_in, out = (np.prod(shape[1:]), shape[0]) if len(shape) == 4 else shape
        kernel = jax.random.normal(jax.random.fold_in(key, i), shape) * (2 / fan_in) ** 0.5
        return {"kernel": kernel, "bias": jnp.zeros(out)}

    return {name: layer(i, shape) for i, (name, shape) in enumerate(SHAPES[kind].items())}


def network(params, x, key=None):
    """Logits of images; with a key, hidden units are dropped."""
    for i, name in enumerate(layers(params)):
        kernel, bias = params[name]["kernel"], params[name]["bias"]
        if kernel.ndim == 4:
            layout = ("NCHW", "OIHW", "NCHW")
            x = jax.lax.conv_general_dilated(x, kernel, (2, 2), [(1, 1)] * 2, None, None, layout)
            x = x + bias[:, None, None]
        else:
            x = x.reshape(len(x), -1) @ kernel + bias
        if name == "head":
            return x
        x = jax.nn.relu(x)
        if key is not None:
            kept = jax.random.bernoulli(jax.random.fold_in(key, i), 1 - DROPOUT, x.shape)
            x = jnp.where(kept, x / (1 - DROPOUT), 0)


def layers(params) -> list[str]:
    """Their names from the inputs to the logits, which a tree's own order need not be."""
    return [name for name in ("conv0", "conv1", "body0", "body1", "head") if name in params]


def loss(params, x, y, key=None):
    logits = network(params, x, key)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def optimizer(name, number=5_000):
    rate = optax.cosine_decay_schedule(RATE, EPOCHS * (number // BATCH))
    if name == "rmsprop":
        return optax.rmsprop(rate, decay=0.999, bias_correction=True)
    return optax.adam(rate)


@functools.partial(jax.jit, static_argnames=("kind", "name", "dropout"))
def train(kind, seed, x, y, name="adam", dropout=False):
    """The parameters and the optimizer's state."""
    key = jax.random.key(seed)
    keys = jax.random.split(key, EPOCHS)
    return run(loss, optimizer(name), initial(kind, key), keys, x, y, BATCH, dropout=dropout)[0]


@jax.jit
def train_swag(params, seed, x, y, rate):
    """Mean and deviation of SGD's iterates at a constant rate, one an epoch, from the mode on."""
    tx = optax.sgd(rate, momentum=0.9)
    _, iterates = run(
        loss, tx, params, jax.random.split(jax.random.key(seed), SWAG_EPOCHS), x, y, BATCH
    )
    return (
        jax.tree.map(lambda w: w.mean(0), iterates),
        jax.tree.map(lambda w: w.std(0, ddof=1), iterates),
    )
