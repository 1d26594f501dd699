"""Stacks of matrices with bases of their own, as scanned layers: what each matrix alone gives."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import dense_basis, orthogonal
from second_order import SoapState, shampoo, soap

import l2m_optax as l2m

LAYERS, WIDTH, HIDDEN = 3, 4, 6
SHAPES = {"up": (WIDTH, HIDDEN), "b": (HIDDEN,), "down": (HIDDEN, WIDTH)}
STACK = {name: jnp.ones((LAYERS, *shape)) for name, shape in SHAPES.items()}


def layers_of(tree):
    """A list of trees, one for each layer, from a tree of stacks."""
    return [jax.tree.map(lambda x, i=i: x[i], tree) for i in range(LAYERS)]


def block(x, layer):
    return x + jnp.tanh(x @ layer["up"] + layer["b"]) @ layer["down"]


def scanned(params, x):
    return jax.lax.scan(lambda x, layer: (block(x, layer), None), x, params)[0]


def unrolled(layers, x):
    for layer in layers:
        x = block(x, layer)
    return x


def gradients(steps, params=STACK):
    rng = np.random.default_rng(5)
    draw = lambda p: jnp.asarray(rng.normal(size=p.shape), p.dtype)  # noqa: E731
    return [jax.tree.map(draw, params) for _ in range(steps)]


def trained(tx, grads, params):
    """The state after the last update."""
    update, state = jax.jit(tx.update), tx.init(params)
    for g in grads:
        state = update(g, state, params)[1]
    return state


def vmapped(tx):
    """A transformation whose whole state is a stack, its counts too."""
    return optax.GradientTransformation(jax.vmap(tx.init), jax.vmap(tx.update))


def mapped_inside(make, **options):
    return make(1e-3, stacked=1, **options)


def mapped_outside(make, **options):
    return vmapped(make(1e-3, **options))


WAYS = {"matrices are mapped": mapped_inside, "all is mapped": mapped_outside}
OPTIMIZERS = {
    "SOAP": (soap, {"every": 100}),
    "SOAP that turns its bases": (soap, {"every": 3}),
    "SOAP whose squares wait": (soap, {"every": 4, "waits": True}),
    "SOAP with one long side": (soap, {"every": 3, "max_side": WIDTH}),
    "Shampoo": (shampoo, {}),
    "Shampoo that forgets, every third step": (
        shampoo,
        {"decay": 0.9, "statistics_every": 3, "epsilon": 0.3},
    ),
}
TOLD = {"num_data": 100, "batch_size": 4, "prior_precision": 2.0}


def close(found, expected, rtol=2e-5):
    """Equal up to rounding in float32; on one CPU most bits are the same."""
    atol = 0.2 * rtol * np.max(np.abs(expected))
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=atol)


def covariance(posterior, path):
    """The covariance of the leaf at a path, a list of keys, as a matrix."""
    f, basis = l2m.posterior.data_precision(posterior), posterior.second_moment.basis
    for key in path:
        f, basis = f[key], basis and basis[key]
    q = dense_basis(basis, f.shape)
    return q @ np.diag(1 / (np.ravel(np.asarray(f, np.float64)) + 2.0)) @ q.T


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_stack_is_read_as_its_matrices_are(name, way):
    make, options = OPTIMIZERS[name]
    tx, alone, grads = WAYS[way](make, **options), make(1e-3, **options), gradients(14)
    layers = layers_of(STACK)
    together = l2m.second_moment(trained(tx, grads, STACK), STACK, tx=tx)
    apart = l2m.second_moment(
        trained(alone, [layers_of(g) for g in grads], layers), layers, tx=alone
    )
    means = layers_of(l2m.moments.debiased(together))
    assert np.all(together.count == apart.count)
    for i, mean in enumerate(l2m.moments.debiased(apart)):
        for leaf in SHAPES:
            close(means[i][leaf], mean[leaf])
            one, other = together.basis[leaf], apart.basis[i][leaf]
            assert (one is None) == (other is None)
            for side, expected in zip(one or (), other or (), strict=True):
                assert (side is None) == (expected is None)
                if side is not None:
                    close(jnp.abs(side[i]), jnp.abs(expected))
    posterior = l2m.laplace(STACK, together, **TOLD)
    separate = l2m.laplace(layers, apart, **TOLD)
    for leaf, shape in SHAPES.items():
        size = int(np.prod(shape))
        whole = covariance(posterior, [leaf]).reshape(LAYERS, size, LAYERS, size)
        for i in range(LAYERS):
            close(whole[i, :, i], covariance(separate, [i, leaf]))
            assert not np.any(np.delete(whole[i], i, axis=1))
    x = jax.random.normal(jax.random.key(0), (5, WIDTH))
    close(l2m.output_variance(scanned, posterior, x), l2m.output_variance(unrolled, separate, x))
    assert f"updates seen: {int(apart.count)};" in str(l2m.diagnose(posterior))
    evidences = [l2m.tuning.log_evidence(p, 0.0) for p in (posterior, separate)]
    close(*evidences)


# --- Other stacks --------------------------------------------------------------------------------


def assert_is_mean_in_its_basis(moment, grads, decay=0.95):
    """The moment is the mean of squares of all gradients but the first, in float64."""
    weights = decay ** np.arange(len(grads) - 1)[::-1]
    means = l2m.moments.debiased(moment)
    for leaf, mean in means.items():
        q = dense_basis(moment.basis[leaf], mean.shape)
        rotated = np.stack([np.ravel(np.asarray(g[leaf], np.float64)) for g in grads[1:]]) @ q
        expected = np.average(np.square(rotated), axis=0, weights=weights)
        close(np.ravel(mean), expected, rtol=2e-4)


def sides(moment):
    """The shapes of the two sides of every basis."""
    return {
        leaf: None if basis is None else [side if side is None else side.shape for side in basis]
        for leaf, basis in moment.basis.items()
    }


LEAVES = {
    "layers of experts": ((2, 3, 4, 5), 2, [(2, 3, 4, 4), (2, 3, 5, 5)]),
    "square matrices, as many as they have rows": ((4, 4, 4), 1, [(4, 4, 4), (4, 4, 4)]),
    "a stack of one": ((1, 4, 5), 1, [(4, 4), (5, 5)]),
    "long sides": ((3, 300, 40), 1, [None, (3, 40, 40)]),
    "many layers": ((300, 5, 3), 1, [(300, 5, 5), (300, 3, 3)]),
    "convolutions": ((3, 2, 2, 4, 3), 1, [(3, 4, 4), (3, 12, 12)]),
    "convolutions with a long axis": ((2, 2, 110, 3), 1, [(2, 220, 220), (2, 3, 3)]),
    "a square matrix alone": ((4, 4), 0, [(4, 4), (4, 4)]),
}


@pytest.mark.parametrize("name", LEAVES)
def test_stacks_of_all_shapes(name):
    shape, axes, expected = LEAVES[name]
    params = {"w": jnp.ones(shape)}
    tx, grads = soap(1e-3, every=100, stacked=axes, max_side=100), gradients(9, params)
    moment = l2m.second_moment(trained(tx, grads, params), params, tx=tx)
    assert sides(moment)["w"] == expected
    if moment.nu["w"].size < 2000:
        assert_is_mean_in_its_basis(moment, grads)
    assert l2m.laplace(params, moment, **TOLD).second_moment.nu["w"].shape == shape


def test_a_stack_beside_single_matrices():
    params = {"layers": jnp.ones((3, 4, 5)), "head": jnp.ones((5, 2)), "embed": jnp.ones((7, 4))}
    tx = soap(1e-3, every=100, stacked={"layers": 1, "head": 0, "embed": 0})
    grads = gradients(12, params)
    moment = l2m.second_moment(trained(tx, grads, params), params, tx=tx)
    assert [side.shape for side in moment.basis["layers"]] == [(3, 4, 4), (3, 5, 5)]
    assert [side.shape for side in moment.basis["head"]] == [(5, 5), (2, 2)]
    assert_is_mean_in_its_basis(moment, grads)


def reshaped(tx, shape, held=None):
    """A transformation that sees the leaves in another shape, and keeps its squares in a third."""

    def of(tree, wanted):
        return jax.tree.map(lambda x: x.reshape(wanted), tree)

    def pack(state, wanted):
        first, *rest = state
        return first._replace(exp_avg_sq=of(first.exp_avg_sq, wanted)), *rest

    def init(params):
        return pack(tx.init(of(params, shape)), held or shape)

    def update(g, state, params):
        like = g
        updates, state = tx.update(of(g, shape), pack(state, shape), of(params, shape))
        updates = jax.tree.map(lambda u, g: u.reshape(g.shape), updates, like)
        return updates, pack(state, held or shape)

    return optax.GradientTransformation(init, update)


# What an optimizer may make of a leaf of shape (2, 3, 4): its bases show which of them it is.
READINGS = {
    "a stack": (soap(1e-3, every=100, stacked=1), [(2, 3, 3), (2, 4, 4)]),
    "stacked twice, with a full matrix each": (
        shampoo(1e-3, decay=0.95, stacked=2),
        [(2, 3, 4, 4), None],
    ),
    "a basis for each axis": (soap(1e-3, every=100), [(6, 6), (4, 4)]),
    "one matrix of tall columns": (reshaped(soap(1e-3, every=100), (6, 4)), [(6, 6), (4, 4)]),
    "one matrix of long rows": (reshaped(soap(1e-3, every=100), (2, 12)), [(2, 2), (12, 12)]),
    "layers and experts, merged": (
        reshaped(soap(1e-3, every=100, stacked=1), (6, 2, 2)),
        [(2, 3, 2, 2), (2, 3, 2, 2)],
    ),
    "merged in the bases alone": (
        reshaped(soap(1e-3, every=100, stacked=1), (6, 2, 2), (2, 3, 2, 2)),
        [(2, 3, 2, 2), (2, 3, 2, 2)],
    ),
}


@pytest.mark.parametrize("name", READINGS)
def test_what_the_axes_are_is_told_by_the_bases(name):
    """Three bases, one an axis, are two: the Kronecker product of two of them is one basis."""
    tx, expected = READINGS[name]
    params = {"w": jnp.ones((2, 3, 2, 2) if "merged" in name else (2, 3, 4))}
    grads = gradients(12, params)
    moment = l2m.second_moment(trained(tx, grads, params), params, tx=tx)
    assert sides(moment)["w"] == expected
    if name.startswith("stacked twice"):
        return
    assert_is_mean_in_its_basis(moment, grads)


def numbered(tx):
    """Matrices in lists by the number of the leaf, with an axis of one, as blocks of a leaf."""

    def pack(state):
        first, *rest = state
        names, lists = sorted(first.Q), {}
        for field in ("GG", "Q"):
            held = [getattr(first, field)[name] for name in names]
            lists[field] = jax.tree.map(lambda m: jnp.expand_dims(m, -3), held)
        return {"names": dict.fromkeys(names), **first._asdict(), **lists}, *rest

    def unpack(state):
        first, *rest = state
        fields = {name: first[name] for name in SoapState._fields}
        for field in ("GG", "Q"):
            held = jax.tree.map(lambda m: jnp.squeeze(m, -3), fields[field])
            fields[field] = dict(zip(sorted(first["names"]), held, strict=True))
        return SoapState(**fields), *rest

    def update(g, state, params):
        updates, state = tx.update(g, unpack(state), params)
        return updates, pack(state)

    return optax.GradientTransformation(lambda params: pack(tx.init(params)), update)


def test_matrices_that_lie_at_no_path_of_a_leaf():
    """As in Levanter's SOAP, with a single block."""
    tx, inner, grads = (
        numbered(soap(1e-3, every=3, stacked=1)),
        soap(1e-3, every=3, stacked=1),
        gradients(9),
    )
    found = l2m.second_moment(trained(tx, grads, STACK), STACK, tx=tx)
    expected = l2m.second_moment(trained(inner, grads, STACK), STACK, tx=inner)
    jax.tree.map(np.testing.assert_array_equal, found.nu, expected.nu)
    jax.tree.map(np.testing.assert_array_equal, found.basis, expected.basis)


