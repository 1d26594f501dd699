"""Optimizers that keep factors, SOAP and Shampoo: what is read, against sums made by hand."""

import importlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import dense_basis
from second_order import SoapState, ivon, ivon_draw, shampoo, soap

import l2m_optax as l2m

PARAMS = {"w": jnp.ones((4, 3)), "b": jnp.ones(3)}
DECAY = 0.95


def gradients(steps, params=PARAMS):
    rng = np.random.default_rng(5)
    draw = lambda p: jnp.asarray(rng.normal(size=p.shape), p.dtype)  # noqa: E731
    return [jax.tree.map(draw, params) for _ in range(steps)]


def states(tx, grads, params=PARAMS, **extra):
    """The state after every update."""
    update, state, found = jax.jit(tx.update), tx.init(params), []
    for g in grads:
        state = update(g, state, params, **extra)[1]
        found.append(state)
    return found


def weighted(values, decay):
    """The mean with weights that decay towards the past; float64."""
    weights = decay ** np.arange(len(values))[::-1]
    return np.tensordot(weights / weights.sum(), np.stack(values), axes=1)


def squares_in(basis, g):
    q = dense_basis(basis, g.shape)
    return np.square(q.T @ np.ravel(np.asarray(g, np.float64))).reshape(g.shape)


def assert_is_mean(moment, grads, decay=DECAY, rtol=1e-4):
    """The debiased moment is the mean of the squares in its own basis, leaf by leaf."""
    for leaf, mean in l2m.moments.debiased(moment).items():
        squares = [squares_in(moment.basis[leaf], g[leaf]) for g in grads]
        expected = weighted(squares, decay)
        np.testing.assert_allclose(mean, expected, rtol=rtol, atol=1e-5 * expected.max())


# --- SOAP ----------------------------------------------------------------------------------------

SOAPS = {
    "both sides": {},
    "one side": {"max_side": 3},
    "unsorted": {"sort": False},
    "matrices that are float32, whatever the gradients": {"dtype": jnp.float32},
}


@pytest.mark.parametrize("name", SOAPS)
def test_soap_is_the_mean_of_squares_in_its_basis(name):
    """The first gradient gives the basis alone, which is not turned in these steps."""
    tx, grads = soap(1e-3, every=100, **SOAPS[name]), gradients(40)
    found = l2m.identify(tx, PARAMS)
    assert [(m.first, m.every, m.decay, len(m.matrices)) for m in found.leaves] == [
        (2, 1, DECAY, 0),
        (2, 1, DECAY, 2),
    ]
    moment = l2m.second_moment(states(tx, grads)[-1], PARAMS, tx=tx)
    assert int(moment.count) == 39
    assert (moment.basis["w"].left is None) == (name == "one side")
    assert_is_mean(moment, grads[1:])


def test_soap_that_turns_its_basis_holds_each_square_in_the_basis_of_its_step():
    """Without sorting nothing in the moment is moved, and the sum can be made by hand."""
    tx, grads = soap(1e-3, every=3, sort=False), gradients(12)
    found = states(tx, grads)
    moment = l2m.second_moment(found[-1], PARAMS, tx=tx)
    q = [l2m.moments.Basis(*state[0].Q["w"]) for state in found]
    squares = [squares_in(q[t - 1], grads[t]["w"]) for t in range(1, 12)]
    expected = weighted(squares, DECAY)
    np.testing.assert_allclose(l2m.moments.debiased(moment)["w"], expected, rtol=1e-4)
    np.testing.assert_array_equal(moment.basis["w"].left, q[-1].left)


