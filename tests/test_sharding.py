"""Sharded parameters: the same numbers, drawn where they live, without needless traffic."""

import contextlib
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from test_readme import run_blocks

import l2m_optax as l2m

KEY = jax.random.key(1)
X = jax.random.normal(jax.random.key(5), (16, 4))
Y = jnp.arange(16) % 8
SHAPES = {"w": (4, 16), "v": (16, 8), "b": (8,)}
SPECS = {
    "columns then rows": {"w": P(None, "x"), "v": P("x", None), "b": P()},
    "rows": {"w": P(None, "x"), "v": P("x", None), "b": P("x")},
    "columns": {"w": P(None, "x"), "v": P(None, "x"), "b": P("x")},
    "no doubt": {"w": P(None, None), "v": P(None, "x"), "b": P("x")},
}
SOME = sorted(SPECS.keys() - {"no doubt"})


# Axes of AxisType.Explicit were an experiment before, and sums were not combined.
RECENT = jax.__version_info__ >= (0, 7)
needs_explicit_axes = pytest.mark.skipif(not RECENT, reason="explicit axes need jax 0.7")


def network(params, x):
    return jnp.tanh(x @ params["w"]) @ params["v"] + params["b"]


def mesh_of(number, kind=AxisType.Auto, name="x"):
    return jax.make_mesh((number,), (name,), devices=jax.devices()[:number], axis_types=(kind,))


def normal_params():
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


def shardings_of(mesh, specs):
    return {name: NamedSharding(mesh, spec) for name, spec in SPECS[specs].items()}


@functools.cache
def posterior_on(mesh=None, specs="columns"):
    """The same posterior, on one device or sharded over a mesh."""
    params = normal_params()
    nu = jax.tree.map(lambda p: np.square(p) + np.float32(0.1), params)
    place = None if mesh is None else (shardings_of(mesh, specs),) * 2
    params, nu = jax.device_put((params, nu), place)
    moment = l2m.SecondMoment(nu=nu, count=10)
    return l2m.laplace(params, moment, num_data=100, batch_size=10)


@contextlib.contextmanager
def using(mesh):
    """What explicit axes ask for; older versions of jax call it use_mesh."""
    with (getattr(jax, "set_mesh", None) and jax.set_mesh(mesh)) or jax.sharding.use_mesh(mesh):
        yield


FUNCTIONS = {
    "variance": lambda p, x: l2m.variance(p),
    "log_evidence": lambda p, x: l2m.tuning.log_evidence(p),
    "log_prob": lambda p, x: l2m.log_prob(p, jax.tree.map(lambda m: 0.9 * m, p.mean)),
    "fit_prior_precision": lambda p, x: l2m.fit_prior_precision(p).info.value,
    "kl_divergence": lambda p, x: l2m.tuning.kl_divergence(p),
    "sample": lambda p, x: l2m.sample(KEY, p, 4),
    "monte_carlo": lambda p, x: l2m.monte_carlo(KEY, network, p, x, num_samples=4),
    "linearized": lambda p, x: l2m.linearized(KEY, network, p, x, num_samples=4),
    "output_variance": lambda p, x: l2m.output_variance(network, p, x),
    "output_covariance": lambda p, x: l2m.output_covariance(network, p, x),
    "make_predictive": lambda p, x: l2m.make_predictive(KEY, network, p, num_samples=4)(x),
    "tune": lambda p, x: l2m.tune(network, p, x, Y, num_samples=2).info.value,
    "diagnose": lambda p, x: l2m.diagnose(p, p.second_moment).leaves,
}


@functools.cache
def expected(name):
    return jax.device_get(FUNCTIONS[name](posterior_on(), X))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_sharded_equals_unsharded(name):
    mesh = mesh_of(8)
    x = jax.device_put(X, NamedSharding(mesh, P("x")))
    found = FUNCTIONS[name](posterior_on(mesh, "columns then rows"), x)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5), found, expected(name)
    )


CONTRACTIONS = {"output_variance", "output_covariance"}  # over sharded axes, which jax leaves to us


