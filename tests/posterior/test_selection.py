"""`restrict` and `release`: keys of every kind, predicates and masks, and what they refuse."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import l2m_optax as l2m


class Pair(NamedTuple):
    """Attribute names on a path."""

    weight: jax.Array
    bias: jax.Array


PARAMS = {
    "layers": [Pair(jnp.ones(2), jnp.ones(1)) for _ in range(4)],
    7: {"weight": jnp.ones(2), "3": jnp.ones(3)},
}
# Dictionary keys of one kind only can be sorted.
PARAMS = (PARAMS["layers"], {7: PARAMS[7]})
POSTERIOR = l2m.laplace(PARAMS, l2m.SecondMoment(nu=PARAMS), num_data=100, batch_size=10)


def free(posterior):
    """The paths of the leaves that are uncertain."""
    nu = jax.tree_util.tree_leaves_with_path(posterior.second_moment.nu)
    return {jax.tree_util.keystr(path) for path, _ in nu}


ALL = free(POSTERIOR)
CHOICES = {
    "index": (3, {p for p in ALL if p.startswith("[0][3]")}),
    "NumPy index": (np.int64(3), {p for p in ALL if p.startswith("[0][3]")}),
    "integer key": (7, {"[1][7]['weight']", "[1][7]['3']"}),
    "an index of two depths": (1, {p for p in ALL if p.startswith(("[0][1]", "[1]"))}),
    "attribute and key": ("weight", {p for p in ALL if "weight" in p}),
    "string of digits": ("3", {"[1][7]['3']"}),
    "predicate": (lambda path: path[-1] == "bias", {p for p in ALL if "bias" in p}),
    "mask": ((True, {7: False}), {p for p in ALL if p.startswith("[0]")}),
    "NumPy mask": ((np.False_, {7: {"weight": np.True_, "3": False}}), {"[1][7]['weight']"}),
    "everything": (True, ALL),
}


@pytest.mark.parametrize("case", CHOICES)
def test_where_chooses_leaves(case):
    where, wanted = CHOICES[case]
    assert free(l2m.restrict(POSTERIOR, where)) == wanted
    fixed = l2m.restrict(POSTERIOR, lambda path: path == (0, 0, "bias"))
    assert free(l2m.release(fixed, where)) == wanted | {"[0][0].bias"}


@pytest.mark.parametrize("where", [-1, 9, "absent", False, lambda path: False, -(2**70)])
def test_nothing_chosen_is_refused(where):
    with pytest.raises(ValueError, match=r"where: expected a leaf with a second moment, got none"):
        l2m.restrict(POSTERIOR, where)
    with pytest.raises(ValueError, match=r"where: expected a fixed leaf, got none"):
        l2m.release(l2m.restrict(POSTERIOR, 7), where)


@pytest.mark.parametrize(
    ("where", "error", "message"),
    [
        ((1, {7: 0}), TypeError, r"where\[0\]: expected True or False, got 1"),
        (1.0, TypeError, r"where: expected True or False, got 1.0"),
        ((True, {7: "weight"}), TypeError, r"where\[1\]\[7\]: expected True or False"),
        ((True, {7: jnp.ones(2, bool)}), TypeError, r"where\[1\]\[7\]: expected True or False"),
        ((True, {8: True}), ValueError, "where: expected a prefix of the parameters"),
        ((True, True, True), ValueError, "where: expected a prefix of the parameters"),
        (None, ValueError, "where: expected a prefix of the parameters"),
    ],
    ids=["ints", "float", "string", "array", "other key", "longer", "None"],
)
@pytest.mark.parametrize("function", [l2m.restrict, l2m.release])
def test_masks_of_something_else_are_refused(function, where, error, message):
    with pytest.raises(error, match=message):
        function(POSTERIOR, where)


def test_a_layer_of_an_equinox_model_by_its_index():
    model = eqx.nn.MLP(2, 1, 4, 3, key=jax.random.key(0))
    params = eqx.filter(model, eqx.is_array)
    posterior = l2m.laplace(params, l2m.SecondMoment(nu=params_squared(params)), **COUNTS)
    last = l2m.restrict(posterior, 3)
    assert free(last) == {".layers[3].weight", ".layers[3].bias"}
    # A mask of booleans in the shape of a model can be called, and is no predicate.
    mask = jax.tree.map(lambda _: False, params)
    mask = eqx.tree_at(lambda tree: tree.layers[3].weight, mask, True)
    assert free(l2m.restrict(posterior, mask)) == {".layers[3].weight"}


COUNTS = {"num_data": 100, "batch_size": 10}


def params_squared(params):
    return jax.tree.map(jnp.square, params)
