"""The scale N·B·k/c² · (N-1)/(N-B·k), against exact rational numbers, however it is reached."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import l2m_optax as l2m

W = jnp.ones(2)
SIZES = {
    "ImageNet, 4,096": (1_281_167, 4_096, 1),
    "ImageNet, 2,048": (1_281_167, 2_048, 1),
    "large": (10**9, 10**6, 64),
    "nearly a full batch": (10**9, 999_999_999, 1),
    "nearly full by accumulation": (10**9, 15_624_999, 64),
    "one left": (65, 16, 4),
    "more than 32 bits": (5 * 10**9, 4_096, 8),
}


def exact(num_data, batch_size, micro_steps, loss_scale=1.0, with_replacement=False):
    batch = batch_size * micro_steps
    scale = Fraction(num_data * batch) / Fraction(loss_scale) ** 2
    if not with_replacement:
        scale *= Fraction(num_data - 1, num_data - batch)
    return float(scale)


def scale(micro_steps, num_data, batch_size, **kwargs):
    moment = l2m.SecondMoment(nu=W, micro_steps=micro_steps)
    return l2m.laplace(W, moment, num_data=num_data, batch_size=batch_size, **kwargs).data_scale


def under_vmap(micro_steps, *args, **kwargs):
    many = jax.vmap(lambda k: scale(k, *args, **kwargs))(jnp.full(3, micro_steps, jnp.int32))
    assert many.shape == (3,)
    return many[0]


WAYS = {
    "eager": scale,
    "int32 array": lambda k, *args, **kwargs: scale(jnp.int32(k), *args, **kwargs),
    "jit": lambda k, *args, **kwargs: jax.jit(lambda k: scale(k, *args, **kwargs))(k),
    "vmap": under_vmap,
    "moment of an ensemble": lambda k, *args, **kwargs: scale(jnp.full(3, k), *args, **kwargs),
    "float": lambda k, *args, **kwargs: scale(float(k), *args, **kwargs),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", SIZES)
def test_scale_is_exact(size, way):
    num_data, batch_size, micro_steps = SIZES[size]
    for kwargs in ({}, {"loss_scale": 3e-6}, {"with_replacement": True}):
        found = WAYS[way](micro_steps, num_data, batch_size, **kwargs)
        wanted = exact(num_data, batch_size, micro_steps, **kwargs)
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, wanted, rtol=1e-6)


@pytest.mark.parametrize("kind", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8"])
def test_numpy_integers_of_every_width(kind):
    integer = np.dtype(kind).type
    most = min(np.iinfo(kind).max, 10**9)
    num_data, batch_size = integer(most), integer(most // 2)
    wanted = exact(int(most), int(most // 2), 1)
    np.testing.assert_allclose(scale(1, num_data, batch_size), wanted, rtol=1e-6)
    np.testing.assert_allclose(scale(integer(1), num_data, batch_size), wanted, rtol=1e-6)
    wanted = exact(2_000, 5, 100)
    np.testing.assert_allclose(scale(integer(100), 2_000, integer(5)), wanted, rtol=1e-6)


@pytest.mark.parametrize("micro_steps", [0, -1, 1.5, np.nan, [1, 2], 20, 21])
def test_micro_steps_that_cannot_be_are_refused(micro_steps):
    with pytest.raises(ValueError, match=r"micro_steps: expected|batch_size: expected fewer"):
        scale(np.asarray(micro_steps), 100, 5)


@pytest.mark.parametrize("micro_steps", [0.0, -1.0, 1.5, np.nan, 20.0, 21.0, 1e9, np.inf])
def test_micro_steps_that_cannot_be_give_nan_where_nothing_can_raise(micro_steps):
    assert np.isnan(jax.jit(lambda k: scale(k, 100, 5))(jnp.float32(micro_steps)))
    whole = micro_steps.is_integer() and micro_steps < 2**31
    if whole:
        assert np.isnan(jax.jit(lambda k: scale(k, 100, 5))(jnp.int32(micro_steps)))


@pytest.mark.parametrize("loss_scale", [1e-20, 1e30])
def test_a_scale_beyond_float32_is_refused(loss_scale):
    with pytest.raises(ValueError, match=r"loss_scale: expected .*, got .*; "):
        scale(1, 1_000_000, 100, loss_scale=loss_scale)
    traced = jax.jit(lambda c: scale(1, 1_000_000, 100, loss_scale=c))(loss_scale)
    assert np.isnan(traced)


@pytest.mark.parametrize("loss_scale", [0.0, -1.0, np.nan, np.inf])
def test_a_traced_loss_scale_that_cannot_be_gives_nan(loss_scale):
    assert np.isnan(jax.jit(lambda c: scale(1, 100, 5, loss_scale=c))(loss_scale))


def test_the_posterior_knows_the_number_of_examples():
    moment = l2m.SecondMoment(nu=W)
    posterior = l2m.laplace(W, moment, num_data=1_281_167, batch_size=np.int16(100))
    assert (posterior.num_data.dtype, float(posterior.num_data)) == (jnp.float32, 1_281_167.0)
