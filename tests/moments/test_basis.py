"""Rotations of a leaf against the Kronecker product, formed, of its two sides."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import dense_basis, orthogonal

import l2m_optax as l2m
from l2m_optax.moments._basis import Basis, diagonal, rotate_back, rotate_into

CASES = {
    "both": ((4, 5), (4,), (5,)),
    "left": ((4, 5), (4,), None),
    "right": ((4, 5), None, (5,)),
    "neither": ((4, 5), None, None),
    "full": ((4, 5), (20,), None),
    "vector": ((5,), (5,), None),
    "row": ((5,), None, (5,)),
    "scalar": ((), (1,), None),
    "kernel, first axes": ((2, 2, 3, 4), (12,), (4,)),
    "kernel, last axes": ((2, 2, 3, 4), (2,), (24,)),
    "kernel, one side": ((2, 2, 3, 4), None, (12,)),
    "stacked": ((3, 4, 5), (3, 4), (3, 5)),
    "stacked, one side": ((3, 4, 2), (3, 4), None),
    "stacked twice": ((2, 3, 4), (2, 3, 4), None),
    "two members of four axes": ((2, 2, 3, 4), (2, 6), (2, 4)),
}


def made(case, dtype=jnp.float32):
    shape, left, right = CASES[case]
    sides = [
        None if s is None else orthogonal(i, s).astype(dtype) for i, s in enumerate((left, right))
    ]
    return shape, Basis(*sides)


def leaf(shape, dtype=jnp.float32, seed=9):
    return jax.random.normal(jax.random.key(seed), shape, dtype)


@pytest.mark.parametrize("case", CASES)
def test_rotations_are_the_kronecker_product(case):
    shape, basis = made(case)
    x, q = leaf(shape), dense_basis(basis, shape)
    flat = np.asarray(x, np.float64).ravel()
    for function, matrix in ((rotate_into, q.T), (rotate_back, q), (diagonal, q**2)):
        found = function(basis, x)
        assert found.shape == shape
        np.testing.assert_allclose(np.ravel(found), matrix @ flat, rtol=2e-5, atol=2e-6)


def test_without_a_basis_nothing_is_touched():
    x = leaf((3, 2), jnp.bfloat16)
    for function in (rotate_into, rotate_back, diagonal):
        assert function(None, x) is x
        assert function(Basis(), x) is x


@pytest.mark.parametrize("case", ["both", "stacked", "kernel, first axes"])
def test_an_ensemble_is_a_stack(case):
    shape, basis = made(case)
    members = jax.tree.map(lambda side: jnp.stack([side, -side[..., ::-1]]), basis)
    x = leaf((2, *shape))
    for function in (rotate_into, rotate_back, diagonal):
        np.testing.assert_allclose(
            jax.vmap(function)(members, x), function(members, x), rtol=1e-5, atol=1e-6
        )


def test_low_precision_is_rotated_in_float32():
    shape, basis = made("both", jnp.bfloat16)
    x = leaf(shape, jnp.bfloat16)
    q = dense_basis(basis, shape)
    found = rotate_into(basis, x)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(
        np.ravel(found), q.T @ np.asarray(x, np.float64).ravel(), rtol=2e-5, atol=2e-6
    )


def built(basis, shape=(4, 5), **kwargs):
    moment = l2m.SecondMoment({"w": jnp.ones(shape)}, basis={"w": basis})
    return l2m.laplace({"w": jnp.ones(shape)}, moment, num_data=50, batch_size=5, **kwargs)


REFUSED = {
    "too short": (Basis(orthogonal(0, (3,))), "square matrices that fold a leaf of shape (4, 5)"),
    "not square": (Basis(jnp.ones((4, 3))), "square matrices that fold"),
    "a vector": (Basis(jnp.ones(4)), "square matrices that fold"),
    "two folds": (Basis(orthogonal(0, (4,)), orthogonal(1, (4,))), "square matrices that fold"),
    "stacked in one": (Basis(orthogonal(0, (4, 5)), orthogonal(1, (5,))), "square matrices"),
    "not orthogonal": (Basis(jnp.ones((4, 4))), "an orthogonal matrix"),
    "too long": (Basis(2.0 * jnp.eye(4)), "an orthogonal matrix"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_basis_is_refused(case):
    basis, message = REFUSED[case]
    with pytest.raises(ValueError, match=r"basis\['w'\]") as caught:
        built(basis)
    assert message in str(caught.value)


def test_a_basis_of_nothing_is_refused():
    moment = l2m.SecondMoment({"w": jnp.ones((4, 5))}, basis={"v": Basis(orthogonal(0, (4,)))})
    with pytest.raises(ValueError, match=r"basis\['v'\]: expected a leaf of the parameters"):
        l2m.laplace({"w": jnp.ones((4, 5))}, moment, num_data=50, batch_size=5)


def test_a_basis_that_holds_nan_is_refused():
    with pytest.raises(FloatingPointError, match=r"basis\['w'\].left"):
        built(Basis(jnp.full((4, 4), jnp.nan)))


def test_a_prior_precision_for_each_element_of_a_rotated_leaf_is_refused():
    with pytest.raises(ValueError, match=r"prior_precision\['w'\].*pass one number") as caught:
        built(Basis(orthogonal(0, (4,))), prior_precision={"w": jnp.ones((4, 5))})
    assert "structure='diagonal'" in str(caught.value)
    built(None, prior_precision={"w": jnp.ones((4, 5))})
