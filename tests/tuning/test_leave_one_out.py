"""Leave-one-out logits against dense matrices and refits; the temperature; memory; refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import moment_of, network
from scipy import optimize

import l2m_optax as l2m
from l2m_optax._support.search import zoom
from l2m_optax.tuning._leave_one_out import joint_covariance, leave_out, softmax_root
from l2m_optax.tuning._mode import judge, temperature_after

NUM_DATA = 120
PRIOR = {"body": 0.5, "head": 3.0}
INPUTS = jax.random.normal(jax.random.key(2), (20, 4))


@pytest.fixture
def layered(params):
    return l2m.laplace(
        params, moment_of(params), num_data=NUM_DATA, batch_size=5, prior_precision=PRIOR
    )


@pytest.fixture
def labels(params):
    return jax.random.categorical(jax.random.key(3), 0.5 * network(params, INPUTS))


def dense(posterior, inputs):
    """J of shape (n, K, P) and F + δ of shape (P,), of the free leaves, in float64."""
    jacobians = jax.tree.leaves(jax.jit(jax.jacrev(network))(posterior.mean, inputs))
    precisions = jax.tree.leaves(l2m.posterior.precision(posterior._replace(temperature=1.0)))
    kept = [
        (np.float64(j).reshape(len(inputs), 3, -1), np.float64(p).ravel())
        for j, p in zip(jacobians, precisions, strict=True)
        if np.all(np.isfinite(p))
    ]
    return [np.concatenate(parts, axis=-1) for parts in zip(*kept, strict=True)]


def curvature_of(logits):
    p = np.float64(jax.nn.softmax(logits))
    return np.einsum("nk,kl->nkl", p, np.eye(p.shape[1])) - p[:, :, None] * p[:, None]


def test_root_of_the_softmax_curvature():
    logits = 3.0 * jax.random.normal(jax.random.key(0), (5, 4))
    root = np.float64(softmax_root(logits))
    np.testing.assert_allclose(root @ root.transpose(0, 2, 1), curvature_of(logits), atol=1e-7)


@pytest.mark.parametrize("where", ["body", "head", None])
def test_covariance_of_all_outputs_together(layered, where):
    posterior = layered if where is None else l2m.restrict(layered, where)
    j, diagonal = dense(posterior, INPUTS)
    expected = np.einsum("iap,p,jbp->iajb", j, 1.0 / diagonal, j)
    np.testing.assert_allclose(
        joint_covariance(posterior, network, INPUTS), expected, rtol=1e-4, atol=1e-4
    )


def test_left_out_logits_from_dense_matrices(layered, labels):
    logits = network(layered.mean, INPUTS)
    j, diagonal = dense(layered, INPUTS)
    residuals = np.float64(jax.nn.softmax(logits)) - np.eye(3)[np.asarray(labels)]
    blocks = np.einsum("nkp,nkl,nlq->npq", j, curvature_of(logits), j, optimize=True)
    expected = []
    for i in range(len(INPUTS)):
        rest = [n for n in range(len(INPUTS)) if n // 4 != i // 4]
        precision = NUM_DATA / len(rest) * blocks[rest].sum(0) + np.diag(diagonal)
        step = np.linalg.solve(precision, j[i].T @ residuals[i])
        expected.append(np.float64(logits[i]) + j[i] @ step)
    gram = joint_covariance(layered, network, INPUTS)
    got = leave_out(gram, logits, labels, NUM_DATA)
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-3)


def test_left_out_logits_are_those_of_refits():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 3))
    labels = rng.integers(0, 2, size=60) | (x[:, 0] > 0)
    delta = 0.5

    def fit(x, y):
        def objective(w):
            score = x @ w
            return np.sum(np.logaddexp(0.0, score) - y * score) + 0.5 * delta * w @ w

        return optimize.minimize(objective, np.zeros(3), method="BFGS").x

    scores = x @ fit(x, labels)
    refits = [x[i] @ fit(np.delete(x, i, 0), np.delete(labels, i)) for i in range(60)]
    gram = np.zeros((60, 2, 60, 2))
    gram[:, 1, :, 1] = x @ x.T / delta
    logits = np.stack([np.zeros(60), scores], axis=1)
    left_out = leave_out(*map(jnp.float32, (gram, logits)), jnp.asarray(labels), 60)
    shifts, expected = np.float64(left_out[:, 1]) - scores, np.array(refits) - scores
    assert np.corrcoef(shifts, expected)[0, 1] > 0.97
    assert 0.85 < np.sum(shifts * expected) / np.sum(expected**2) < 1.2


@pytest.mark.parametrize("where", ["head", None])
def test_temperature_predicts_the_left_out_labels_best(layered, labels, where):
    posterior = layered if where is None else l2m.restrict(layered, where)
    # Under a stronger prior the left-out logits stay near enough for a temperature to help.
    trained = layered._replace(prior_precision=jax.tree.map(lambda d: 100.0 * d, PRIOR))
    key = jax.random.key(0)
    options = {"num_data": NUM_DATA, "trained": trained}
    fitted, info = l2m.fit_temperature(network, posterior, INPUTS, labels, **options)
    logits = network(layered.mean, INPUTS)
    shifts = (
        leave_out(joint_covariance(trained, network, INPUTS), logits, labels, NUM_DATA) - logits
    )

    def loss(log_temperature):
        candidate = posterior._replace(temperature=jnp.exp(log_temperature))
        drawn = l2m.linearized(key, network, candidate, INPUTS, num_samples=32, antithetic=True)
        probs = l2m.classification(drawn + shifts).probs
        return float(l2m.metrics.negative_log_likelihood(probs, labels))

    best = optimize.minimize_scalar(loss, bounds=(-9, 6), method="bounded")
    np.testing.assert_allclose(loss(np.log(info.value)), best.fun, atol=1e-3)
    assert float(fitted.temperature) == float(info.value)
    assert info.converged
    assert not info.edge
    hotter = posterior._replace(temperature=jnp.float32(9.0))
    again = l2m.fit_temperature(network, hotter, INPUTS, labels, **options)
    assert float(again.info.value) == float(info.value)


def test_a_network_without_residuals_keeps_to_its_mode(layered):
    def sure(params, x):
        return 1e5 * network(params, x)

    labels = jnp.argmax(network(layered.mean, INPUTS), axis=1)
    posterior = layered._replace(temperature=jnp.float32(0.3))
    fitted, info = l2m.fit_temperature(sure, posterior, INPUTS, labels, num_data=NUM_DATA)
    assert info.edge
    assert not info.converged
    assert float(fitted.temperature) == float(info.value) == 0.0


def left_out_loss(posterior, apply_fn, inputs, labels, temperature):
    """The leave-one-out negative log-likelihood at one temperature, with the draws of the fit."""
    logits = apply_fn(posterior.mean, inputs)
    gram = joint_covariance(posterior, apply_fn, inputs)
    shifts = leave_out(gram, logits, labels, NUM_DATA) - logits
    drawn = shifts + logits
    if temperature > 0:
        hot = posterior._replace(temperature=temperature)
        drawn = shifts + l2m.linearized(
            jax.random.key(0), apply_fn, hot, inputs, num_samples=32, antithetic=True
        )
    log_probs = np.float64(jax.nn.log_softmax(jnp.atleast_3d(drawn).reshape(-1, *logits.shape)))
    chosen = log_probs[:, np.arange(len(labels)), labels]
    return -np.mean(np.logaddexp.reduce(chosen, axis=0) - np.log(len(chosen)))


@pytest.mark.parametrize("scale", [1e-4, 0.3, 1.0, 3.0, 30.0])
@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_what_is_fitted_is_never_worse_than_the_mode(layered, scale, noise):
    """From overfitted networks, whose logits are too large, to those that know nothing yet."""

    def scaled(params, x):
        return scale * network(params, x)

    gumbel = noise * jax.random.gumbel(jax.random.key(5), (20, 3))
    labels = np.asarray(jnp.argmax(network(layered.mean, INPUTS) + gumbel, axis=1))
    info = l2m.fit_temperature(scaled, layered, INPUTS, labels, num_data=NUM_DATA).info
    mode = left_out_loss(layered, scaled, INPUTS, labels, 0.0)
    found = left_out_loss(layered, scaled, INPUTS, labels, float(info.value))
    assert found <= mode + 1e-6 * abs(mode)
    assert (info.value == 0.0) == bool(info.edge)


def test_a_temperature_inside_its_bounds_may_be_worse_than_the_mode():
    grid = jnp.linspace(-3.0, 3.0, 7)
    best = zoom(lambda axes: jnp.square(axes[0]) + 1.0, [grid], 3)
    for mode_loss, wins in ((0.9, True), (1.0, True), (1.1, False), (jnp.nan, False)):
        verdict = judge(best, jnp.float32(mode_loss))
        assert bool(verdict.mode) is wins
        assert not verdict.lost
        found = temperature_after(verdict, best.point[0], 7.0)
        np.testing.assert_allclose(found, 0.0 if wins else 1.0, atol=1e-5)


def test_an_upper_bound_is_kept_with_a_warning(layered, labels):
    """A second moment far too large: no temperature below 1000 widens the posterior enough."""
    moment = layered.second_moment
    moment = moment._replace(nu=jax.tree.map(lambda nu: 1e4 * (nu + 1.0), moment.nu))

    def sure(params, x):
        return 30.0 * network(params, x)

    narrow = layered._replace(second_moment=moment)
    with pytest.warns(UserWarning, match="temperature: expected a best value.*upper bound, and"):
        fitted, info = l2m.fit_temperature(sure, narrow, INPUTS, labels, num_data=NUM_DATA)
    assert info.edge
    np.testing.assert_allclose([info.value, fitted.temperature], 1e3, rtol=1e-5)


def test_nan_outputs_give_no_temperature(layered, labels):
    def broken(params, x):
        return network(params, x) * jnp.nan

    posterior = layered._replace(temperature=jnp.float32(0.3))
    with pytest.warns(UserWarning, match="temperature: expected a finite loss.*as it was"):
        fitted, info = l2m.fit_temperature(broken, posterior, INPUTS, labels, num_data=NUM_DATA)
    assert info.edge
    assert not info.converged
    assert float(fitted.temperature) == float(posterior.temperature)


def sizes(jaxpr):
    """The sizes of all arrays of a program."""
    for equation in jaxpr.eqns:
        yield from (v.aval.size for v in equation.outvars if hasattr(v.aval, "size"))
        for inner in jax.tree.leaves(list(equation.params.values())):
            if hasattr(inner, "eqns"):
                yield from sizes(getattr(inner, "jaxpr", inner))


def test_no_jacobian_is_formed():
    width, number = 300, 8
    params = {"a": 0.1 * jnp.ones((4, width)), "b": 0.1 * jnp.ones((width, 3))}
    posterior = l2m.laplace(params, moment_of(params), num_data=100, batch_size=5)
    inputs = jax.random.normal(jax.random.key(0), (number, 4))

    def apply_fn(p, x):
        return jnp.tanh(x @ p["a"]) @ p["b"]

    grams = {}
    for chunk in (1, 2, 24):
        traced = jax.make_jaxpr(lambda p, c=chunk: joint_covariance(p, apply_fn, inputs, c))
        largest = max(sizes(traced(posterior).jaxpr))
        assert largest <= chunk * number * width, f"{largest} entries in chunks of {chunk}"
        grams[chunk] = joint_covariance(posterior, apply_fn, inputs, chunk)
    np.testing.assert_allclose(grams[1], grams[2], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(grams[1], grams[24], rtol=1e-5, atol=1e-5)


def tokens(p, x):
    return jnp.stack([network(p, x)] * 2, axis=1)


def centred(p, x):
    return network(p, x - jnp.mean(x, axis=0))


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"num_data": 5}, ValueError, "num_data: expected at least 20, got 5"),
        ({"num_data": 50.0}, TypeError, "num_data: expected an integer"),
        ({"chunk_size": 0}, ValueError, "chunk_size: expected at least 1"),
        ({"inputs": INPUTS[:9]}, ValueError, "examples in inputs: expected at least 10"),
        ({"labels": jnp.zeros((20, 3))}, TypeError, "labels: expected integers, got float32"),
        (
            {"labels": jnp.full(20, 3)},
            ValueError,
            "labels: expected classes from 0 to 2, got 3 to 3",
        ),
        ({"labels": jnp.zeros(19, int)}, ValueError, r"labels: expected shape \(20,\), got \(19,"),
        ({"labels": jnp.zeros((20, 1), int)}, ValueError, r"got \(20, 1\)"),
        ({"apply_fn": lambda p, x: network(p, x)[:, :1]}, ValueError, "logits"),
        ({"apply_fn": centred}, ValueError, "depend on that example only"),
        ({"trained": {}}, ValueError, "trained.mean"),
        ({"apply_fn": tokens}, ValueError, r"apply_fn: expected logits \(n, K\)"),
        ({"swapped": True}, TypeError, "apply_fn: expected a function, got a Posterior"),
    ],
)
def test_refusals(layered, labels, changed, error, message):
    arguments = {"apply_fn": network, "inputs": INPUTS, "labels": labels, "num_data": NUM_DATA}
    arguments |= changed
    if "trained" in changed:
        arguments["trained"] = layered._replace(mean={"tail": jnp.ones(3)})
    if arguments.pop("swapped", False):
        arguments["apply_fn"], layered = layered, network
    with pytest.raises(error, match=message):
        l2m.fit_temperature(posterior=layered, **arguments)
