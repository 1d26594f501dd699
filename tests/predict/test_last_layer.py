"""`last_layer`: the leaves in which outputs are linear, of networks in which they are known."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import moment_of

import l2m_optax as l2m
from l2m_optax._support.checks import path_name

X = jax.random.normal(jax.random.key(0), (12, 6))
IMAGES = jax.random.normal(jax.random.key(1), (5, 8, 8, 2))
TOKENS = jax.random.randint(jax.random.key(2), (5, 7), 0, 11)
SIZES = {
    "a": (6, 16),
    "b": (16, 16),
    "c": (16, 3),
    "k": (3, 3, 2, 5),
    "h": (5, 3),
    "s": (),
    "g": (3,),
}


def params_of(*shapes, **others):
    """Leaves named after their shapes in SIZES, and others of shapes given by name."""
    shapes = {name: SIZES[name] for name in shapes} | others
    keys = jax.random.split(jax.random.key(3), len(shapes))
    return {
        name: jax.random.normal(key, shape) / max(np.prod(shape[:-1]), 1) ** 0.5
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def mlp(p, x, act=jax.nn.relu):
    hidden = act(act(x @ p["a"] + p["bias_a"]) @ p["b"] + p["bias_b"])
    return hidden @ p["c"] + p["g"]


MLP = params_of("a", "b", "c", "g", bias_a=(16,), bias_b=(16,))
ZERO_BIASES = MLP | {name: jnp.zeros_like(MLP[name]) for name in ("g", "bias_a", "bias_b")}


def cnn(p, x):
    maps = jax.lax.conv_general_dilated(
        x, p["k"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return jnp.mean(jax.nn.relu(maps), axis=(1, 2)) @ p["h"] + p["g"]


def tied(p, tokens):
    hidden = jnp.tanh(p["table"][tokens] @ p["w"])
    return hidden @ p["table"].T + p["bias"]


def attention(p, tokens):
    x = p["table"][tokens]
    scores = jax.nn.softmax((x @ p["q"]) @ (x @ p["key"]).swapaxes(1, 2), axis=-1)
    x = jax.nn.standardize(x + scores @ x @ p["v"]) * p["scale"] + p["shift"]
    return x @ p["out"]


TRANSFORMER = params_of(
    table=(11, 8), q=(8, 8), key=(8, 8), v=(8, 8), scale=(8,), shift=(8,), out=(8, 11)
)


def with_lora(p, x):
    return jnp.tanh(x @ p["a"]) @ (p["c"] + 0.01 * p["down"] @ p["up"]) + p["g"]


def normalised(p, x):
    """BatchNorm with running statistics behind the last product."""
    return (mlp(p, x) - 0.3) / 1.7 * p["gamma"] + p["beta"]


CASES = {
    "MLP": (mlp, MLP, X, "c g"),
    "MLP, biases 0": (mlp, ZERO_BIASES, X, "c g"),
    "MLP, tanh": (lambda p, x: mlp(p, x, jnp.tanh), MLP, X, "c g"),
    "MLP, gelu": (lambda p, x: mlp(p, x, jax.nn.gelu), MLP, X, "c g"),
    "MLP, leaky": (lambda p, x: mlp(p, x, jax.nn.leaky_relu), MLP, X, "c g"),
    "MLP, small biases": (mlp, MLP | {"bias_a": 1e-3 * MLP["bias_a"]}, X, "c g"),
    "one input": (mlp, MLP, X[:1], "c g"),
    "CNN, global mean": (cnn, params_of("k", "h", "g"), IMAGES, "g h"),
    "tied embeddings": (tied, params_of(table=(11, 8), w=(8, 8), bias=(11,)), TOKENS, "bias"),
    "embeddings": (attention, TRANSFORMER, TOKENS, "out"),
    "linear model": (lambda p, x: x @ p["w"] + p["s"], params_of("s", w=(6, 3)), X, "s w"),
    "one column": (lambda p, x: x @ p["w"] + p["s"], params_of("s", w=(6,)), X, "s w"),
    "product of two": (lambda p, x: x @ p["c"] @ p["a"], params_of("a", c=(6, 6)), X, "a"),
    "two heads": (
        lambda p, x: jnp.concatenate([jnp.tanh(x @ p["a"]) @ p[n] for n in ("c", "d")], -1),
        params_of("a", "c", d=(16, 2)),
        X,
        "c d",
    ),
    "mean, and a positive deviation": (
        lambda p, x: jnp.stack(
            [jnp.tanh(x @ p["a"]) @ p["m"], jnp.exp(jnp.tanh(x @ p["a"]) @ p["v"])], -1
        ),
        params_of("a", m=(16,), v=(16,)),
        X,
        "m",
    ),
    "LoRA beside the last layer": (
        with_lora,
        params_of("a", "c", "g", down=(16, 2), up=(2, 3)),
        X,
        "c g up",
    ),
    "LoRA alone": (
        lambda p, x: jnp.tanh(x @ MLP["a"]) @ (MLP["c"] + p["down"] @ p["up"]),
        params_of(down=(16, 2), up=(2, 3)),
        X,
        "up",
    ),
    "LoRA, up still 0": (
        with_lora,
        params_of("a", "c", "g", down=(16, 2)) | {"up": jnp.zeros((2, 3))},
        X,
        "c g up",
    ),
    "a scale behind": (lambda p, x: mlp(p, x) * p["s"], MLP | {"s": jnp.ones(())}, X, "c g"),
    "a temperature behind": (lambda p, x: mlp(p, x) / p["s"], MLP | {"s": jnp.ones(())}, X, "c g"),
    "BatchNorm behind": (
        normalised,
        MLP | {"gamma": jnp.ones(3), "beta": jnp.zeros(3)},
        X,
        "beta c g",
    ),
    "unused leaf": (mlp, MLP | {"unused": jnp.ones((4, 4))}, X, "c g"),
    "residual block": (
        lambda p, x: (jnp.tanh(x @ p["a"]) + jax.nn.relu(jnp.tanh(x @ p["a"]) @ p["b"])) @ p["c"],
        params_of("a", "b", "c"),
        X,
        "c",
    ),
    "large outputs": (lambda p, x: 1e4 * (1 + mlp(p, x)), MLP, X, "c g"),
    "under jit": (jax.jit(mlp), MLP, X, "c g"),
    "under checkpoint": (jax.checkpoint(mlp), MLP, X, "c g"),
}


def names(mask):
    leaves = jax.tree_util.tree_leaves_with_path(mask)
    assert all(isinstance(chosen, bool) for _, chosen in leaves)
    return " ".join(path_name(path, "").strip("[].'") for path, chosen in leaves if chosen)


@pytest.mark.parametrize("case", CASES)
def test_the_leaves_are_the_known_ones(case):
    apply_fn, params, inputs, expected = CASES[case]
    assert names(l2m.last_layer(apply_fn, params, inputs)) == expected


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_types(dtype):
    params = jax.tree.map(lambda x: x.astype(dtype), MLP)
    assert names(l2m.last_layer(mlp, params, X.astype(dtype))) == "c g"


def inside_bfloat16(p, x):
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), p)
    return mlp(narrow, x.astype(jnp.bfloat16)).astype(jnp.float32)


def test_narrow_inside():
    assert names(l2m.last_layer(inside_bfloat16, MLP, X)) == "c g"


def test_flax():
    import flax.linen as nn

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Conv(4, (3, 3))(x))
            x = nn.LayerNorm()(x).mean((1, 2))
            x = nn.relu(nn.Dense(9)(x))
            return nn.Dense(3)(x)

    model = Net()
    params = model.init(jax.random.key(0), IMAGES)
    mask = l2m.last_layer(model.apply, params, IMAGES)
    assert jax.tree.leaves(mask["params"].pop("Dense_1")) == [True, True]
    assert not any(jax.tree.leaves(mask))


class Layer(NamedTuple):
    weight: jax.Array
    bias: jax.Array | None


def test_models_that_are_trees_and_restrict():
    """Lists of layers, as in equinox, without a last bias; `restrict` takes what is found."""
    model = [Layer(MLP["a"].T, MLP["bias_a"]), Layer(MLP["c"].T, None)]

    def apply_fn(model, x):
        return jnp.tanh(x @ model[0].weight.T + model[0].bias) @ model[1].weight.T

    mask = l2m.last_layer(apply_fn, model, X)
    assert mask == [Layer(False, False), Layer(True, None)]
    posterior = l2m.laplace(model, moment_of(model), num_data=50, batch_size=5)
    free = l2m.variance(l2m.restrict(posterior, mask))
    assert np.all(free[0].weight == 0)
    assert np.all(free[1].weight > 0)


def test_one_array():
    assert l2m.last_layer(lambda w, x: x @ w, MLP["a"], X) is True


def soft_cap(z):
    return 30.0 * jnp.tanh(z / 30.0)


def clip(z):
    return jnp.clip(z, -50.0, 50.0)


ENDS = [jax.nn.softmax, jax.nn.log_softmax, jax.nn.sigmoid, jnp.tanh, jax.nn.relu, soft_cap, clip]


@pytest.mark.parametrize("end", ENDS)
def test_networks_that_end_otherwise_are_refused(end):
    with pytest.raises(ValueError, match=r"apply_fn: expected outputs.*return the logits"):
        l2m.last_layer(lambda p, x: end(mlp(p, x)), MLP, X)


def test_bad_arguments_are_refused():
    with pytest.raises(FloatingPointError, match="NaN or infinite"):
        l2m.last_layer(mlp, MLP | {"g": jnp.full(3, jnp.nan)}, X)
    with pytest.raises(TypeError, match="one array of real outputs"):
        l2m.last_layer(lambda p, x: (mlp(p, x), x), MLP, X)
    with pytest.raises(TypeError, match="params: expected arrays with values"):
        jax.jit(lambda p: l2m.last_layer(mlp, p, X))(MLP)


def test_a_network_that_makes_numbers_of_its_own():
    """Positions by `arange`: an equation without operands is on the way of no leaf."""

    def apply_fn(params, x):
        positions = jnp.arange(x.shape[1]).astype(jnp.float32)
        return jnp.tanh(x * params["body"] + positions) @ params["head"]

    params = {"body": jnp.ones(3), "head": jnp.ones((3, 2))}
    found = l2m.last_layer(apply_fn, params, jax.random.normal(jax.random.key(0), (4, 3)))
    assert found == {"body": False, "head": True}
