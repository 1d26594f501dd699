"""Every public optimizer of optax: read, corrected, or refused; and what wrappers make of them."""

import functools
import inspect
import re
import sys
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.core import freeze
from flax.serialization import to_state_dict
from flax.training.train_state import TrainState
from optax import contrib
from optimizers import CORRECTED, NOT_OPTIMIZERS, READ, REFUSED

import l2m_optax as l2m

PARAMS = {
    "body": {
        "bias": jnp.linspace(0.5, 1.0, 4),
        "kernel": jnp.linspace(-1.0, 1.0, 12).reshape(3, 4),
    },
    "scale": jnp.ones(()),
}
NUM_STEPS = 12
RATE = 1e-3


VARIANTS = {
    "adam long": (lambda: optax.adam(RATE, b2=0.9999999), 0.9999999),
    "rmsprop centered": (lambda: optax.rmsprop(RATE, centered=True), 0.9),
    "rmsprop bias_correction": (lambda: optax.rmsprop(RATE, bias_correction=True), 0.9),
    "rmsprop initial_scale": (lambda: optax.rmsprop(RATE, initial_scale=0.5), 0.9),
}


def make(name):
    build = getattr(optax, name, None) or getattr(contrib, name, None)
    if build is None:
        pytest.skip(f"optax {optax.__version__} has no {name}")
    rates = [p for p in inspect.signature(build).parameters if "learning_rate" in p]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return build(**{rates[0]: RATE})


def gradients(params=PARAMS, steps=NUM_STEPS):
    rng = np.random.default_rng(3)
    draw = lambda p: jnp.asarray(rng.normal(1.0, 2.0, p.shape), p.dtype)  # noqa: E731
    return [jax.tree.map(draw, params) for _ in range(steps)]


def run(tx, params, grads, **extra):
    update = jax.jit(tx.update)
    state = tx.init(params)
    for g in grads:
        _, state = update(g, state, params, **extra)
    return state


def mean_of_squares(grads, decay):
    """Debiased EMA of squares, float64."""

    def mean(*leaves):
        weights = decay ** np.arange(len(leaves))[::-1]
        squares = [np.square(np.asarray(g, np.float64)) for g in leaves]
        return np.tensordot(weights / weights.sum(), np.stack(squares), axes=1)

    return jax.tree.map(mean, *grads)


def assert_close(moment, expected, rtol=1e-5):
    assert jax.tree.structure(moment.nu) == jax.tree.structure(expected)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol),
        l2m.moments.debiased(moment),
        expected,
    )


def public_transformations():
    """Whatever says that it returns a transformation, or takes a learning rate."""
    for module in (optax, contrib):
        for name, function in vars(module).items():
            if inspect.isfunction(function) and not name.startswith("_"):
                signature = inspect.signature(function)
                returns = "GradientTransformation" in str(signature.return_annotation)
                if returns or any("learning_rate" in p for p in signature.parameters):
                    yield name


def test_no_public_optimizer_is_missing():
    known = READ.keys() | CORRECTED.keys() | REFUSED.keys()
    known |= set(" ".join(NOT_OPTIMIZERS.values()).split())
    # The parts that the optimizers are made of.
    found = {name for name in public_transformations() if not name.startswith("scale_by_")}
    assert found - known == set()


def test_the_table_in_the_docs_is_in_step():
    root = Path(__file__).parents[2]
    sys.path.append(str(root / "docs"))
    from make_optimizers import table

    assert (root / "docs" / "optimizers.md").read_text(encoding="utf-8") == table()


@pytest.mark.parametrize("name", [*READ, *VARIANTS])
def test_read_directly(name):
    build, decay = VARIANTS.get(name) or (functools.partial(make, name), READ[name])
    tx, grads = build(), gradients()
    extra = {"value": 1.0} if name in ("momo_adam",) else {}
    state = run(tx, PARAMS, grads, **extra)
    moment = l2m.second_moment(state, PARAMS, tx=tx, count=NUM_STEPS)
    np.testing.assert_allclose(moment.decay, decay, rtol=1e-9)
    assert_close(moment, mean_of_squares(grads, decay))


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_refused(name):
    tx = make(name)
    with pytest.raises(TypeError, match="track_second_moment") as caught:
        l2m.identify(tx, PARAMS)
    assert re.search(r": expected .+, got .+; .+", str(caught.value), re.S)


