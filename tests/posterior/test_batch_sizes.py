"""The scale of batches of several sizes, against all orders of a few examples."""

import itertools
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import l2m_optax as l2m

W = jnp.ones(1)
GRADIENTS = np.array(
    [3.0, -1.0, 2.0, -5.0, 0.5, 0.5]
)  # of single examples; at a mode they sum to 0
ORDERS = GRADIENTS[np.array(list(itertools.permutations(range(6))))]


def precision(nu, batch_size, micro_steps=1, num_data=6, **kwargs):
    moment = l2m.SecondMoment(nu=jnp.asarray([nu]), micro_steps=micro_steps)
    posterior = l2m.laplace(W, moment, num_data=num_data, batch_size=batch_size, **kwargs)
    return l2m.posterior.data_precision(posterior)[0]


def batch_means(sizes):
    """The mean gradient of each batch of an epoch, in each order of the examples: (720, m)."""
    cuts = np.split(ORDERS[:, : sum(sizes)], np.cumsum(sizes)[:-1], axis=1)
    return np.stack([cut.mean(axis=1) for cut in cuts], axis=1)


def mean_square(sizes, micro_steps):
    """E[g²] over all orders and updates, where an update is the mean of k batches in a row.

    Orders of two epochs are independent and means are zero, so parts in two epochs only add.
    """
    means, many = batch_means(sizes), len(sizes)
    squares = []
    for start in range(0, many * micro_steps, micro_steps):
        epochs = np.arange(start, start + micro_steps) // many
        places = np.arange(start, start + micro_steps) % many
        parts = [means[:, places[epochs == epoch]].sum(axis=1) for epoch in np.unique(epochs)]
        squares.append(sum(np.mean(part**2) for part in parts) / micro_steps**2)
    return np.mean(squares)


EPOCHS = [(2, 2, 1, 1), (3, 1, 1, 1), (1, 1, 2), (4, 1), (3, 2), (1, 1, 1, 1)]
ACCUMULATED = [(sizes, k) for sizes in EPOCHS for k in range(1, len(sizes) + 1)]


@pytest.mark.parametrize(("sizes", "micro_steps"), ACCUMULATED)
def test_every_order_of_the_examples_gives_the_exact_fisher(sizes, micro_steps):
    nu = mean_square(sizes, micro_steps)
    exact = np.sum(GRADIENTS**2)
    np.testing.assert_allclose(precision(nu, sizes, micro_steps), exact, rtol=1e-5)
    traced = jax.jit(lambda k: precision(nu, sizes, k))(micro_steps)
    np.testing.assert_allclose(traced, exact, rtol=1e-5)


def test_with_replacement_only_the_harmonic_mean_is_left():
    sizes = (4, 2, 1)
    nu = np.mean(GRADIENTS**2) * np.mean([1 / size for size in sizes])
    found = precision(nu, sizes, with_replacement=True)
    np.testing.assert_allclose(found, np.sum(GRADIENTS**2), rtol=1e-5)


@pytest.mark.parametrize("kind", [tuple, list, np.array])
def test_equal_sizes_are_one_size(kind):
    same = precision(2.0, kind([10] * 9), num_data=95)
    np.testing.assert_allclose(same, precision(2.0, 10, num_data=95), rtol=1e-6)


def test_a_last_batch_of_one_among_many_counts_as_much_as_it_should():
    """Its squared gradient is 32 times as large: the mean of 1/B over 47 batches, exactly."""
    sizes, num_data = [32] * 46 + [1], 46 * 32 + 1
    inverse = (46 * Fraction(1, 32) + 1) / 47
    scale = num_data * (num_data - 1) / (num_data * inverse - 1)
    np.testing.assert_allclose(precision(1.0, sizes, num_data=num_data), float(scale), rtol=1e-6)
    assert precision(1.0, 32, num_data=num_data) / precision(1.0, sizes, num_data=num_data) > 1.6


REFUSALS = {
    "none": ((), 1, "batch_size: expected the size of at least one batch, got none"),
    "zero": ((2, 0), 1, "batch_size: expected at least 1, got 0"),
    "all examples": ((6,), 1, "full batch has no sampling noise"),
    "more than there are": ((4, 3), 1, "batch_size: expected an epoch of at most num_data = 6"),
    "an update of all examples": ((2, 2, 2), 3, "full batch has no sampling noise"),
    "more than an epoch": ((2, 1), 3, "micro_steps: expected at most the 2 batches of an epoch"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_no_epoch_can_be_is_refused(case):
    sizes, micro_steps, message = REFUSALS[case]
    with pytest.raises(ValueError, match=message):
        precision(1.0, sizes, micro_steps)
    if micro_steps > 1:
        assert np.isnan(jax.jit(lambda k: precision(1.0, sizes, k))(micro_steps))


@pytest.mark.parametrize(
    "sizes", [(2.0, 1.0), np.array([2.0, 1.0]), (2, True), "21", 2.5, [[2], [1]]]
)
def test_sizes_that_are_no_whole_numbers_are_refused(sizes):
    with pytest.raises(TypeError, match="batch_size: expected"):
        precision(1.0, sizes)
