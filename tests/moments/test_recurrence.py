"""The recurrences, on sequences made by their own formulas."""

import numpy as np
import pytest

from l2m_optax.moments._identification import recurrence as rec

EXACT = rec.tolerance(False)
G = np.random.default_rng(0).normal(size=(8, 5, 3))
X = np.square(G)


def follow(x, start, step):
    n = [np.full(x.shape[1:], float(start))]
    for t, value in enumerate(x, 1):
        n.append(step(n[-1], value, t))
    return np.stack(n)


MEAN = {
    "mean": (("mean", 0.9, 0.0, 1.0), lambda n, x, t: 0.9 * n + 0.1 * x, 0.0),
    "long": (("mean", 0.999999, 0.0, 1.0), lambda n, x, t: 0.999999 * n + 1e-6 * x, 0.0),
    "started": (("mean", 0.9, 0.5, 1.0), lambda n, x, t: 0.9 * n + 0.1 * x, 0.5),
    "rescaled": (("mean", 0.9, 0.0, 2.0), lambda n, x, t: 0.9 * n + 0.4 * x, 0.0),
    "sum": (("sum", 1.0, 0.1, 1.0), lambda n, x, t: n + x, 0.1),
    "unbiased": (
        ("unbiased", None, 0.0, 1.0),
        lambda n, x, t: (1 - t**-0.8) * n + t**-0.8 * x,
        0.0,
    ),
    "first square": (
        ("unbiased", 0.9, 0.0, 1.0),
        lambda n, x, t: x if t == 1 else 0.9 * n + 0.1 * x,
        0.0,
    ),
}
NONE = {
    "maximum": lambda n, x, t: np.maximum(0.9 * n, x),
    "absolute values": lambda n, x, t: 0.9 * n + 0.1 * np.sqrt(x),
    "yogi": lambda n, x, t: n - 0.1 * np.sign(n - x) * x,
    "clipped": lambda n, x, t: 0.9 * n + 0.1 * np.minimum(x, 1.0),
    "a row apart": lambda n, x, t: 0.9 * n + 0.1 * x * np.array([1.0, 1.0, 2.0]),
}


@pytest.mark.parametrize("name", MEAN)
def test_second_order(name):
    expected, step, start = MEAN[name]
    found = rec.second_order(follow(X, start, step), X, EXACT)
    assert found.kind == expected[0]
    assert (found.decay is None) == (expected[1] is None)
    values = (expected[1] or 0.0, *expected[2:])
    assert (found.decay or 0.0, *found[2:]) == pytest.approx(values, rel=1e-9)


@pytest.mark.parametrize("name", NONE)
def test_what_is_no_mean_of_squares(name):
    assert rec.second_order(follow(X, 0.0, NONE[name]), X, EXACT) is None


@pytest.mark.parametrize("decay", [0.9, 1.001])
def test_what_moves_without_any_gradient_is_no_mean_of_them(decay):
    falling = follow(X, 10.0, lambda n, x, t: decay * n + 1e-14 * x)
    assert rec.second_order(falling, X, EXACT) is None


def test_one_value_of_very_many_is_seen():
    x = np.square(np.random.default_rng(0).normal(size=(8, 5, 3001)))
    n = follow(x, 0.0, MEAN["mean"][1])
    assert rec.second_order(n, x, EXACT).decay == 0.9
    n[4, 2, 1234] *= 1 + 1e-6
    assert rec.second_order(n, x, EXACT) is None


def test_first_order():
    m = follow(G, 0.0, lambda m, g, t: 0.9 * m + 0.1 * g)
    assert rec.first_order(m, G, EXACT) == 0.9
    assert rec.first_order(follow(G, 0.0, lambda m, g, t: 0.9 * m + g), G, EXACT) is None


def test_a_running_mean_close_to_zero_is_still_one():
    g = G.copy()
    g[3, 0, 0] = -9 * follow(g, 0.0, lambda m, g, t: 0.9 * m + 0.1 * g)[3, 0, 0] * (1 + 1e-13)
    assert rec.first_order(follow(g, 0.0, lambda m, g, t: 0.9 * m + 0.1 * g), g, EXACT) == 0.9


def test_lagged():
    x = np.square(G + 0.08 * np.diff(G, axis=0, prepend=G[:1]))
    decay, beta = rec.lagged(follow(x, 0.0, MEAN["mean"][1]), G, EXACT)
    assert (decay, beta) == pytest.approx((0.9, 0.08), rel=1e-6)
    assert rec.lagged(follow(X, 0.0, MEAN["mean"][1]), G, EXACT) is None


@pytest.mark.parametrize("decay", [0.9, 0.999, 0.9999999, 0.123456])
def test_rounding_gives_back_what_was_written(decay):
    assert rec.rounded(decay * (1 + 1e-17)) == pytest.approx(decay, rel=1e-12)


def test_the_law_of_one_update():
    n = follow(X, 0.0, lambda n, x, t: 0.9 * n + 0.1 * x)
    assert rec.one_update(n[3], n[4], X[3], EXACT) == pytest.approx((0.9, 0.1))
    assert rec.one_update(n[3], n[4], X[2], EXACT) is None
    for name in ("maximum", "clipped", "a row apart"):
        n = follow(X, 0.0, NONE[name])
        assert rec.one_update(n[3], n[4], X[3], EXACT) is None