def test_adopt_is_never_debiased():
    tx, grads = make("adopt"), gradients()
    expected = jax.tree.map(np.square, grads[0])
    for g in grads[1:]:
        expected = jax.tree.map(lambda e, x: 0.9999 * e + 1e-4 * x**2, expected, g)
    # Its own 1 - b2 is that of float32, 2e-4 off.
    moment = l2m.second_moment(run(tx, PARAMS, grads), PARAMS, tx=tx)
    assert_close(moment, expected, rtol=2e-4)


def test_adagrad_needs_a_count_or_counts_when_exposed():
    tx, grads = make("adagrad"), gradients()
    state, expected = run(tx, PARAMS, grads), mean_of_squares(grads, 1.0)
    with pytest.raises(ValueError, match="pass count="):
        l2m.second_moment(state, PARAMS, tx=tx)
    assert_close(l2m.second_moment(state, PARAMS, tx=tx, count=NUM_STEPS), expected)
    exposed = run(l2m.expose_second_moment(tx), PARAMS, grads)
    assert_close(exposed.read_second_moment(), expected)


def test_adafactor_is_exact_for_squares_of_rank_one():
    params = {"matrix": jnp.ones((130, 140)), "wide": jnp.ones((2, 150, 128)), "bias": jnp.ones(5)}
    rng = np.random.default_rng(0)

    def rank_one(p):
        axes = [np.exp(rng.normal(size=d)) for d in p.shape]
        square = functools.reduce(np.multiply.outer, axes)
        return np.sqrt(square) * rng.choice([-1.0, 1.0], p.shape)

    first = jax.tree.map(rank_one, params)
    grads = [jax.tree.map(lambda g, s=s: jnp.asarray(s * g, jnp.float32), first) for s in (1, 2, 3)]
    expected = jax.tree.map(np.zeros_like, first)
    for t, g in enumerate(grads, 1):
        decay = 1 - t**-0.8
        expected = jax.tree.map(lambda e, x, d=decay: d * e + (1 - d) * x**2, expected, g)
    tx = make("adafactor")
    found = l2m.identify(tx, params)
    assert [m.kind for m in found.leaves] == ["unbiased", "factored", "factored"]
    assert_close(l2m.second_moment(run(tx, params, grads), params, tx=tx), expected, rtol=1e-4)


@pytest.mark.parametrize("name", ["adabelief", "acprop", "adan"])
def test_corrected_to_the_variance(name):
    """Gradients of variance 4 about 0, or about 1.5 where the mean is subtracted."""
    center = 0.0 if name == "adan" else 1.5
    tx, params = make(name), jnp.ones(200)

    def step(state, key):
        g = center + 2.0 * jax.random.normal(key, params.shape)
        return tx.update(g, state, params)[1], None

    keys = jax.random.split(jax.random.key(0), 4000)
    state = jax.jit(lambda s: jax.lax.scan(step, s, keys)[0])(tx.init(params))
    moment = l2m.second_moment(state, params, tx=tx)
    np.testing.assert_allclose(jnp.mean(l2m.moments.debiased(moment)), 4.0, rtol=0.02)


def test_a_centered_moment_waits_for_its_mean():
    tx = make("adabelief")
    with pytest.raises(ValueError, match="expected enough updates"):
        l2m.second_moment(run(tx, PARAMS, gradients()), PARAMS, tx=tx)


def test_muon_leaves_matrices_fixed():
    tx, grads = make("muon"), gradients()
    moment = l2m.second_moment(run(tx, PARAMS, grads), PARAMS, tx=tx)
    expected = mean_of_squares(grads, 0.999)
    expected["body"]["kernel"] = None
    assert_close(moment, expected)
    posterior = l2m.laplace(PARAMS, moment, num_data=100, batch_size=10)
    np.testing.assert_array_equal(l2m.variance(posterior)["body"]["kernel"], 0.0)


# --- wrappers ------------------------------------------------------------------------------------