@pytest.mark.parametrize("way", ["exposed, then mapped", "mapped, then exposed", "MultiSteps"])
@pytest.mark.parametrize("make", [soap, shampoo])
def test_wrappers_of_what_is_mapped(make, way):
    tx, grads = make(1e-3), gradients(8)
    alone = l2m.second_moment(trained(vmapped(tx), grads, STACK), STACK, tx=vmapped(tx))
    if way == "MultiSteps":
        wrapped = optax.MultiSteps(vmapped(tx), 2).gradient_transformation()
        grads = [g for g in grads for _ in range(2)]
        found = l2m.second_moment(trained(wrapped, grads, STACK), STACK, tx=wrapped)
        assert found.micro_steps == 2
    else:
        exposed = l2m.expose_second_moment
        wrapped = vmapped(exposed(tx)) if way.startswith("exposed") else exposed(vmapped(tx))
        found = l2m.second_moment(trained(wrapped, grads, STACK), STACK)
    for leaf in STACK:
        close(l2m.moments.debiased(found)[leaf], l2m.moments.debiased(alone)[leaf])
    assert sides(found) == sides(alone)


def test_a_stack_is_read_under_jit():
    tx = vmapped(soap(1e-3))
    state = trained(tx, gradients(5), STACK)
    expected = l2m.second_moment(state, STACK, tx=tx)
    read = jax.jit(lambda s: l2m.second_moment(s, STACK, tx=tx))(state)
    jax.tree.map(np.testing.assert_array_equal, read.basis, expected.basis)
    np.testing.assert_allclose(read.weight, expected.weight, rtol=1e-5)
    early = jax.jit(lambda s: l2m.second_moment(s, STACK, tx=tx).weight)(tx.init(STACK))
    assert np.all(np.isnan(early))


