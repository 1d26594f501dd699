"""Promises that every function keeps: jit equals eager, one trace, dtypes, structures, vmap."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import flat, moment_of, network, network_params, rotated_moment

import l2m_optax as l2m

KEY = jax.random.key(0)
INPUTS = jax.random.normal(jax.random.key(1), (6, 4))
LABELS = jnp.arange(6) % 3
REGRESSION = jax.random.normal(jax.random.key(2), (50, 4)), jnp.ones((50, 3))

FUNCTIONS = {
    "precision": l2m.posterior.precision,
    "variance": l2m.variance,
    "data_precision": l2m.posterior.data_precision,
    "sample": lambda p: l2m.sample(KEY, p, 4),
    "log_prob": lambda p: l2m.log_prob(p, jax.tree.map(jnp.ones_like, p.mean)),
    "entropy": l2m.posterior.entropy,
    "predict": lambda p: l2m.predict.apply_ensemble(network, l2m.sample(KEY, p, 4), INPUTS),
    "monte_carlo": lambda p: l2m.monte_carlo(KEY, network, p, INPUTS, num_samples=4),
    "linearized": lambda p: l2m.linearized(KEY, network, p, INPUTS, num_samples=4),
    "output_variance": lambda p: l2m.output_variance(network, p, INPUTS),
    "classification": lambda p: l2m.classification(
        l2m.linearized(KEY, network, p, INPUTS, num_samples=4)
    ),
    "regression": lambda p: l2m.regression(
        l2m.linearized(KEY, network, p, INPUTS, num_samples=4), p.noise_variance
    ),
    "log_evidence": l2m.tuning.log_evidence,
    "effective_parameters": l2m.tuning.effective_parameters,
    "fit_prior_precision": l2m.fit_prior_precision,
    "fit_noise_variance": lambda p: l2m.fit_noise_variance(network, p, *REGRESSION),
    "tune": lambda p: l2m.tune(network, p, INPUTS, LABELS, num_samples=4).info,
    "elbo": lambda p: l2m.tuning.elbo(KEY, network, p, INPUTS, LABELS, num_samples=4),
    "kl_divergence": l2m.tuning.kl_divergence,
    "regress": lambda p: l2m.regress(network, p, INPUTS),
    "restrict": lambda p: l2m.variance(l2m.restrict(p, "head")),
}


@pytest.fixture(scope="module")
def module_posterior():
    params = network_params(KEY)
    return l2m.laplace(params, moment_of(params), num_data=50, batch_size=5)


@pytest.fixture(scope="module")
def rotated_posterior():
    params = network_params(KEY)
    return l2m.laplace(params, rotated_moment(params), num_data=50, batch_size=5)


IN_BASES = ("variance", "sample", "log_prob", "linearized", "output_variance")


@pytest.mark.parametrize("name", IN_BASES)
def test_jit_equals_eager_in_bases_too(name, rotated_posterior):
    _check_jit(name, rotated_posterior)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_jit_equals_eager_in_one_trace(name, module_posterior):
    _check_jit(name, module_posterior)


def _check_jit(name, posterior):
    traces = []

    def counted(posterior):
        traces.append(name)
        return FUNCTIONS[name](posterior)

    eager = FUNCTIONS[name](posterior)
    jitted = jax.jit(counted)
    compiled = jitted(posterior)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5), eager, compiled
    )
    assert jax.tree.structure(eager) == jax.tree.structure(compiled)
    jitted(posterior._replace(temperature=jnp.float32(2.0)))
    assert len(traces) == 1


def test_laplace_itself_can_be_jitted():
    params = network_params(KEY)

    @jax.jit
    def variance(params, moment):
        return l2m.variance(l2m.laplace(params, moment, num_data=50, batch_size=5))

    eager = l2m.variance(l2m.laplace(params, moment_of(params), num_data=50, batch_size=5))
    np.testing.assert_allclose(flat(variance(params, moment_of(params))), flat(eager), rtol=1e-6)


def test_predictives_compile_once_for_new_parameters_and_keys(module_posterior):
    traces = []

    def counted(params, x):
        traces.append(1)
        return network(params, x)

    for seed in range(3):
        posterior = module_posterior._replace(prior_precision=jnp.float32(1.0 + seed))
        key = jax.random.key(seed)
        l2m.linearized(key, counted, posterior, INPUTS, num_samples=3)
    assert len(traces) == 2  # the network, and the check that examples do not depend on each other


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_dtypes_are_kept_and_statistics_are_float32(dtype):
    params = network_params(KEY, dtype)
    posterior = l2m.laplace(params, moment_of(params), num_data=50, batch_size=5)
    draws = l2m.sample(KEY, posterior, 3)
    assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(draws))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(l2m.variance(posterior)))
    for statistic in (
        l2m.posterior.entropy,
        l2m.tuning.log_evidence,
        l2m.tuning.effective_parameters,
    ):
        assert statistic(posterior).dtype == jnp.float32
    outputs = l2m.linearized(KEY, network, posterior, INPUTS.astype(dtype), num_samples=3)
    assert outputs.dtype == dtype
    assert l2m.classification(outputs).probs.dtype == jnp.float32
    exact = l2m.output_variance(network, posterior, INPUTS.astype(dtype))
    assert exact.dtype == jnp.float32


def test_float64_is_kept():
    with jax.enable_x64(True) if hasattr(jax, "enable_x64") else jax.experimental.enable_x64():
        params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), network_params(KEY))
        tx = optax.adam(1e-3)
        _, state = tx.update(params, tx.init(params), params)
        moment = l2m.second_moment(state, params, tx=tx)
        posterior = l2m.laplace(params, moment, num_data=50, batch_size=5, prior_precision=2.0)
        assert l2m.tuning.log_evidence(posterior).dtype == jnp.float64
        assert l2m.sample(KEY, posterior, 2)["head"]["bias"].dtype == jnp.float64
        fitted, info = l2m.fit_prior_precision(posterior)
        assert bool(info.converged)
        assert bool(l2m.fit_noise_variance(network, posterior, *REGRESSION).info.converged)
        l2m.tune(network, fitted, jnp.asarray(INPUTS, jnp.float64), LABELS, num_samples=2)


@pytest.mark.parametrize(
    "params",
    [
        {"w": jnp.ones(3), "none": None},
        {"w": jnp.ones(3), "empty": {}, "tuple": ()},
        jnp.ones(()),
        [jnp.ones((2, 1)), (jnp.ones(()), jnp.ones((0, 3)))],
        {"nu": jnp.ones(2), "count": jnp.ones(3), "mu": jnp.ones(())},
    ],
    ids=["None leaves", "empty subtrees", "scalar", "nested and empty", "named like states"],
)
def test_structures_are_kept(params):
    tx = optax.adam(1e-3)
    _, state = tx.update(params, tx.init(params), params)
    moment = l2m.second_moment(state, params, tx=tx)
    posterior = l2m.laplace(params, moment, num_data=50, batch_size=5)
    structure = jax.tree.structure(params)
    fitted = l2m.fit_prior_precision(posterior).posterior
    draws = l2m.sample(KEY, fitted, 2)
    for tree in (draws, l2m.variance(fitted), l2m.posterior.precision(fitted)):
        assert jax.tree.structure(tree) == structure
    assert jnp.isfinite(l2m.log_prob(fitted, params))

    def apply_fn(params, x):
        return x * sum(jnp.sum(leaf) for leaf in jax.tree.leaves(params))

    assert l2m.output_variance(apply_fn, fitted, jnp.ones((3, 1))).shape == (3, 1)
    assert l2m.linearized(KEY, apply_fn, fitted, jnp.ones((3, 1)), num_samples=2).shape == (2, 3, 1)


@pytest.mark.filterwarnings("ignore:.*cannot show whether they were clipped")
def test_an_ensemble_of_posteriors_is_a_vmapped_posterior():
    keys = jax.random.split(KEY, 3)
    params = jax.vmap(network_params)(keys)
    tx = optax.adam(1e-3, b2=0.9)
    _, state = jax.vmap(tx.update)(params, jax.vmap(tx.init)(params), params)

    def build(params, state):
        moment = l2m.second_moment(state, params, decay=0.9)
        return l2m.laplace(params, moment, num_data=50, batch_size=5)

    stacked = jax.vmap(build)(params, state)
    outputs = jax.vmap(lambda k, p: l2m.linearized(k, network, p, INPUTS, num_samples=4))(
        keys, stacked
    )
    fits = jax.vmap(l2m.fit_prior_precision)(stacked)
    for i in range(3):
        member = jax.tree.map(lambda leaf: leaf[i], (params, state))  # noqa: B023
        posterior = build(*member)
        np.testing.assert_allclose(
            outputs[i],
            l2m.linearized(keys[i], network, posterior, INPUTS, num_samples=4),
            rtol=1e-4,
            atol=1e-4,
        )
        np.testing.assert_allclose(
            fits.info.value[i], l2m.fit_prior_precision(posterior).info.value, rtol=1e-4
        )


def test_posteriors_survive_flattening_and_donation(module_posterior):
    leaves, treedef = jax.tree.flatten(module_posterior)
    again = treedef.unflatten([jnp.copy(leaf) for leaf in leaves])
    assert jax.tree.structure(again) == jax.tree.structure(module_posterior)
    cooled = jax.jit(lambda p: p._replace(temperature=0.1 * p.temperature), donate_argnums=0)(again)
    np.testing.assert_allclose(
        flat(l2m.variance(cooled)), 0.1 * flat(l2m.variance(module_posterior)), rtol=1e-5
    )


def test_states_inside_jit_need_no_host(module_posterior):
    tx = l2m.expose_second_moment(optax.adam(1e-3))
    params = network_params(KEY)

    @jax.jit
    def train_and_build(params):
        state = tx.init(params)
        _, state = tx.update(params, state, params)
        return l2m.variance(l2m.laplace(params, state, num_data=50, batch_size=5))

    state = tx.init(params)
    _, state = tx.update(params, state, params)
    eager = l2m.variance(l2m.laplace(params, state, num_data=50, batch_size=5))
    np.testing.assert_allclose(flat(train_and_build(params)), flat(eager), rtol=1e-4)