LABELS = {"body": {"bias": "one", "kernel": "two"}, "scale": "one"}
EVERYWHERE = jax.tree.map(lambda _: True, PARAMS)
WRAPPERS = {
    "chain": lambda tx: optax.chain(optax.identity(), tx),
    "named_chain": lambda tx: optax.named_chain(("a", optax.identity()), ("b", tx)),
    "masked": lambda tx: optax.masked(tx, EVERYWHERE),
    "partition": lambda tx: optax.partition({"one": tx, "two": tx}, LABELS),
    "injected": lambda tx: optax.inject_hyperparams(lambda x: optax.chain(tx, optax.scale(x)))(
        x=0.1
    ),
    "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 3),
    "flatten": optax.flatten,
    "clipped after": lambda tx: optax.chain(tx, optax.clip_by_global_norm(0.1)),
    "decay after": lambda tx: optax.chain(tx, optax.add_decayed_weights(0.1)),
    "halved": lambda tx: optax.chain(optax.scale(0.5), tx),
    "MultiSteps": lambda tx: optax.MultiSteps(tx, 2).gradient_transformation(),
    "exposed": l2m.expose_second_moment,
    "mechanize": contrib.mechanize,
}
WRONG = {
    "clip": lambda tx: optax.chain(optax.clip(1.0), tx),
    "clip_by_global_norm": lambda tx: optax.chain(optax.clip_by_global_norm(1.0), tx),
    "adaptive_grad_clip": lambda tx: optax.chain(optax.adaptive_grad_clip(0.1), tx),
    "normalize": lambda tx: optax.chain(contrib.normalize(), tx),
    "decay before": lambda tx: optax.chain(optax.add_decayed_weights(0.1), tx),
    "ema": lambda tx: optax.chain(optax.ema(0.9), tx),
    "apply_every": lambda tx: optax.chain(optax.apply_every(2), tx),
    "schedule": lambda tx: optax.chain(
        optax.scale_by_schedule(lambda t: jnp.where(t < 500, 1.0, 0.5)), tx
    ),
    "MultiSteps schedule": lambda tx: optax.MultiSteps(tx, lambda t: jnp.where(t < 500, 1, 2)),
    "conditional": lambda tx: optax.conditionally_transform(tx, lambda step, **_: step < 500),
}
BASES = {
    "adam": (lambda: optax.adam(RATE), 0.999),
    "rmsprop": (lambda: optax.rmsprop(RATE), 0.9),
    "amsgrad": (lambda: optax.amsgrad(RATE, b2=0.95), 0.95),
}


def averaged(grads, k):
    blocks = [grads[i : i + k] for i in range(0, len(grads), k)]
    return [jax.tree.map(lambda *g: np.mean(g, axis=0), *block) for block in blocks]


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("base", BASES)
def test_wrapped(base, wrapper):
    build, decay = BASES[base]
    tx, grads = l2m.expose_second_moment(WRAPPERS[wrapper](build())), gradients()
    moment = run(tx, PARAMS, grads).read_second_moment()
    k = 2 if wrapper == "MultiSteps" else 1
    assert moment.micro_steps == k
    assert_close(moment, mean_of_squares(averaged(grads, k), decay), rtol=2e-5)


@pytest.mark.parametrize("wrapper", WRONG)
@pytest.mark.parametrize("base", ["adam", "rmsprop"])
def test_moments_of_transformed_gradients_are_refused(base, wrapper):
    with pytest.raises(TypeError, match="track_second_moment"):
        l2m.identify(WRONG[wrapper](BASES[base][0]()), PARAMS)


def test_weight_decay_is_named():
    with pytest.raises(TypeError, match=r"weight decay.*opt_state\[1\], and tx=adam"):
        l2m.identify(WRONG["decay before"](optax.adam(RATE)), PARAMS)


@pytest.mark.parametrize("wrapper", ["clip", "clip_by_global_norm", "adaptive_grad_clip"])
def test_clipping_is_named(wrapper):
    with pytest.raises(TypeError, match="clipped when they are large"):
        l2m.identify(WRONG[wrapper](optax.adam(RATE)), PARAMS)


def test_clipping_is_named_where_leaves_have_one_entry():
    """As the bias of a regression. Here its first moment rises and falls like a mean of squares."""
    shapes = {"a": (64, 10), "b": (64,), "c": (64, 64), "d": (64,), "e": (1, 64), "f": (1,)}
    params = {name: jnp.zeros(shape) for name, shape in shapes.items()}
    with pytest.raises(TypeError, match="clipped when they are large"):
        l2m.identify(optax.chain(optax.clip_by_global_norm(1.0), optax.adam(RATE)), params)