# --- The numbers of a transformation that is mapped ----------------------------------------------


def test_a_mapped_optimizer_counts_for_itself():
    tx, grads = vmapped(optax.adam(1e-3)), gradients(5)
    moment = l2m.second_moment(trained(tx, grads, STACK), STACK, tx=tx)
    alone = optax.adam(1e-3)
    expected = l2m.second_moment(trained(alone, grads, STACK), STACK, tx=alone)
    assert moment.count.tolist() == [5] * LAYERS
    for leaf in STACK:
        close(l2m.moments.debiased(moment)[leaf], l2m.moments.debiased(expected)[leaf])


MAPPED = {
    "a step size that is adapted": lambda: optax.contrib.prodigy(1e-3),
    "a decay on a schedule": lambda: optax.inject_hyperparams(optax.adam)(
        1e-3, b2=lambda count: jnp.where(count < 50, 0.9, 0.99)
    ),
    "a running maximum": lambda: optax.adamax(1e-3),
    "clipped, each layer by its own norm": lambda: optax.chain(
        optax.clip_by_global_norm(1.0), soap(1e-3)
    ),
}


@pytest.mark.parametrize("name", MAPPED)
def test_what_is_refused_of_one_is_refused_of_a_stack(name):
    with pytest.raises(TypeError, match="track_second_moment"):
        l2m.identify(MAPPED[name](), {"w": jnp.ones((4, 5))})
    with pytest.raises(TypeError, match="track_second_moment"):
        l2m.identify(vmapped(MAPPED[name]()), {"w": jnp.ones((LAYERS, 4, 5))})


