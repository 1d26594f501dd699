"""`identify` on trees like those of real networks: sizes, places, late schedules, many calls."""

import gc
import re
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_identify_optimizers import (
    PARAMS,
    RATE,
    assert_close,
    averaged,
    gradients,
    mean_of_squares,
    run,
)

import l2m_optax as l2m

MLP = {
    "body": {"b": jnp.ones(3), "w": jnp.ones((2, 3))},
    "head": {"b": jnp.ones(2), "w": jnp.ones((3, 2))},
}
WIDE = {f"Dense_{i}": {"bias": jnp.ones(64), "kernel": jnp.ones((64, 64))} for i in range(2)}
LARGE = jax.eval_shape(
    lambda: {"table": jnp.ones((5000, 30)), "out": jnp.ones((30, 400)), "bias": jnp.ones(400)}
)


def per_leaf(function):
    """A transformation that applies ``function(gradient, parameter)`` to every leaf."""
    return optax.stateless(lambda g, p: jax.tree.map(function, g, p))


def before_adam(function):
    return optax.chain(per_leaf(function), optax.adam(RATE))


def sizes(limit):
    return lambda params: jax.tree.map(lambda p: p.size > limit, params)


# --- micro-steps ---------------------------------------------------------------------------------


def random_tree(seed):
    rng = np.random.default_rng(seed)
    shape = lambda: tuple(int(d) for d in rng.integers(1, 6, rng.integers(0, 4)))  # noqa: E731
    return {f"leaf{i}": jnp.ones(shape()) for i in range(rng.integers(2, 12))}


@pytest.mark.parametrize("k", [2, 3, 4, 8])
@pytest.mark.parametrize("params", [MLP, WIDE], ids=["small", "wide"])
def test_accumulation_on_trees_of_networks(params, k):
    found = l2m.identify(optax.MultiSteps(optax.adam(RATE), k), params)
    assert {(m.kind, m.decay, m.micro_steps, m.rescaling) for m in found.leaves} == {
        ("mean", 0.999, k, 1.0)
    }


@pytest.mark.parametrize("seed", range(12))
def test_accumulation_on_random_trees(seed):
    k = (2, 3, 4, 8)[seed % 4]
    found = l2m.identify(optax.MultiSteps(optax.adam(RATE), k), random_tree(seed))
    assert {(m.kind, m.micro_steps) for m in found.leaves} == {("mean", k)}


def test_nested_accumulation_is_read():
    inner = optax.MultiSteps(optax.adam(RATE, b2=0.9), 3).gradient_transformation()
    tx, grads = optax.MultiSteps(inner, 2), gradients(MLP)
    moment = l2m.second_moment(run(tx, MLP, grads), MLP, tx=tx)
    assert moment.micro_steps == 6
    assert_close(moment, mean_of_squares(averaged(grads, 6), 0.9), rtol=1e-4)


def sometimes(k, place):
    """A mean of squares that takes one of k gradients."""

    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return optax.ScaleByRmsState(nu=(zeros, jnp.zeros((), jnp.int32)))

    def update(g, state, params=None):
        nu, count = state.nu
        new = jax.tree.map(lambda n, x: 0.9 * n + 0.1 * x * x, nu, g)
        now = count % k == place
        nu = jax.tree.map(lambda a, b: jnp.where(now, a, b), new, nu)
        return g, optax.ScaleByRmsState(nu=(nu, count + 1))

    return optax.GradientTransformation(init, update)


@pytest.mark.parametrize(("k", "place"), [(2, 0), (3, 0), (3, 1)])
def test_a_moment_that_stands_still_is_named(k, place):
    with pytest.raises(TypeError, match="that some updates leave as it is"):
        l2m.identify(sometimes(k, place), MLP)


def test_too_many_micro_steps_are_named():
    with pytest.raises(TypeError, match="no update of any second moment in 64 calls"):
        l2m.identify(optax.MultiSteps(optax.adam(RATE), 100), MLP)


# --- sizes and places ----------------------------------------------------------------------------