@pytest.mark.parametrize("base", [optax.adam, optax.adagrad])
@pytest.mark.parametrize("threshold", [1.0, 20.0])
def test_the_size_of_a_clip_is_named(threshold, base):
    tx = optax.chain(optax.clip_by_global_norm(threshold), base(RATE))
    with pytest.raises(TypeError) as caught:
        l2m.identify(tx, PARAMS)
    given, reached = re.search(r"norm (\S+) reach it with (\S+);", str(caught.value)).groups()
    assert float(given) > 1e6
    assert float(reached) == pytest.approx(threshold, rel=1e-2)


def test_accumulated_gradients_make_the_batch_larger():
    grads = gradients()
    tx = l2m.expose_second_moment(optax.MultiSteps(optax.adam(RATE), 3))
    seen = l2m.laplace(PARAMS, run(tx, PARAMS, grads), num_data=100, batch_size=4)
    plain = run(l2m.expose_second_moment(optax.adam(RATE)), PARAMS, averaged(grads, 3))
    expected = l2m.laplace(PARAMS, plain, num_data=100, batch_size=12)
    np.testing.assert_allclose(seen.data_scale, expected.data_scale)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
        l2m.variance(seen),
        l2m.variance(expected),
    )


def test_skipped_updates_are_not_counted():
    grads = gradients()
    bad = jax.tree.map(lambda g: jnp.full_like(g, jnp.nan), grads[0])
    tx = l2m.expose_second_moment(optax.apply_if_finite(optax.rmsprop(RATE), 3))
    state = run(tx, PARAMS, [*grads[:4], bad, *grads[4:]])
    assert int(state.count) == NUM_STEPS
    assert_close(state.read_second_moment(), mean_of_squares(grads, 0.9))


def test_parts_keep_their_own_decay_and_frozen_parts_are_fixed():
    parts = {"one": optax.adam(RATE), "two": optax.rmsprop(RATE)}
    tx, grads = optax.partition(parts, LABELS), gradients()
    expected = mean_of_squares(grads, 0.999)
    expected["body"]["kernel"] = mean_of_squares(grads, 0.9)["body"]["kernel"]
    assert_close(run(l2m.expose_second_moment(tx), PARAMS, grads).read_second_moment(), expected)
    frozen = optax.partition({"one": optax.adam(RATE), "two": optax.set_to_zero()}, LABELS)
    expected["body"]["kernel"] = None
    assert_close(l2m.second_moment(run(frozen, PARAMS, grads), PARAMS, tx=frozen), expected)


@pytest.mark.parametrize("decay", [0.9, 0.999])
def test_injected_decay(decay):
    grads = gradients()
    tx = optax.inject_hyperparams(optax.adam)(RATE, b2=decay)
    state = run(tx, PARAMS, grads)
    assert_close(l2m.second_moment(state, PARAMS, tx=tx), mean_of_squares(grads, decay))
    changed = state._replace(hyperparams={**state.hyperparams, "b2": jnp.float32(0.5)})
    with pytest.raises(ValueError, match="expected the decay of tx"):
        l2m.second_moment(changed, PARAMS, tx=tx)


def test_the_callers_decay_rules():
    tx, grads = optax.adam(RATE), gradients()
    state = run(optax.adam(RATE, b2=0.9), PARAMS, grads)
    moment = l2m.second_moment(state, PARAMS, tx=tx, decay=jnp.float32(0.9))
    assert_close(moment, mean_of_squares(grads, 0.9))


def test_scheduled_decay_is_refused():
    tx = optax.inject_hyperparams(optax.adam)(RATE, b2=lambda t: jnp.where(t < 2000, 0.9, 0.99))
    with pytest.raises(TypeError, match="track_second_moment"):
        l2m.identify(tx, PARAMS)


def test_lookahead_is_read_at_its_fast_parameters():
    tx, grads = optax.lookahead(optax.adam(RATE), 5, 0.5), gradients()
    params = optax.LookaheadParams.init_synced(PARAMS)
    moment = l2m.second_moment(run(tx, params, grads), params, tx=tx)
    assert_close(moment, mean_of_squares(grads, 0.999))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # optax 0.2.5 calls its own old names
def test_sam_is_read_at_its_outer_steps():
    inner = optax.chain(contrib.normalize(), optax.sgd(0.05))
    tx, grads = contrib.sam(optax.adam(RATE), inner, sync_period=2), gradients()
    moment = l2m.second_moment(run(tx, PARAMS, grads), PARAMS, tx=tx)
    assert moment.micro_steps == 1
    assert_close(moment, mean_of_squares(grads[1::2], 0.999))