def test_soap_whose_squares_wait_for_the_turn():
    """Every k-th gradient enters them, and so many are counted."""
    k = 4
    tx, grads = soap(1e-3, every=k, waits=True, sort=False), gradients(3 * k + 2)
    found = states(tx, grads)
    moment = l2m.second_moment(found[-1], PARAMS, tx=tx)
    assert int(moment.count) == 3
    seen = [k, 2 * k, 3 * k]
    q = [l2m.moments.Basis(*state[0].Q["w"]) for state in found]
    expected = weighted([squares_in(q[t - 1], grads[t]["w"]) for t in seen], DECAY)
    np.testing.assert_allclose(l2m.moments.debiased(moment)["w"], expected, rtol=1e-4)
    with pytest.raises(ValueError, match="at least one update"):
        l2m.second_moment(found[k - 1], PARAMS, tx=tx)


def test_the_trace_is_that_of_the_tracked_squares():
    """Sorted columns, turned at every second step: rotations leave the sum as it is."""
    tx, grads = soap(1e-3, every=2), gradients(21)
    moment = l2m.second_moment(states(tx, grads)[-1], PARAMS, tx=tx)
    tracker = l2m.track_second_moment(DECAY)
    tracked = l2m.second_moment(states(tracker, grads[1:])[-1])
    for leaf in PARAMS:
        total = np.sum(l2m.moments.debiased(moment)[leaf])
        np.testing.assert_allclose(total, np.sum(tracked.nu[leaf]), rtol=1e-5)


def test_a_long_axis_has_no_basis():
    """As that of a vocabulary, of which the probe looks at some rows."""
    params = {"embed": jnp.ones((5000, 3))}
    tx, grads = soap(1e-3, every=100, max_side=100), gradients(6, params)
    moment = l2m.second_moment(states(tx, grads, params)[-1], params, tx=tx)
    assert [side is None for side in moment.basis["embed"]] == [True, False]
    right = moment.basis["embed"].right
    squares = [np.square(np.asarray(g["embed"] @ right, np.float64)) for g in grads[1:]]
    mean = l2m.moments.debiased(moment)["embed"]
    np.testing.assert_allclose(mean, weighted(squares, DECAY), rtol=1e-3, atol=1e-4)


KERNEL = {"k": jnp.ones((2, 3, 2, 4))}


def test_an_axis_each_makes_a_basis_of_two_sides():
    """A convolution's kernel has four matrices; `Basis` holds their Kronecker products."""
    tx, grads = soap(1e-3, every=100), gradients(15, KERNEL)
    moment = l2m.second_moment(states(tx, grads, KERNEL)[-1], KERNEL, tx=tx)
    assert [side.shape for side in moment.basis["k"]] == [(6, 6), (8, 8)]
    assert_is_mean(moment, grads[1:])


def test_layers_that_are_alike_have_bases_of_their_own():
    """One is run for both. Lists number leaves as they number the matrices of a leaf."""
    for params in ({"one": PARAMS, "two": PARAMS}, [PARAMS["w"], PARAMS["w"], PARAMS["b"]]):
        tx, grads = soap(1e-3, every=100), gradients(9, params)
        moment = l2m.second_moment(states(tx, grads, params)[-1], params, tx=tx)
        bases = jax.tree.structure(params).flatten_up_to(moment.basis)
        means = jax.tree.leaves(l2m.moments.debiased(moment))
        for i, (basis, mean) in enumerate(zip(bases, means, strict=True)):
            squares = [squares_in(basis, jax.tree.leaves(g)[i]) for g in grads[1:]]
            expected = weighted(squares, DECAY)
            np.testing.assert_allclose(mean, expected, rtol=1e-4, atol=1e-5 * expected.max())


@jax.tree_util.register_pytree_node_class
class Matrices:
    """As soap-jax keeps them: a node whose children have no names."""

    def __init__(self, matrices):
        self.matrices = tuple(matrices)

    def tree_flatten(self):
        return self.matrices, None

    @classmethod
    def tree_unflatten(cls, _, children):
        return cls(children)


def repacked(tx, pack, unpack):
    """A transformation whose state is kept in another way."""

    def update(g, state, params=None):
        updates, (first, *rest) = tx.update(g, (unpack(state[0]), *state[1:]), params)
        return updates, (pack(first), *rest)

    def init(params):
        first, *rest = tx.init(params)
        return pack(first), *rest

    return optax.GradientTransformation(init, update)