LIMIT = 20_000  # between the sizes of the leaves of LARGE
BY_SIZE = {
    "clip": optax.masked(optax.clip(1.0), sizes(LIMIT)),
    "decay": optax.add_decayed_weights(0.1, mask=sizes(LIMIT)),
    "centralize": optax.masked(optax.centralize(), sizes(LIMIT)),
    "mean subtracted": per_leaf(lambda g, p: g - g.mean() if p.size > LIMIT else g),
    "size": per_leaf(lambda g, p: g / g.size),
    "fan_in": per_leaf(lambda g, p: g / np.sqrt(p.shape[0])),
    "row zeroed": per_leaf(lambda g, p: g.at[4999].set(0.0) if p.ndim == 2 else g),
    "rates of rows": per_leaf(lambda g, p: (g.T * jnp.linspace(1.0, 3.0, p.shape[0])).T),
}
SMALL = {"table": jnp.ones((50, 30)), "bias": jnp.ones(7)}
PLACES = {
    "row zeroed": lambda g, p: g.at[49].set(0.0) if p.ndim == 2 else g,
    "rates of rows": lambda g, p: (g.T * jnp.linspace(1.0, 3.0, p.shape[0])).T,
    "last entry": lambda g, p: g.at[(-1,) * p.ndim].multiply(3.0),
}


@pytest.mark.parametrize("name", BY_SIZE)
def test_what_goes_by_size_or_place_in_large_leaves_is_refused(name):
    with pytest.raises(TypeError, match="track_second_moment"):
        l2m.identify(optax.chain(BY_SIZE[name], optax.adam(RATE)), LARGE)


@pytest.mark.parametrize("name", PLACES)
def test_what_goes_by_place_is_refused(name):
    with pytest.raises(TypeError, match="track_second_moment"):
        l2m.identify(before_adam(PLACES[name]), SMALL)


@pytest.mark.parametrize("limit", [10, 1000])
def test_a_clip_masked_by_size_is_named(limit):
    tx = optax.chain(optax.masked(optax.clip(1.0), sizes(limit)), optax.adam(RATE))
    with pytest.raises(TypeError, match="clipped when they are large"):
        l2m.identify(tx, SMALL)


@pytest.mark.parametrize(
    ("divisor", "of"),
    [(lambda p: p.size, "size"), (lambda p: np.sqrt(p.shape[0]), "fan_in")],
    ids=["size", "fan_in"],
)
def test_rescalings_are_those_of_the_real_shapes(divisor, of):
    tx, grads = before_adam(lambda g, p: g / divisor(p)), gradients(SMALL)
    found = l2m.identify(tx, SMALL)
    for moment, p in zip(found.leaves, jax.tree.leaves(SMALL), strict=True):
        assert moment.rescaling == pytest.approx(1 / divisor(p), rel=1e-5), of
    moment = l2m.second_moment(run(tx, SMALL, grads), SMALL, tx=tx)
    assert_close(moment, mean_of_squares(grads, 0.999), rtol=1e-4)


@pytest.mark.parametrize("params", [SMALL, LARGE], ids=["small", "large"])
def test_masks_of_real_shapes_behind_the_moment_do_no_harm(params):
    masks = jax.tree.map(lambda p: jnp.arange(p.size).reshape(p.shape) % 2, params)
    tx = optax.chain(
        optax.adam(RATE), optax.stateless(lambda u, _: jax.tree.map(jnp.multiply, u, masks))
    )
    assert {(m.kind, m.rescaling) for m in l2m.identify(tx, params).leaves} == {("mean", 1.0)}


@pytest.mark.parametrize("name", ["adam", "rmsprop", "adafactor", "lamb", "adabelief", "adan"])
def test_large_leaves_have_the_verdict_of_small_ones(name):
    tx = getattr(optax, name, None) or getattr(optax.contrib, name)
    large, small = (
        l2m.identify(tx(RATE), params).leaves
        for params in (LARGE, jax.tree.map(lambda p: jnp.ones((2,) * p.ndim), LARGE))
    )
    assert [m and m._replace(kind="") for m in large] == [m and m._replace(kind="") for m in small]