@needs_explicit_axes
@pytest.mark.parametrize("name", sorted(set(FUNCTIONS) - {"tune", "diagnose"}))
def test_explicit_axes_are_obeyed(name):
    """Of a network whose products leave no doubt where their results live."""
    mesh = mesh_of(4, AxisType.Explicit)
    function = FUNCTIONS[name]
    with using(mesh):
        posterior = posterior_on(mesh, "no doubt")
        if name in CONTRACTIONS:
            function = jax.sharding.auto_axes(function, out_sharding=P())
        found = function(posterior, jax.device_put(X, NamedSharding(mesh, P())))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5), found, expected(name)
    )


@pytest.mark.parametrize(
    ("kind", "specs"),
    [
        (AxisType.Auto, "rows"),
        pytest.param(AxisType.Explicit, "rows", marks=needs_explicit_axes),
    ],
)
def test_draws_are_the_same_on_any_mesh(kind, specs):
    """Bit for bit: what is drawn depends on the key, not on where it is drawn."""
    drawn = []
    for number in (1, 8) if kind == AxisType.Explicit else (1, 2, 8):
        mesh = mesh_of(number, kind)
        with using(mesh):
            posterior = posterior_on(mesh, specs)
            draws = l2m.sample(KEY, posterior, 3)
        for name, leaf in draws.items():
            assert leaf.sharding.is_equivalent_to(
                NamedSharding(mesh, P(None, *SPECS[specs][name])), leaf.ndim
            )
        drawn.append(jax.device_get(draws))
    for other in drawn[1:]:
        jax.tree.map(np.testing.assert_array_equal, other, drawn[0])


def compiled(function, *arguments, **options):
    return jax.jit(function, **options).lower(*arguments).compile().as_text()


def collectives(text):
    pattern = r"\b(all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
    return re.findall(pattern, text)


def build(posterior):
    return l2m.laplace(posterior.mean, posterior.second_moment, num_data=100, batch_size=10)


@pytest.mark.parametrize("specs", SOME)
@pytest.mark.parametrize(
    "function",
    [build, l2m.posterior.precision, l2m.variance, lambda p: l2m.sample(KEY, p, 2)],
    ids=["laplace", "precision", "variance", "sample"],
)
def test_building_and_sampling_need_no_traffic(function, specs):
    assert collectives(compiled(function, posterior_on(mesh_of(8), specs))) == []


@pytest.mark.parametrize("specs", SOME)
@pytest.mark.parametrize(
    "function", [l2m.tuning.log_evidence, l2m.posterior.entropy, l2m.tuning.effective_parameters]
)
def test_statistics_need_one_sum_of_scalars(function, specs):
    text = compiled(function, posterior_on(mesh_of(8), specs))
    found = collectives(text)
    assert found == ["all-reduce"] if RECENT else set(found) == {"all-reduce"}
    for line in re.findall(r".*all-reduce(?:-start)?\(.*", text):
        assert not re.search(r"f32\[\d", line), "only scalars are summed"


def test_each_device_draws_its_own_shard_only():
    """Temporary memory of a draw falls with the number of devices."""

    def temporaries(number):
        mesh = mesh_of(number)
        params = jax.device_put(jnp.ones((64, 4096)), NamedSharding(mesh, P(None, "x")))
        moment = l2m.SecondMoment(nu=params)
        posterior = l2m.laplace(params, moment, num_data=100, batch_size=10)
        compiled = jax.jit(lambda p: l2m.sample(KEY, p, 2)).lower(posterior).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries(8) < temporaries(1) / 4


def test_draws_on_one_axis_and_inputs_on_another():
    """Eight draws on four devices a group, inputs halved: no device holds more than its part."""
    mesh = jax.make_mesh((4, 2), ("draws", "data"), axis_types=(AxisType.Auto,) * 2)
    posterior = posterior_on()
    spread = NamedSharding(mesh, P("draws"))
    sample = jax.jit(lambda key: l2m.sample(key, posterior, 8), out_shardings=spread)
    sample = sample.lower(KEY).compile()
    assert collectives(sample.as_text()) == []
    draws = sample(KEY)
    x = jax.device_put(X, NamedSharding(mesh, P("data")))
    outputs = l2m.predict.apply_ensemble(network, draws, x)
    assert outputs.sharding.is_equivalent_to(NamedSharding(mesh, P("draws", "data")), 3)
    wanted = l2m.monte_carlo(KEY, network, posterior, X, num_samples=8)
    np.testing.assert_allclose(outputs, wanted, atol=1e-5)


