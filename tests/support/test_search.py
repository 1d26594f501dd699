"""The minimisers: quadratics, bounds, NaN, ridges, axes of one point, what has no minimum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2m_optax._support.search import Minimum, newton, rounds_for, zoom

LOW, HIGH = 0.0, 8.0
GRID = jnp.linspace(LOW, HIGH, 9)


def zoomed(function, axes, rounds=8):
    """`zoom` for a function of one point, given as so many arguments."""

    def losses(axes):
        return function(*jnp.meshgrid(*axes, indexing="ij"))

    return zoom(losses, axes, rounds)


def descended(function, start, low=-10.0, high=10.0, reach=1.0):
    """`newton` with the derivatives of a function of an array."""
    start = jnp.asarray(start, jnp.float32)

    @jax.jit
    def derivatives(p):
        return function(p), jax.grad(function)(p), jax.hessian(function)(p)

    bounds = jnp.full_like(start, low), jnp.full_like(start, high)
    return newton(derivatives, start, jnp.broadcast_to(jnp.asarray(reach), start.shape), bounds)


@pytest.mark.parametrize(
    ("function", "expected", "low", "high"),
    [
        (lambda x: (x - 3.3) ** 2, 3.3, False, False),
        (lambda x: (x - 0.3) ** 2, 0.3, False, False),
        (lambda x: (x - 7.8) ** 2, 7.8, False, False),
        (lambda x: jnp.abs(x - 5.0), 5.0, False, False),
        (lambda x: (x - LOW) ** 2, LOW, True, False),
        (lambda x: x, LOW, True, False),
        (lambda x: -x, HIGH, False, True),
        (lambda x: jnp.exp(-x), HIGH, False, True),
        (jnp.zeros_like, LOW, True, False),
        (lambda x: jnp.where(x < 4.0, jnp.nan, x), 4.0, False, False),
        (lambda x: jnp.where(x > 4.0, jnp.inf, -x), 4.0, False, False),
    ],
    ids=[
        "inside",
        "beside the lower bound",
        "beside the upper bound",
        "kink",
        "on the bound",
        "rises",
        "falls",
        "flattens",
        "constant",
        "NaN on one side",
        "infinite on one side",
    ],
)
def test_zoom_on_one_axis(function, expected, low, high):
    best = zoomed(function, [GRID])
    np.testing.assert_allclose(best.point, [expected], atol=0.01)
    np.testing.assert_allclose(best.value, function(best.point)[0], rtol=1e-6)
    assert (best.low.tolist(), best.high.tolist()) == ([low], [high])
    assert best.converged
    assert best.evaluations == 8 * 9


def test_zoom_on_two_axes_has_a_bound_for_each():
    best = zoomed(lambda x, y: (x - 2.7) ** 2 + jnp.exp(-y), [GRID, GRID])
    np.testing.assert_allclose(best.point, [2.7, HIGH], atol=0.01)
    assert (best.low.tolist(), best.high.tolist()) == ([False, False], [False, True])
    assert best.evaluations == 8 * 81


@pytest.mark.parametrize("alone", [0, 1])
def test_an_axis_of_one_point_stays_and_has_no_bounds(alone):
    axes = [GRID, GRID]
    axes[alone] = jnp.array([5.0])
    best = zoomed(lambda x, y: (x - 1.7) ** 2 + (y - 1.7) ** 2 + x * y, axes)
    assert best.point[alone] == 5.0
    assert not best.low[alone]
    assert not best.high[alone]
    # Along the other axis z the function is (z - 1.7)² + 5z, which rises from 0.
    assert best.low[1 - alone]


def test_a_single_point_may_be_infinite():
    """The logarithm of a temperature of zero."""
    best = zoomed(lambda x, y: (x - 1.7) ** 2 + jnp.exp(y), [GRID, jnp.array([-jnp.inf])])
    np.testing.assert_allclose(best.point, [1.7, -np.inf], atol=0.01)
    assert not np.any(best.low | best.high)


@pytest.mark.parametrize("nothing", [jnp.nan, jnp.inf])
def test_where_nothing_is_finite_nothing_is_found(nothing):
    grid = zoomed(lambda x: jnp.full_like(x, nothing), [GRID])
    descent = descended(lambda p: jnp.sum(p) * nothing, [LOW], low=LOW)
    for best in (grid, descent):
        assert not np.isfinite(best.value)
        assert not best.converged
        assert not np.any(best.low | best.high)


@pytest.mark.parametrize(("low", "high", "points"), [(-11.5, 6.9, 17), (-9.2, 18.4, 9)])
def test_rounds_end_at_two_per_cent(low, high, points):
    widths = [(high - low) / (points - 1)]
    while widths[-1] > 0.02:
        widths.append(widths[-1] * 2 / (points - 1))
    assert rounds_for(low, high, points) == len(widths)
    assert rounds_for(0.0, 1e-3, points) == 1


def bowl(p):
    return jnp.sum(
        jnp.array([1.0, 30.0])[: p.size] * jnp.square(p - jnp.array([1.5, -2.0])[: p.size])
    )


def rosenbrock(p):
    return (1.0 - p[0]) ** 2 + 100.0 * (p[1] - p[0] ** 2) ** 2


@pytest.mark.parametrize(
    ("function", "start", "expected"),
    [
        (bowl, [0.0], [1.5]),
        (bowl, [1.5], [1.5]),
        (bowl, [-9.0, 9.0], [1.5, -2.0]),
        (rosenbrock, [0.3, 0.0], [1.0, 1.0]),
        (lambda p: jnp.sum(jnp.cos(p)), [0.3], [np.pi]),
        (lambda p: jnp.sum(p**4), [2.0], [0.0]),
    ],
    ids=["1-d", "there already", "2-d", "Rosenbrock", "negative curvature", "flat minimum"],
)
def test_newton_finds_minima(function, start, expected):
    best = descended(function, start)
    np.testing.assert_allclose(best.point, expected, atol=0.02)
    np.testing.assert_allclose(best.value, function(best.point))
    assert not np.any(best.low | best.high)
    assert best.converged or function not in (bowl, rosenbrock)


def test_newton_on_a_quadratic_takes_two_steps():
    assert descended(bowl, [1.0, -1.5]).evaluations == 3


@pytest.mark.parametrize(
    ("slope", "low", "high"), [(1.0, True, False), (-1.0, False, True)], ids=["rises", "falls"]
)
def test_newton_ends_at_the_bound_of_what_has_no_minimum(slope, low, high):
    best = descended(lambda p: slope * jnp.sum(p) + 1e-3 * jnp.sum(p**2), [0.0], -3.0, 3.0)
    assert (best.low.tolist(), best.high.tolist()) == ([low], [high])
    np.testing.assert_allclose(jnp.abs(best.point), [3.0])


def test_newton_leaves_a_bound_that_is_no_minimum():
    best = descended(bowl, [-3.0], low=-3.0)
    np.testing.assert_allclose(best.point, [1.5], atol=1e-4)
    assert not np.any(best.low | best.high)


def test_newton_on_a_ridge_reaches_its_floor():
    best = descended(lambda p: jnp.square(jnp.sum(p) - 1.0), [0.0, 3.0], -5.0, 5.0)
    np.testing.assert_allclose(jnp.sum(best.point), 1.0, atol=1e-4)
    assert best.converged


@pytest.mark.parametrize("value", [4.0, -jnp.inf])
def test_a_coordinate_of_reach_zero_stays(value):
    start, reach = jnp.array([0.0, value]), jnp.array([1.0, 0.0])
    best = descended(lambda p: (p[0] - 1.0) ** 2 + jnp.exp(p[1]), start, 0.0, 4.0, reach)
    np.testing.assert_allclose(best.point, [1.0, value], atol=1e-4)
    assert not np.any(best.low | best.high)
    assert best.converged


def test_newton_never_climbs_and_stops_before_nan():
    """Beyond 2 there is nothing; the least that can be reached lies before."""

    def function(p):
        return jnp.sum(jnp.where(p > 2.0, jnp.nan, -p))

    best = descended(function, [0.0])
    assert 1.9 < best.point[0] <= 2.0
    assert np.isfinite(best.value)


def test_both_run_under_jit():
    @jax.jit
    def run(center):
        grid = zoomed(lambda x: (x - center) ** 2, [GRID], 4)
        return grid, descended(lambda p: jnp.sum((p - center) ** 2), grid.point)

    for best in run(jnp.float32(3.3)):
        assert isinstance(best, Minimum)
        np.testing.assert_allclose(best.point, [3.3], atol=0.01)
