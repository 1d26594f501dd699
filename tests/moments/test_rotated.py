"""Laws in bases and of products, on sequences made by their own formulas."""

import numpy as np
import pytest

from l2m_optax.moments._identification.advance import Advance, advance_of, moved
from l2m_optax.moments._identification.rotated import follows_products, products, rotated

UPDATES, RUNS, SHAPE = 12, 2, (3, 4)
RNG = np.random.default_rng(0)
G = RNG.normal(size=(UPDATES, RUNS, *SHAPE))
ALLOWED = 1e-10


def turning(size):
    """An orthogonal matrix before the first and after every update, another one every fourth."""
    new = np.linalg.qr(RNG.normal(size=(UPDATES // 4 + 1, RUNS, size, size)))[0]
    return np.repeat(new, 4, axis=0)[: UPDATES + 1]


LEFT, RIGHT = turning(3), turning(4)


def follow(permuted=False, late=False, decay=0.9, initial=0.0):
    """A mean of squares in the bases; its columns change places where the right one is turned."""
    n = [np.full((RUNS, *SHAPE), initial)]
    for t in range(UPDATES):
        q, r = (m[t + 1] if late else m[t] for m in (LEFT, RIGHT))
        x = np.square(np.swapaxes(q, -1, -2) @ G[t] @ r)
        new = decay * n[-1] + 0.1 * x
        if permuted and np.any(RIGHT[t + 1] != RIGHT[t]):
            new = new[..., [2, 0, 3, 1]]
        n.append(new)
    return np.stack(n)


HELD = {"left": LEFT, "right": RIGHT, "other": turning(4), "not orthogonal": 2 * RIGHT}


@pytest.mark.parametrize("options", [{}, {"permuted": True}, {"late": True}, {"initial": 0.5}])
def test_a_mean_of_squares_in_a_basis_is_found(options):
    found = rotated(follow(**options), G, HELD, ALLOWED)
    assert found.matrices == ("left", "right")
    assert (found.recurrence.kind, found.recurrence.decay) == ("mean", pytest.approx(0.9))
    assert found.recurrence.initial == options.get("initial", 0.0)


def test_squares_in_no_basis_have_none():
    n = np.concatenate([np.zeros((1, RUNS, *SHAPE)), np.square(G)]).cumsum(axis=0)
    found = rotated(n, G, HELD, ALLOWED)
    assert found.matrices == (None, None)
    assert found.recurrence.kind == "sum"


WRONG = {
    "without the matrices": lambda n: (n, {"other": HELD["other"]}),
    "in other places while nothing is turned": lambda n: (
        np.concatenate([n[:3], n[3:4, ..., ::-1], n[4:]]),
        HELD,
    ),
    "another one entry": lambda n: (n + 1e-3 * (np.arange(12).reshape(SHAPE) == 5), HELD),
    "of another decay at the end": lambda n: (np.concatenate([n[:-1], 1.1 * n[-1:]]), HELD),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_no_basis_explains_is_not_found(name):
    n, held = WRONG[name](follow())
    assert rotated(n, G, held, ALLOWED) is None


def summed(p, initial):
    start = initial * np.eye(p.shape[-1]) * np.ones((1, RUNS, 1, 1))
    return np.concatenate([start, p]).cumsum(axis=0)


@pytest.mark.parametrize("axis", [0, 1])
def test_products_along_an_axis(axis):
    p = products(G, axis)
    direct = np.einsum("trij,trkj->trik" if axis == 0 else "trij,trik->trjk", G, G)
    np.testing.assert_allclose(p, direct)
    law = follows_products(summed(p, 1e-3), p, ALLOWED)
    assert (law.kind, law.initial) == ("sum", 1e-3)


def test_what_is_no_product_is_not_found():
    """Of each the diagonal is right."""
    p = products(G, 0)
    assert follows_products(summed(p * np.eye(3), 1e-3), p, ALLOWED) is None
    assert follows_products(summed(p, 1e-3) + 1e-3 * (1 - np.eye(3)), p, ALLOWED) is None


COUNTS = np.array([1, 2, 3, 4, 5, 6, 7, 1001, 1002, 1003])


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        (COUNTS, Advance(1, 1)),
        (COUNTS[1:], Advance(2, 1)),
        ([3, 6, 1002], Advance(3, 3)),
        ([1, 4, 7, 1003], Advance(1, 3)),
        ([3, 6], None),
        ([3, 6, 1001], None),
        ([7], None),
        ([1, 2, 3, 4, 5, 6, 7], None),
    ],
)
def test_when_an_array_moves(at, expected):
    moves = np.isin(COUNTS, at)
    assert advance_of(moves, COUNTS) == expected


def test_without_a_count_an_array_must_always_move():
    assert advance_of(np.ones(4, bool), None) == Advance()
    assert advance_of(np.array([False, True, True, True]), None) is None


def test_one_entry_is_enough_to_move():
    n = np.zeros((3, RUNS, *SHAPE))
    n[2, 1, 2, 3] = 1e-30
    assert moved(n).tolist() == [False, True]