# --- What cannot be read -------------------------------------------------------------------------

WEIGHTS = {"w": STACK["up"]}


def in_bases(show, scale=(1.0, 1.0, 1.0), is_due=lambda count: True):
    """Means of squares of each layer in bases that stay; the state shows `show` of them.

    All leaves have one shape, and the same bases.
    """

    def bases(tree):
        layers, rows, columns = jax.tree.leaves(tree)[0].shape
        return orthogonal(0, (layers, rows)), orthogonal(1, (layers, columns))

    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return {"count": jnp.zeros((), jnp.int32), "nu": zeros, "q": show(*bases(params))}

    def update(g, state, params=None):
        left, right = bases(g)

        def follow(n, g):
            x = jnp.square(jnp.swapaxes(left, -1, -2) @ g @ right)
            follows = 0.9 * n + 0.1 * jnp.array(scale)[:, None, None] * x
            return jnp.where(is_due(state["count"]), follows, n)

        nu = jax.tree.map(follow, state["nu"], g)
        return g, {**state, "count": state["count"] + 1, "nu": nu}

    return optax.GradientTransformation(init, update)


def both(left, right):
    return left, right


def test_bases_that_are_shown_are_found():
    """The others that are refused differ from this in one thing."""
    assert l2m.identify(in_bases(both), WEIGHTS).leaves[0].matrices == ("['q'][0]", "['q'][1]")


