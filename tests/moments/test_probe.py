"""The probe: what it gives a transformation, and what it writes down."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from l2m_optax.moments._identification.plan import JUMPS, SCALES, SIZES
from l2m_optax.moments._identification.probe import (
    enable_x64,
    everything,
    record,
)
from l2m_optax.moments._identification.stand_ins import cut_shape, small_leaves
from l2m_optax.moments._identification.trace import trace
from l2m_optax.moments._moment import mean_variance_ratio

PARAMS = {"w": jnp.ones((2, 3)), "s": jnp.ones(())}


def probe(tx, **options):
    with enable_x64(True):
        program = trace(tx, PARAMS)
        return record(program, everything(program), **options)


def test_adam_does_in_a_probe_what_its_formula_says():
    found = probe(optax.scale_by_adam(b2=0.9))
    g, nu = found.means["['w']"], found.states[".nu['w']"]
    assert g.shape == (len(SIZES), len(SCALES), 2, 3)
    np.testing.assert_allclose(nu[1:], 0.9 * nu[:-1] + 0.1 * g**2, rtol=1e-12)


@pytest.mark.parametrize("k", [1, 2, 3, 8])
def test_micro_steps_are_counted_and_averaged(k):
    found = probe(optax.MultiSteps(optax.trace(0.0), k) if k == 1 else squares(k))
    if k > 1:
        assert found.micro_steps == k
        nu, g = found.states[".inner_opt_state.nu['w']"], found.means["['w']"]
        np.testing.assert_allclose(nu[1], 0.1 * g[0] ** 2, rtol=3e-6)


def squares(k):
    return optax.MultiSteps(optax.scale_by_rms(decay=0.9), k)


@pytest.mark.parametrize("k", [2, 4, 7, 64])
def test_no_mean_over_micro_steps_is_near_zero(k):
    found = probe(squares(k))
    size = np.reshape(SIZES, (-1, 1, 1, 1)) * np.reshape(SCALES, (-1, 1, 1))
    assert found.micro_steps == k
    assert np.abs(found.means["['w']"] / size).min() > 0.05


def test_counts_jump_and_injected_numbers_do_not():
    tx = optax.inject_hyperparams(optax.scale_by_adam)(b1=0.9, b2=0.99)
    states = probe(tx).states
    expected = np.cumsum([0, *(1 + JUMPS.get(i, 0) for i in range(len(SIZES)))])
    np.testing.assert_array_equal(states[".inner_state.count"][:, 0], expected)
    assert np.ptp(states[".hyperparams['b2']"]) == 0.0


def test_parameters_of_another_size_show_weight_decay():
    decayed = optax.chain(optax.add_decayed_weights(0.1), optax.scale_by_rms(decay=0.9))
    of_zero, of_one = (probe(decayed, size=size).states["[1].nu['w']"] for size in (0.0, 1.0))
    plain = probe(optax.chain(optax.identity(), optax.scale_by_rms(decay=0.9)))
    np.testing.assert_allclose(of_zero, plain.states["[1].nu['w']"], rtol=1e-12)
    assert not np.allclose(of_one, of_zero)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((), ()), ((1, 2), (1, 2)), ((5,), (2,)), ((9, 7, 9), (3, 2, 3)), ((0, 9), (0, 2))],
)
def test_cut_shapes_keep_the_order_of_lengths(shape, expected):
    assert cut_shape(shape, 2) == expected


def test_the_smallest_leaves_stay():
    shapes = {"a": (2**15,), "b": (2**16,), "c": (3,), "d": (2**15 - 3,)}
    assert small_leaves(shapes) == {"a", "c", "d"}


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9])
def test_the_variance_of_a_running_mean(decay):
    weights = (1 - decay) * decay ** np.arange(2000)
    assert mean_variance_ratio(decay) == pytest.approx(np.sum(weights**2), rel=1e-12)
