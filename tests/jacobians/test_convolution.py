"""Convolutions with their axes in order: values and derivatives of XLA's, and the order itself."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2m_optax.jacobians._factors import run_perturbed
from l2m_optax.jacobians._program import trace
from l2m_optax.jacobians._uses import find_uses


def normal(*shape):
    return jax.random.normal(jax.random.key(sum(shape)), shape)


# The kernel that is differentiated by, the one behind it, inputs, and what both share.
SPACE = {"window_strides": (1, 1), "padding": "SAME"}
CASES = {
    "in order": ((3, 3, 2, 4), (3, 3, 4, 2), (1, 5, 6, 2), ("NHWC", "HWIO", "NHWC"), SPACE),
    "channels first": ((4, 2, 3, 3), (2, 4, 3, 3), (1, 2, 5, 6), ("NCHW", "OIHW", "NCHW"), SPACE),
    "strides": (
        (2, 3, 2, 4),
        (2, 3, 4, 2),
        (1, 9, 8, 2),
        ("NHWC", "HWIO", "NHWC"),
        {"window_strides": (2, 1), "padding": ((1, 0), (2, 1))},
    ),
    "dilated": (
        (2, 2, 2, 4),
        (2, 2, 4, 2),
        (1, 6, 7, 2),
        ("NHWC", "HWIO", "NHWC"),
        SPACE | {"padding": ((1, 1), (0, 1)), "rhs_dilation": (1, 2), "lhs_dilation": (2, 1)},
    ),
    "groups": (
        (3, 3, 1, 4),
        (3, 3, 2, 2),
        (1, 5, 6, 2),
        ("NHWC", "HWIO", "NHWC"),
        SPACE | {"feature_group_count": 2},
    ),
    "sequence": (
        (4, 2, 3),
        (2, 4, 3),
        (1, 2, 7),
        ("NCH", "OIH", "NCH"),
        {"window_strides": (1,), "padding": "SAME"},
    ),
}


def made(name):
    """Two convolutions as they are written, and as they are run by the kernels' perturbations."""
    first, second, shape, numbers, keywords = CASES[name]
    x, kernels = normal(*shape), [normal(*first), normal(*second)]

    def plain(kernels):
        y = x
        for kernel in kernels:
            y = jax.lax.conv_general_dilated(
                jnp.tanh(y), kernel, dimension_numbers=numbers, **keywords
            )
        return y

    program = trace(lambda kernels, _: plain(kernels), kernels, x)
    uses = find_uses(program, 2)

    def ours(perturbations):
        return run_perturbed(program, uses, kernels, perturbations, [x])[0]

    zeros = [use.perturbation(k) for use, k in zip(uses, kernels, strict=True)]
    return plain, ours, kernels, zeros


@pytest.mark.parametrize("name", CASES)
def test_values_and_derivatives_are_those_of_xla(name):
    plain, ours, kernels, zeros = made(name)
    np.testing.assert_allclose(ours(zeros), plain(kernels), rtol=1e-5, atol=1e-5)
    _, _, shape, numbers, keywords = CASES[name]

    def convolved(y, kernel):
        return jax.lax.conv_general_dilated(
            jnp.tanh(y), kernel, dimension_numbers=numbers, **keywords
        )

    def behind(perturbation):
        return convolved(convolved(normal(*shape), kernels[0]) + perturbation, kernels[1])

    expected = jax.grad(lambda p: jnp.sum(jnp.square(behind(p))))(zeros[0])
    found = jax.grad(lambda p: jnp.sum(jnp.square(ours([p, zeros[1]]))))(zeros[0])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_all_of_them_are_in_order(name):
    _, ours, _, zeros = made(name)
    text = jax.jit(jax.grad(lambda p: jnp.sum(jnp.square(ours(p))))).lower(zeros).as_text()
    space = ", ".join(map(str, range(len(CASES[name][0]) - 2)))
    written = re.findall(r"dim_numbers = (\S.*?), window", text)
    assert len(written) == 3  # two forwards, and one back
    assert set(written) == {f"[b, {space}, f]x[{space}, i, o]->[b, {space}, f]"}


def test_a_kernel_that_is_used_twice_is_differentiated_too():
    kernel, x = normal(3, 3, 2, 2), normal(1, 5, 6, 2)
    numbers = ("NHWC", "HWIO", "NHWC")

    def plain(kernel):
        y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)
        return jax.lax.conv_general_dilated(
            jnp.tanh(y), kernel, (1, 1), "SAME", dimension_numbers=numbers
        )

    program = trace(lambda kernels, _: plain(kernels[0]), [kernel], x)
    uses = find_uses(program, 1)

    def ours(perturbation):
        return run_perturbed(program, uses, [kernel], [perturbation], [x])[0]

    expected = jax.grad(lambda k: jnp.sum(jnp.square(plain(k))))(kernel)
    found = jax.grad(lambda k: jnp.sum(jnp.square(ours(k))))(kernel)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