def test_flax_states_and_frozen_dicts():
    tx, grads = optax.adam(RATE, b2=0.9), gradients()
    expected = mean_of_squares(grads, 0.9)
    params = freeze(PARAMS)
    state = TrainState.create(apply_fn=None, params=params, tx=tx)
    for g in grads:
        state = state.apply_gradients(grads=freeze(g))
    assert_close(l2m.second_moment(state.opt_state, state.params, tx=tx), freeze(expected))


@pytest.mark.skipif(not hasattr(nnx, "as_pure"), reason="older flax has another interface")
def test_nnx_optimizers():
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    tx = optax.adam(RATE)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    grads = nnx.grad(lambda m: jnp.sum(jnp.square(m(jnp.ones((4, 3))) - 1.0)))(model)
    optimizer.update(model, grads)
    params = nnx.as_pure(nnx.state(model, nnx.Param))
    moment = l2m.second_moment(nnx.as_pure(nnx.state(optimizer))["opt_state"], params, tx=tx)
    squares = jax.tree.map(jnp.square, nnx.as_pure(grads))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
        l2m.moments.debiased(moment),
        squares,
    )


@pytest.mark.parametrize("chained", [False, True])
def test_nnx_variables_are_read_as_they_are(chained):
    """The leaves of parameters and of the state end in `.value`, or only one tree's do."""
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    tx = optax.adam(RATE, b2=0.9)
    tx = optax.chain(l2m.track_second_moment(0.9), optax.sgd(RATE)) if chained else tx
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    squares = []
    for scale in (1.0, 2.0):
        loss = functools.partial(lambda m, s: jnp.sum((m(jnp.ones((4, 3))) - s) ** 2), s=scale)
        grads = nnx.grad(loss)(model)
        squares.append(jax.tree.map(jnp.square, grads))
        optimizer.update(model, grads)
    params = nnx.state(model, nnx.Param)
    expected = jax.tree.map(lambda a, b: (0.9 * a + b) / 1.9, *squares)
    for opt_state in (optimizer.opt_state, nnx.state(optimizer)["opt_state"]):
        moment = l2m.moments.debiased(l2m.second_moment(opt_state, params, tx=tx))
        assert jax.tree.structure(moment) == jax.tree.structure(params)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), moment, expected)


@pytest.mark.parametrize(
    "wrap",
    [
        l2m.expose_second_moment,
        lambda tx: optax.chain(l2m.expose_second_moment(tx), optax.scale(0.5)),
        lambda tx: optax.inject_hyperparams(lambda scale: optax.chain(tx, optax.scale(scale)))(0.5),
    ],
    ids=["exposed", "exposed in a chain", "injected"],
)
def test_a_wrapper_counts_for_a_state_that_does_not(wrap):
    tx, grads = wrap(optax.rmsprop(RATE, decay=0.9)), gradients()
    moment = l2m.second_moment(run(tx, PARAMS, grads), PARAMS, tx=tx)
    assert_close(moment, mean_of_squares(grads, 0.9))


def test_parameters_called_value():
    params = {"value": jnp.ones(2), "head": {"value": jnp.ones(3), "values": jnp.ones(1)}}
    grads = gradients(params)
    moment = l2m.second_moment(run(optax.adam(RATE), params, grads), params, tx=optax.adam(RATE))
    assert_close(moment, mean_of_squares(grads, 0.999))


def test_a_state_restored_without_its_types():
    tx, grads = optax.chain(optax.adam(RATE), optax.scale(0.5)), gradients()
    restored = to_state_dict(run(tx, PARAMS, grads))
    assert isinstance(restored["0"]["0"]["nu"], dict)
    assert_close(l2m.second_moment(restored, PARAMS, tx=tx), mean_of_squares(grads, 0.999))


def test_an_ensemble_is_debiased_member_by_member():
    params = jax.tree.map(lambda p: jnp.stack([p] * 3), PARAMS)
    tx, grads = optax.adam(RATE), gradients(params)
    state, update = jax.vmap(tx.init)(params), jax.jit(jax.vmap(tx.update))
    for g in grads:
        _, state = update(g, state, params)
    moment = l2m.second_moment(state, params, tx=tx)
    assert moment.count.shape == (3,)
    assert_close(moment, mean_of_squares(grads, 0.999))


def test_abstract_parameters_are_enough():
    abstract = jax.eval_shape(lambda: PARAMS)
    assert l2m.identify(optax.adam(RATE), abstract) == l2m.identify(optax.adam(RATE), PARAMS)


