"""`check_scale` against per-example gradients, one label at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import moment_of, network, network_params

import l2m_optax as l2m

X = jax.random.normal(jax.random.key(1), (60, 4))
LABELS = jax.random.randint(jax.random.key(2), (60,), 0, 3)
NUMBERS = jax.random.normal(jax.random.key(3), (60, 3))


def steps(params, x):
    """The network at each of 5 positions of a sequence."""
    return network(params, x[:, None] * jnp.linspace(0.5, 2.0, 5)[:, None])


@pytest.fixture(scope="module")
def posterior():
    params = network_params(jax.random.key(0))
    return l2m.laplace(params, moment_of(params), num_data=600, batch_size=5)


def per_example(params, loss, targets):
    """The sum of squared gradients of single examples, weighted."""
    gradients = jax.vmap(lambda x, y: jax.grad(loss)(params, x, y))(X, targets)
    return sum(float(jnp.sum(jnp.square(g))) for g in jax.tree.leaves(gradients))


def test_empirical_of_labels_is_that_of_single_examples(posterior):
    def loss(params, x, y):
        return -l2m.likelihoods.categorical(network(params, x[None]), y[None])[0]

    check = l2m.tuning.check_scale(network, posterior, X, LABELS)
    expected = 10 * per_example(posterior.mean, loss, LABELS)
    np.testing.assert_allclose(check.empirical, expected, rtol=1e-4)
    own = sum(float(jnp.sum(f)) for f in jax.tree.leaves(l2m.posterior.data_precision(posterior)))
    np.testing.assert_allclose(check.ratio, own / expected, rtol=1e-4)


def test_true_fisher_of_labels_enumerates_them(posterior):
    """The mean over signs is what all labels give, each as likely as the model says."""

    def loss(params, x, y):
        return -l2m.likelihoods.categorical(network(params, x[None]), y[None])[0]

    probs = jax.nn.softmax(network(posterior.mean, X))
    expected = 0.0
    for label in range(3):
        gradients = jax.vmap(lambda x, k=label: jax.grad(loss)(posterior.mean, x, jnp.array(k)))(X)
        for g in jax.tree.leaves(gradients):
            squares = jnp.sum(jnp.square(g).reshape(60, -1), axis=1)
            expected += 10 * float(jnp.sum(probs[:, label] * squares))
    many = jnp.tile(X, (40, 1))  # 40 signs for each
    check = l2m.tuning.check_scale(network, posterior, many, jnp.tile(LABELS, 40))
    np.testing.assert_allclose(check.true, expected, rtol=0.05)


def test_numbers_have_the_noise_of_the_residuals(posterior):
    def loss(params, x, y):
        return 0.5 * jnp.sum(jnp.square(network(params, x[None])[0] - y))

    # One output: no cross terms of several observations.
    one = NUMBERS.at[:, 1:].set(network(posterior.mean, X)[:, 1:])
    check = l2m.tuning.check_scale(network, posterior, X, one, likelihood="gaussian")
    expected = 600 / 60 * per_example(posterior.mean, loss, one)
    np.testing.assert_allclose(check.empirical, expected, rtol=1e-4)
    wide = posterior._replace(noise_variance=jnp.asarray(2.0))
    again = l2m.tuning.check_scale(network, wide, X, one, likelihood="gaussian")
    np.testing.assert_allclose(again.empirical, expected / 4, rtol=1e-4)
    np.testing.assert_allclose(again.ratio, check.ratio, rtol=1e-4)


def test_positions_of_a_sequence_are_observations(posterior):
    """Signs take away the cross terms, as sums over single positions have none."""
    labels = jax.random.randint(jax.random.key(4), (60, 5), 0, 3)

    def loss(params, x, y):
        return -l2m.likelihoods.categorical(network(params, x[None]), y[None])[0]

    @jax.jit
    def squares(x, y):  # of each example
        gradients = jax.vmap(lambda x, y: jax.grad(loss)(posterior.mean, x, y))(x, y)
        return sum(jnp.sum(jnp.square(g).reshape(60, -1), 1) for g in jax.tree.leaves(gradients))

    empirical = true = 0.0
    for position, scale in enumerate(jnp.linspace(0.5, 2.0, 5)):
        empirical += float(jnp.sum(squares(X * scale, labels[:, position])))
        probs = jax.nn.softmax(network(posterior.mean, X * scale))
        for label in range(3):
            found = squares(X * scale, jnp.full(60, label))
            true += float(jnp.sum(probs[:, label] * found))
    many = jnp.tile(X, (40, 1))
    check = l2m.tuning.check_scale(steps, posterior, many, jnp.tile(labels, (40, 1)))
    np.testing.assert_allclose(check.empirical, 600 / 300 * empirical, rtol=0.1)
    np.testing.assert_allclose(check.true, 600 / 300 * true, rtol=0.1)


def test_a_function_of_its_own_has_no_true_fisher(posterior):
    def likelihood(outputs, targets):
        return l2m.likelihoods.categorical(outputs, targets)

    named = l2m.tuning.check_scale(network, posterior, X, LABELS)
    own = l2m.tuning.check_scale(network, posterior, X, LABELS, likelihood=likelihood)
    np.testing.assert_allclose(own.empirical, named.empirical, rtol=1e-4)
    assert np.isnan(own.true)
    np.testing.assert_allclose(own.ratio, named.ratio, rtol=1e-4)


def test_interpolated_data_are_judged_by_the_true_fisher(posterior):
    sure = network(posterior.mean, X).argmax(-1)
    check = l2m.tuning.ScaleCheck(jnp.array(1.0), jnp.array(0.01), jnp.array(2.0), 60)
    assert check.reference == 2.0 and check.ratio == 0.5
    assert l2m.tuning.check_scale(network, posterior, X, sure).true > 0
    assert check._replace(empirical=jnp.array(0.19)).reference == 2.0
    assert check._replace(empirical=jnp.array(0.21)).reference == jnp.float32(0.21)


def test_rescale_makes_the_ratio_one(posterior):
    check = l2m.tuning.check_scale(network, posterior, X, LABELS)
    after = l2m.tuning.rescale(posterior, check.ratio)
    again = l2m.tuning.check_scale(network, after, X, LABELS)
    np.testing.assert_allclose(again.ratio, 1.0, rtol=1e-4)


def test_fixed_leaves_are_left_out(posterior):
    part = l2m.restrict(posterior, "head")
    whole = l2m.tuning.check_scale(network, posterior, X, LABELS)
    head = l2m.tuning.check_scale(network, part, X, LABELS)
    assert 0 < head.empirical < whole.empirical


def test_refusals(posterior):
    with pytest.raises(ValueError, match="classes from 0 to 2"):
        l2m.tuning.check_scale(network, posterior, X, LABELS + 1)
    with pytest.raises(ValueError, match="'categorical' or 'gaussian'"):
        l2m.tuning.check_scale(network, posterior, X, LABELS, likelihood="poisson")
    with pytest.raises(ValueError, match="ratio: expected a positive"):
        l2m.tuning.rescale(posterior, 0.0)
    with pytest.raises(ValueError, match="num_data"):
        l2m.tuning.check_scale(network, posterior._replace(num_data=None), X, LABELS)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_probabilities_are_not_taken_for_logits(posterior, dtype):
    def softmax(params, x):
        return jax.nn.softmax(network(params, x)).astype(dtype)

    with pytest.raises(ValueError, match="apply_fn: expected logits, got probabilities"):
        l2m.tuning.check_scale(softmax, posterior, X, LABELS)
    logits = l2m.tuning.check_scale(network, posterior, X, LABELS)
    logs = l2m.tuning.check_scale(
        lambda p, x: jnp.log(jax.nn.softmax(network(p, x))), posterior, X, LABELS
    )
    np.testing.assert_allclose(logs.empirical, logits.empirical, rtol=1e-4)
    numbers = l2m.tuning.check_scale(softmax, posterior, X, NUMBERS, likelihood="gaussian")
    assert numbers.ratio > 0