def in_nodes(tx):
    """Each tuple of matrices as a node without names."""

    def change(function, state):
        pairs = {name: getattr(state, name).items() for name in ("GG", "Q")}
        fields = {name: {leaf: function(held) for leaf, held in of} for name, of in pairs.items()}
        return state._replace(**fields)

    return repacked(
        tx, lambda s: change(Matrices, s), lambda s: change(lambda held: held.matrices, s)
    )


def by_leaf(tx):
    """What is held of one leaf together, in dictionaries."""
    fields = SoapState._fields[1:]

    def pack(state):
        held = {leaf: {f: getattr(state, f)[leaf] for f in fields} for leaf in state.Q}
        return {"count": state.count, "held": held}

    def unpack(state):
        held = state["held"]
        found = ({leaf: of[f] for leaf, of in held.items()} for f in fields)
        return SoapState(state["count"], *found)

    return repacked(tx, pack, unpack)


WRAPPERS = {
    "nodes without names": in_nodes,
    "by leaf": by_leaf,
    "chain": lambda tx: optax.chain(optax.scale(0.5), tx),
    "MultiSteps": lambda tx: optax.MultiSteps(tx, 2).gradient_transformation(),
    "exposed": l2m.expose_second_moment,
    "partition": lambda tx: optax.partition(
        {"soap": tx, "adam": optax.adam(1e-3, b2=DECAY)}, {"w": "soap", "b": "adam"}
    ),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_soap_inside_wrappers(name):
    tx, grads = WRAPPERS[name](soap(1e-3, every=100)), gradients(24)
    moment = l2m.second_moment(states(tx, grads)[-1], PARAMS, tx=tx)
    if name == "MultiSteps":
        assert moment.micro_steps == 2
        pairs = zip(grads[::2], grads[1::2], strict=True)
        grads = [jax.tree.map(lambda a, b: (a + b) / 2, *pair) for pair in pairs]
    if name == "partition":
        own = {name: getattr(moment, name)["w"] for name in ("nu", "weight", "offset", "basis")}
        moment = l2m.SecondMoment(**{name: {"w": of} for name, of in own.items()})
    assert_is_mean(moment, grads[1:])


def soap_that(change, **options):
    """SOAP of which something in the state is changed after every update."""
    inner = soap(1e-3, every=3, **options)

    def update(g, state, params=None):
        updates, following = inner.update(g, state, params)
        return updates, (change(following[0]), *following[1:])

    return optax.GradientTransformation(inner.init, update)


def doubled(state):
    return state._replace(exp_avg_sq=jax.tree.map(lambda v: 2 * v, state.exp_avg_sq))


WRONG = {
    "clipped": lambda: optax.chain(optax.clip(1.0), soap(1e-3)),
    "normalized": lambda: optax.chain(optax.contrib.normalize(), soap(1e-3)),
    "squares that are doubled": lambda: soap_that(doubled),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_looks_like_soap_is_refused(name):
    with pytest.raises(TypeError, match="track_second_moment") as caught:
        l2m.identify(WRONG[name](), PARAMS)
    assert ("clipped" in str(caught.value)) == (name == "clipped")


def test_the_factor_of_one_side_is_not_enough():
    """Nothing says how the squares lie along the other side."""
    tx = soap(1e-3, max_side=3)
    kernel = {"w": PARAMS["w"]}
    assert l2m.identify(tx, kernel).leaves[0].matrices[0] is None
    wrong = soap_that(doubled, max_side=3)
    with pytest.raises(TypeError, match="track_second_moment"):
        l2m.identify(wrong, kernel)


def test_soap_is_read_under_jit():
    tx = soap(1e-3, every=100)
    state = states(tx, gradients(5))[-1]
    expected = l2m.second_moment(state, PARAMS, tx=tx)
    read = jax.jit(lambda s: l2m.second_moment(s, PARAMS, tx=tx))(state)
    np.testing.assert_allclose(read.nu["w"], expected.nu["w"], rtol=1e-6)
    np.testing.assert_allclose(read.weight, expected.weight, rtol=1e-5)
    early = jax.jit(lambda s: l2m.second_moment(s, PARAMS, tx=tx).weight)(tx.init(PARAMS))
    assert jnp.isnan(early)


def test_factors_are_read_where_the_basis_is_none():
    """A matrix that is not orthogonal is no basis; the products beside it hold a moment too."""
    tx = soap_that(lambda s: s._replace(Q=jax.tree.map(lambda q: 1.1 * q, s.Q)))
    assert [moment.products for moment in l2m.identify(tx, PARAMS).leaves] == [False, True]


def test_a_tracked_moment_goes_before_soaps_own():
    tx, grads = optax.chain(l2m.track_second_moment(0.9), soap(1e-3)), gradients(5)
    moment = l2m.second_moment(states(tx, grads)[-1], PARAMS, tx=tx)
    assert moment.basis is None
    for leaf in PARAMS:
        expected = weighted([np.square(np.asarray(g[leaf], np.float64)) for g in grads], 0.9)
        np.testing.assert_allclose(l2m.moments.debiased(moment)[leaf], expected, rtol=1e-5)


# --- Shampoo -------------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize(("decay", "epsilon"), [(1.0, 1e-4), (0.9, 1e-4), (0.9, 0.3)])
def test_shampoo_is_the_kronecker_product_of_its_factors(decay, epsilon, every):
    """Its sums or means of products, without what they start from; dense algebra in float64."""
    tx = shampoo(1e-3, decay=decay, epsilon=epsilon, statistics_every=every)
    grads = gradients(10)
    moment = l2m.second_moment(states(tx, grads)[-1], PARAMS, tx=tx)
    seen = [np.asarray(g["w"], np.float64) for g in grads[::every]]
    assert int(moment.count) == len(seen)
    left = weighted([g @ g.T for g in seen], decay)
    right = weighted([g.T @ g for g in seen], decay)
    expected = np.kron(left, right) / np.trace(left)
    q = dense_basis(moment.basis["w"], (4, 3))
    read = q @ np.diag(np.ravel(l2m.moments.debiased(moment)["w"])) @ q.T
    np.testing.assert_allclose(read, expected, rtol=1e-3, atol=1e-4 * expected.max())
    full = weighted([np.outer(g["b"], g["b"]) for g in grads[::every]], decay)
    q = dense_basis(moment.basis["b"], (3,))
    read = q @ np.diag(l2m.moments.debiased(moment)["b"]) @ q.T
    np.testing.assert_allclose(read, full, rtol=1e-3, atol=1e-4 * full.max())


def test_shampoo_is_what_a_tracker_of_factors_keeps():
    tx, grads = shampoo(1e-3, decay=0.9), gradients(10)
    tracker = l2m.track_second_moment(0.9, structure={"w": "kronecker", "b": "full"})
    read = l2m.second_moment(states(tx, grads)[-1], PARAMS, tx=tx)
    tracked = l2m.second_moment(states(tracker, grads)[-1], PARAMS)
    for leaf, mean in l2m.moments.debiased(read).items():
        expected = tracked.nu[leaf]
        np.testing.assert_allclose(mean, expected, rtol=1e-3, atol=1e-4 * expected.max())


class TwoFactors(NamedTuple):
    count: jax.Array
    left: jax.Array
    right: jax.Array


def two_factors(decays, every):
    """Gradients as they are, and a mean of products along each side, each with its own clock."""

    def init(params):
        rows, columns = params["w"].shape
        zero = jnp.zeros((), jnp.int32)
        return TwoFactors(zero, jnp.zeros((rows, rows)), jnp.zeros((columns, columns)))

    def follow(held, product, decay, is_due):
        return jnp.where(is_due, decay * held + (1 - decay) * product, held)

    def update(g, state, params=None):
        w, due = g["w"], [state.count % k == 0 for k in every]
        left = follow(state.left, w @ w.T, decays[0], due[0])
        right = follow(state.right, w.T @ w, decays[1], due[1])
        return g, TwoFactors(state.count + 1, left, right)

    return optax.GradientTransformation(init, update)


@pytest.mark.parametrize(
    ("decays", "every"), [((0.9, 0.8), (1, 1)), ((0.9, 0.9), (1, 2)), ((0.9, 0.8), (1, 2))]
)
def test_factors_that_keep_different_times_are_refused(decays, every):
    kernel = {"w": PARAMS["w"]}
    assert l2m.identify(two_factors((0.9, 0.9), (2, 2)), kernel).leaves[0].products
    with pytest.raises(TypeError, match="track_second_moment"):
        l2m.identify(two_factors(decays, every), kernel)


def raveled(tx):
    """A transformation that sees every leaf as a vector."""

    def flat(tree):
        return jax.tree.map(jnp.ravel, tree)

    def update(g, state, params):
        updates, state = tx.update(flat(g), state, flat(params))
        return jax.tree.map(lambda u, p: u.reshape(p.shape), updates, params), state

    return optax.GradientTransformation(lambda params: tx.init(flat(params)), update)


def test_a_leaf_that_is_raveled_has_a_full_matrix():
    """As where small axes are merged before they are preconditioned."""
    tx, grads = raveled(shampoo(1e-3)), gradients(6)
    moment = l2m.second_moment(states(tx, grads)[-1], PARAMS, tx=tx)
    expected = np.mean([np.outer(g["w"], g["w"]) for g in grads], axis=0)
    q = dense_basis(moment.basis["w"], (4, 3))
    read = q @ np.diag(np.ravel(l2m.moments.debiased(moment)["w"])) @ q.T
    np.testing.assert_allclose(read, expected, rtol=1e-3, atol=1e-4 * expected.max())


# --- Others --------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["second_order", "psgdax"])
def test_fitted_roots_of_an_inverse_are_refused(where):
    tx = importlib.import_module(where).kron(1e-3)
    with pytest.raises(TypeError, match="track_second_moment"):
        l2m.identify(tx, PARAMS)


def test_what_is_no_transformation_of_gradients_is_refused():
    """As the optimizer of kfac-jax, which takes parameters, data and a key, and differentiates."""

    class Optimizer:
        def init(self, params, rng, batch):
            raise NotImplementedError

        def step(self, params, state, rng, batch):
            raise NotImplementedError

    with pytest.raises(TypeError, match="init and update"):
        l2m.identify(Optimizer(), PARAMS)


def test_the_posterior_of_ivon_is_of_its_own_scale(regression):
    """Its Hessian is that of the mean loss: F is the effective sample size times it."""
    x, y, optimum = regression
    ess, decay = len(x), 1e-3
    told = {"ess": ess, "weight_decay": decay}
    tx = ivon(0.01, b2=0.999, hess_init=10.0, **told)

    def loss(params):
        return 0.5 * jnp.mean(jnp.sum((y - x @ params["w"]) ** 2, axis=1)) / NOISE**2

    def step(carry, key):
        params, state = carry
        there, state = ivon_draw(key, params, state, **told)
        updates, state = tx.update(jax.grad(loss)(there), state, params)
        return (optax.apply_updates(params, updates), state), None

    params = {"w": jnp.asarray(optimum, jnp.float32)}
    keys = jax.random.split(jax.random.key(0), 8000)
    (params, state), _ = jax.jit(lambda *a: jax.lax.scan(step, *a))((params, tx.init(params)), keys)
    moment = l2m.SecondMoment(state[0].hess)
    posterior = l2m.laplace(params, moment, num_data=ess, batch_size=1, prior_precision=ess * decay)
    own = 1 / (ess * (state[0].hess["w"] + decay))
    np.testing.assert_allclose(l2m.variance(posterior)["w"], own, rtol=1e-5)
    hessian = np.repeat(np.sum(np.square(x), axis=0), 2).reshape(4, 2) / NOISE**2
    f = l2m.posterior.data_precision(posterior)["w"]
    np.testing.assert_allclose(f, hessian, rtol=0.2)
    with pytest.raises(TypeError, match="no update of any second moment"):
        l2m.identify(tx, params)


# --- A linear regression, whose Fisher is known --------------------------------------------------

NOISE = 0.3


@pytest.fixture(scope="module")
def regression():
    """Inputs that go together, two outputs, and weights at the optimum."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 4)) @ rng.normal(size=(4, 4))
    y = x @ rng.normal(size=(4, 2)) + NOISE * rng.normal(size=(600, 2))
    return (
        jnp.asarray(x, jnp.float32),
        jnp.asarray(y, jnp.float32),
        np.linalg.lstsq(x, y, rcond=None)[0],
    )


def trained(tx, regression, batch_size, steps=6000):
    """The state after shuffled epochs around the optimum."""
    x, y, optimum = regression
    per_epoch = len(x) // batch_size
    epochs = np.tile(np.arange(len(x)), (steps // per_epoch, 1))
    batches = np.random.default_rng(1).permuted(epochs, axis=1).reshape(-1, batch_size)

    def step(carry, batch):
        params, state = carry
        loss = lambda p: 0.5 * jnp.mean(jnp.sum((y[batch] - x[batch] @ p["w"]) ** 2, 1))  # noqa: E731
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    params = {"w": jnp.asarray(optimum, jnp.float32)}
    return jax.jit(lambda *a: jax.lax.scan(step, *a))((params, tx.init(params)), batches)[0]


TRAINED = {
    "soap": lambda: soap(1e-6, b2=0.999),
    "shampoo": lambda: shampoo(1e-7, decay=0.999, every=100),
}


@pytest.mark.parametrize("name", TRAINED)
def test_the_posterior_is_that_of_the_exact_fisher(regression, name):
    """The mean looks back over 2,000 batches: a standard error of 3% for each entry."""
    x, y, _ = regression
    batch_size = 10
    tx = optax.chain(l2m.track_second_moment(0.999), TRAINED[name]())
    params, state = trained(tx, regression, batch_size)
    told = {"num_data": len(x), "batch_size": batch_size, "loss_scale": NOISE**2}
    posterior = l2m.laplace(params, state[1], tx=TRAINED[name](), prior_precision=1.0, **told)
    f = np.ravel(np.asarray(l2m.posterior.data_precision(posterior)["w"], np.float64))
    g = np.einsum("ni,nj->nij", x, x @ params["w"] - y).reshape(len(x), -1) / NOISE**2
    fisher = g.T @ g
    q = dense_basis(posterior.second_moment.basis["w"], (4, 2))
    # The bases turn a little meanwhile: 1e-5 of the largest entry leaks into others.
    np.testing.assert_allclose(f, np.diag(q.T @ fisher @ q), rtol=0.15, atol=1e-5 * f.max())
    assert np.max(np.abs(q.T @ fisher @ q - np.diag(f))) < 0.1 * f.max()
    diagonal = l2m.laplace(params, state[0], prior_precision=1.0, **told)
    total = np.sum(l2m.posterior.data_precision(diagonal)["w"])
    np.testing.assert_allclose(np.sum(f), total, rtol=1e-2)
    exact = np.linalg.inv(fisher + np.eye(8))
    inputs = np.kron(np.asarray(x[:20]), np.eye(2)).reshape(20, 2, 8)
    expected = np.einsum("nki,ij,nkj->nk", inputs, exact, inputs)
    variance = l2m.output_variance(lambda p, inputs: inputs @ p["w"], posterior, x[:20])
    np.testing.assert_allclose(variance, expected, rtol=0.15)