# --- compositions at random ----------------------------------------------------------------------

ALL_WRAPPERS = {**WRAPPERS, **WRONG}
ALL_BASES = {
    **BASES,
    "adamax": (lambda: optax.adamax(RATE), None),
    "yogi": (lambda: optax.yogi(RATE), None),
    "lion": (lambda: optax.lion(RATE), None),
    "adagrad": (lambda: optax.adagrad(RATE), 1.0),
}
# The zeros that apply_every gives between its sums make a mean wrong, but add nothing to a sum.
ACCUMULATING = ("MultiSteps", "apply_every")
NUM_COMPOSITIONS = 140


def drawn(seed):
    """The name of an optimizer, and those of the wrappers around it."""
    rng = np.random.default_rng(seed)
    base = rng.choice(sorted(ALL_BASES), p=[0.05, 0.3, 0.05, 0.2, 0.05, 0.3, 0.05])
    # Most wrappers keep the moment readable; one that does not is drawn now and then.
    weights = np.array([1.0 if name in WRAPPERS else 0.15 for name in ALL_WRAPPERS])
    names = rng.choice(list(ALL_WRAPPERS), rng.integers(1, 5), p=weights / weights.sum())
    return str(base), tuple(map(str, names))


def compositions():
    """Each once, and none of those that `test_wrapped` goes through."""
    alone = {(base, (wrapper,)) for base in BASES for wrapper in WRAPPERS}
    return [c for c in dict.fromkeys(map(drawn, range(NUM_COMPOSITIONS))) if c not in alone]


@pytest.mark.parametrize(
    ("base", "names"), compositions(), ids=lambda x: x if isinstance(x, str) else " in ".join(x)
)
def test_compositions_are_right_or_refused(base, names):
    build, decay = ALL_BASES[base]
    tx = build()
    for name in names:
        tx = ALL_WRAPPERS[name](tx)
    k = 2 ** int(np.sum(np.isin(names, ACCUMULATING)))
    exposed, grads = l2m.expose_second_moment(tx), gradients(steps=3 * k)
    try:
        state = exposed.init(PARAMS)
    except TypeError as error:
        assert re.search(r": expected .+, got .+; .+", str(error), re.S)
        return
    assert int(state.count) == 0
    assert decay is not None and not set(names) & WRONG.keys() - set(ACCUMULATING)
    moment = run(exposed, PARAMS, grads).read_second_moment()
    assert moment.micro_steps == k
    # The oracle's float32 gradients are averaged twice where MultiSteps is nested.
    assert_close(moment, mean_of_squares(averaged(grads, k), decay), rtol=1e-4)


# --- moment_updates ------------------------------------------------------------------------------


def test_tracking_squares_what_it_is_given():
    tx = optax.chain(l2m.track_second_moment(0.9), optax.sgd(0.1))
    grads, other = gradients(), gradients(steps=2 * NUM_STEPS)[NUM_STEPS:]
    state = tx.init(PARAMS)
    for g, o in zip(grads, other, strict=True):
        updates, state = tx.update(g, state, PARAMS, moment_updates=o)
        np.testing.assert_allclose(updates["scale"], -0.1 * g["scale"])
    assert_close(l2m.second_moment(state), mean_of_squares(other, 0.9))


def test_a_stack_gives_the_mean_of_squares():
    tx = l2m.track_second_moment(0.9)
    stack = jax.tree.map(lambda *g: jnp.stack(g), *gradients(steps=5))
    _, state = tx.update(PARAMS, tx.init(PARAMS), moment_updates=stack)
    expected = jax.tree.map(lambda g: np.mean(np.square(np.asarray(g)), axis=0), stack)
    assert_close(l2m.second_moment(state), expected)


def test_stacks_of_another_shape_are_refused():
    tx = l2m.track_second_moment(0.9)
    wrong = {**PARAMS, "scale": jnp.ones((2, 2))}
    with pytest.raises(ValueError, match=r"moment_updates\['scale'\]: expected shape \(\), or a"):
        tx.update(PARAMS, tx.init(PARAMS), moment_updates=wrong)


def test_low_precision_is_warned_of():
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
    tx = optax.adam(RATE)
    with pytest.warns(UserWarning, match="bfloat16"):
        l2m.second_moment(run(tx, params, gradients(params)), params, tx=tx)