def test_large_leaves_are_factored_where_the_state_is():
    params = {"w": jax.ShapeDtypeStruct((3000, 500), jnp.float32), "b": jnp.ones(5)}
    found = l2m.identify(optax.adafactor(RATE), params)
    assert [m.kind for m in found.leaves] == ["unbiased", "factored"]
    clipped = optax.chain(optax.masked(optax.clip(1.0), sizes(10**6)), optax.adafactor(RATE))
    with pytest.raises(TypeError, match="track_second_moment"):
        l2m.identify(clipped, params)


# --- late changes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("late", "tx"),
    [
        (500, optax.adam(RATE)),
        (50_000, optax.adagrad(RATE)),
        (10_000_000, optax.adam(RATE)),
    ],
)
def test_schedules_that_change_late_are_refused(late, tx):
    schedule = optax.scale_by_schedule(lambda t: jnp.where(t < late, 1.0, 0.5))
    with pytest.raises(TypeError, match="track_second_moment") as raised:
        l2m.identify(optax.chain(schedule, tx), MLP)
    seen = r"(nu|squares)\[.*\], whose scale changes .*between 0.25 and 1\), as with a schedule"
    assert re.search(seen, str(raised.value))


def test_the_refusal_of_a_late_schedule_of_b2_says_so_and_its_remedy_works():
    adam = optax.inject_hyperparams(optax.adam)
    tx = adam(RATE, b2=lambda t: jnp.where(t < 50_000, 0.9, 0.99))
    with pytest.raises(TypeError, match=r"decay changes .*between 0.9 and 0.99\).*of b2;"):
        l2m.identify(tx, SMALL)
    tx, grads = optax.chain(l2m.track_second_moment(0.999), tx), gradients()
    moment = l2m.second_moment(run(tx, PARAMS, grads), PARAMS, tx=tx)
    assert_close(moment, mean_of_squares(grads, 0.999))


@pytest.mark.parametrize(
    "tx",
    [
        optax.sgd(RATE, momentum=0.9),
        optax.chain(optax.ema(0.9), optax.adam(RATE)),
        optax.chain(optax.contrib.normalize(), optax.adam(RATE)),
        optax.adamax(RATE),
        optax.conditionally_transform(optax.adam(RATE), lambda step, **_: step < 500),
        optax.chain(optax.clip(1.0), optax.adagrad(RATE)),
    ],
    ids=["momentum", "ema", "normalize", "adamax", "conditional", "clipped"],
)
def test_no_schedule_is_named_where_there_is_none(tx):
    with pytest.raises(TypeError) as raised:
        l2m.identify(tx, SMALL)
    assert "changes" not in str(raised.value)


# --- memory --------------------------------------------------------------------------------------


def counted(tx):
    calls = []

    def init(params):
        calls.append(1)
        return tx.init(params)

    return optax.GradientTransformation(init, tx.update), calls


def test_a_verdict_is_remembered_by_transformation_and_shapes():
    tx, calls = counted(optax.adam(RATE))
    first = l2m.identify(tx, MLP)
    done = len(calls)
    assert l2m.identify(tx, jax.eval_shape(lambda: MLP)) is first
    assert len(calls) == done
    assert l2m.identify(tx, SMALL) != first
    assert len(calls) > done


def test_multisteps_is_remembered():
    tx = optax.MultiSteps(optax.adam(RATE), 2)
    assert l2m.identify(tx, MLP) is l2m.identify(tx, MLP)


def test_another_transformation_is_another_verdict():
    for b2 in (0.9, 0.99, 0.95):
        assert l2m.identify(optax.adam(RATE, b2=b2), MLP).leaves[0].decay == b2


def test_the_memory_keeps_no_transformation_alive():
    array = np.ones(3)

    def update(g, state, params=None):
        return jax.tree.map(lambda x: x * array[0], g), state

    tx = optax.chain(optax.adam(RATE), optax.GradientTransformation(lambda p: (), update))
    l2m.identify(tx, MLP)
    reference = weakref.ref(tx.update)
    del tx, update
    jax.clear_caches()
    gc.collect()
    assert reference() is None


def test_a_transformation_without_a_weak_reference_is_not_remembered():
    class Slotted:
        __slots__ = ()

        def __call__(self, params):
            return optax.adam(RATE).init(params)

    tx = optax.GradientTransformation(Slotted(), optax.adam(RATE).update)
    assert l2m.identify(tx, MLP) == l2m.identify(tx, MLP)