def test_leaves_may_share_their_bases():
    params = {"one": STACK["up"], "two": STACK["up"]}
    tx, grads = in_bases(both), gradients(6, params)
    state = trained(tx, grads, params)
    moment = l2m.second_moment(state, params, tx=tx)
    for leaf in params:
        np.testing.assert_array_equal(moment.nu[leaf], state["nu"][leaf])
        np.testing.assert_array_equal(moment.basis[leaf].left, state["q"][0])


UNREADABLE = {
    "the bases of other layers": in_bases(lambda left, right: (left[::-1], right[::-1])),
    "the bases of one layer": in_bases(lambda left, right: (left[0], right[0])),
    "one side of one layer": in_bases(lambda left, right: (left, right[0])),
    "one side": in_bases(lambda left, right: (left, None)),
    "a layer of another scale": in_bases(both, scale=(1.0, 2.0, 1.0)),
    "layers that take turns": in_bases(
        both, is_due=lambda count: count % 3 == jnp.arange(3)[:, None, None]
    ),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_stacks_that_no_bases_explain_are_refused(name):
    told = (
        r"tx: expected .*, got .* none in a basis of the matrices .*; chain .*track_second_moment"
    )
    with pytest.raises(TypeError, match=told):
        l2m.identify(UNREADABLE[name], WEIGHTS)


@pytest.mark.parametrize("held", [(8, 3), (2, 4, 3)])
def test_blocks_of_one_matrix_are_refused(held):
    """They have a basis each, but do not lie along an axis of the leaf."""
    tx = reshaped(soap(1e-3, every=100, stacked=1), (2, 4, 3), held)
    with pytest.raises(TypeError, match="none in a basis of the matrices"):
        l2m.identify(tx, {"w": jnp.ones((8, 3))})


@pytest.mark.parametrize("make", [soap, shampoo])
def test_a_state_of_another_fold_is_refused(make):
    """Single matrices were folded, and `tx` is that of a stack."""
    tx, grads = make(1e-3, stacked=1), gradients(5, WEIGHTS)
    state = trained(make(1e-3), grads, WEIGHTS)
    field = "Q" if make is soap else "statistics"
    where = rf"opt_state\[0\]\.{field}\['w'\]\[\d\]: expected .*shape .*, got .*; pass the trans"
    with pytest.raises(TypeError, match=where):
        l2m.second_moment(state, WEIGHTS, tx=tx)
    with pytest.raises(TypeError, match="no such array"):
        l2m.second_moment(trained(tx, grads, WEIGHTS), WEIGHTS, tx=make(1e-3))