def test_inside_shard_map_every_device_sees_its_part():
    shard_map = getattr(jax, "shard_map", None)
    if shard_map is None:
        from jax.experimental.shard_map import shard_map
    mesh = mesh_of(8)
    whole, sharded = posterior_on(), posterior_on(mesh)
    specs = jax.tree.map(lambda x: x.sharding.spec if jnp.ndim(x) else P(), sharded)

    def parts(posterior):
        return l2m.variance(posterior), jax.lax.psum(l2m.posterior.entropy(posterior), "x")

    mapped = shard_map(parts, mesh=mesh, in_specs=(specs,), out_specs=(SPECS["columns"], P()))
    variance, entropy = jax.jit(mapped)(sharded)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), variance, l2m.variance(whole)
    )
    np.testing.assert_allclose(entropy, l2m.posterior.entropy(whole), rtol=1e-5)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("sharded") / "posterior"
    l2m.checkpoint.save(path, posterior_on(mesh_of(8)))
    return path


@pytest.mark.parametrize("number", [1, 2, 4])
def test_a_checkpoint_is_restored_onto_another_mesh(number, saved):
    posterior = posterior_on(mesh_of(8))
    like = jax.device_put(normal_params(), shardings_of(mesh_of(number), "rows"))
    restored = l2m.checkpoint.restore(saved, like=like)
    for name, leaf in restored.second_moment.nu.items():
        assert leaf.sharding.is_equivalent_to(like[name].sharding, leaf.ndim)
        np.testing.assert_array_equal(leaf, posterior.second_moment.nu[name])
    np.testing.assert_allclose(
        l2m.tuning.log_evidence(restored), l2m.tuning.log_evidence(posterior), rtol=1e-6
    )


def test_the_page_on_scale_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = run_blocks("docs/scale.md")
    assert page["outputs"].shape == (8 * jax.device_count(), 16, 3)
    np.testing.assert_array_equal(page["restored"].mean["body"], page["params"]["body"])


@pytest.mark.parametrize(
    ("kind", "specs"),
    [
        (AxisType.Auto, "columns then rows"),
        pytest.param(AxisType.Explicit, "columns", marks=needs_explicit_axes),
    ],
)
def test_bases_of_sharded_leaves(kind, specs):
    """Tracked, read, drawn and predicted on a mesh: the numbers of one device, where they live."""
    plain, draws, variances = _on_one_device()
    mesh = mesh_of(8, kind)
    with using(mesh):
        shardings = shardings_of(mesh, specs)
        sharded, more_draws, more_variances = _tracked(lambda x: jax.device_put(x, shardings))
        for name, sharding in shardings.items():
            assert l2m.variance(sharded)[name].shape == SHAPES[name]
            if kind == AxisType.Explicit:
                assert more_draws[name].sharding.spec == P(None, *sharding.spec)
    for found, expected in ((more_draws, draws), (more_variances, variances)):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), found, expected
        )
    np.testing.assert_allclose(
        l2m.posterior.entropy(sharded), l2m.posterior.entropy(plain), rtol=1e-5
    )


def _tracked(put=jax.device_put):
    """A Kronecker posterior, draws of it, and the variances of its predictions."""
    tx = l2m.track_second_moment(0.9, structure="kronecker")
    params = put(normal_params())
    state = jax.jit(tx.init)(params)
    for scale in np.float32([1.0, 2.0, 3.0]):
        grads = put({name: np.cos(scale * p) for name, p in normal_params().items()})
        _, state = jax.jit(tx.update)(grads, state)
    posterior = l2m.laplace(params, state, num_data=100, batch_size=10)
    x = jnp.ones((2, 4))
    return posterior, l2m.sample(KEY, posterior, 3), l2m.output_variance(network, posterior, x)


_on_one_device = functools.cache(_tracked)
