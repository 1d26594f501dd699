"""The data of `everyday`, from packages and from `notebooks/data`: nothing is downloaded.

Every seed splits tables and digits anew: 40% of a table for tests, and 18% of the rest for
validation; it is standardised by what is trained on. Fashion-MNIST has one split.
"""

from collections.abc import Callable
from pydoc_data.topics import topics
from typing import NamedTuple

import images
import numpy as np
from scipy.ndimage import rotate
from sklearn import datasets
from tables import load as load_table

ALPHABET = "abcdefghijklmnopqrstuvwxyz .\n"
LENGTH = 32
TEST, VALIDATION = 0.4, 0.18


class Data(NamedTuple):
    x: np.ndarray
    y: np.ndarray
    x_val: np.ndarray
    y_val: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    shifted: np.ndarray | None = None  # inputs that a network should be unsure of


def parts(x, y, seed: int, num_test: int) -> Data:
    """Shuffled and cut into three."""
    order = np.random.default_rng(seed).permutation(len(x))
    test, rest = np.split(order, [num_test])
    val, train = np.split(rest, [round(VALIDATION * len(rest))])
    return Data(x[train], y[train], x[val], y[val], x[test], y[test])


def table(x, y, seed: int, num_test: int | None = None) -> Data:
    """Standardised; whole numbers are classes, other targets (n,) become standardised (n, 1)."""
    data = parts(x, y, seed, num_test or round(TEST * len(x)))
    inputs = [((part - data.x.mean(0)) / data.x.std(0)).astype(np.float32) for part in data[0:6:2]]
    if np.issubdtype(np.asarray(y).dtype, np.integer):
        targets = [part.astype(np.int32) for part in data[1:6:2]]
    else:
        scaled = [(part - data.y.mean()) / data.y.std() for part in data[1:6:2]]
        targets = [part.astype(np.float32)[:, None] for part in scaled]
    return Data(*[array for pair in zip(inputs, targets, strict=True) for array in pair])


def packaged(load: Callable) -> Callable[[int], Data]:
    """A table that comes with scikit-learn."""
    return lambda seed: table(*load(return_X_y=True), seed)


def digits(seed: int) -> Data:
    """Between 0 and 1, not standardised; shifted are the tests' images turned by 45 degrees."""
    found = datasets.load_digits()
    x = (found.images / 16).astype(np.float32)[..., None]
    data = parts(x, found.target.astype(np.int32), seed, 540)
    return data._replace(shifted=rotate(data.x_test, 45, (1, 2), reshape=False, order=1))


def noisy_classes(seed: int) -> Data:
    x, y = datasets.make_classification(
        2_220, 20, n_informative=10, n_classes=10, flip_y=0.1, class_sep=1.0, random_state=seed
    )
    return table(x, y, seed, 1_000)


def tasters(seed: int) -> Data:
    """Red wine, the score as a class: bad (to 5), fair (6), good (from 7)."""
    found = load_table("wine_red")
    return table(found["x"], np.digitize(found["y"], (5.5, 6.5)).astype(np.int32), seed)


def _last(x):
    return np.moveaxis(x, 1, -1)


def fashion(seed: int) -> Data:
    """Shifted are MNIST's digits."""
    del seed
    found = images.load()
    return Data(
        _last(found.x),
        found.y,
        _last(found.x_val),
        found.y_val,
        _last(found.x_test),
        found.y_test,
        _last(found.digits),
    )


def few_digits(seed: int) -> Data:
    """1,000 of MNIST's digits; shifted are images of clothes."""
    found = np.load(images.DATA / "mnist_subset.npz")
    x = (found["x"][..., None] / 255).astype(np.float32)
    clothes = fashion(seed).x_test[:500]
    return parts(x, found["y"].astype(np.int32), seed, 400)._replace(shifted=clothes)


def text(seed: int) -> Data:
    """Python's own documentation: windows of letters, and the letter after each."""
    whole = "\n".join(topics[name] for name in sorted(topics)).lower()[:120_000]
    kinds = {letter: i for i, letter in enumerate(ALPHABET)}
    letters = np.asarray([kinds.get(letter, len(ALPHABET)) for letter in whole], np.int32)
    cut = letters[: len(letters) // (LENGTH + 1) * (LENGTH + 1)].reshape(-1, LENGTH + 1)
    some = cut[np.random.default_rng(seed).permutation(len(cut))[:1_776]]
    return parts(some[:, :-1], some[:, 1:], seed, 300)


def friedman(seed: int) -> Data:
    return table(*datasets.make_friedman1(1_730, noise=1.0, random_state=seed), seed, 1_000)


def measured(name: str) -> Callable[[int], Data]:
    """A table of `benchmarks/tables.py` whose target is a number."""

    def load(seed):
        found = load_table(name)
        return table(found["x"], found["y"].astype(np.float64), seed)

    return load
