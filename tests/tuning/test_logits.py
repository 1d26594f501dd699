"""The scale of the logits: the scaled posterior, and what validation labels choose."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import moment_of, network, network_params

import l2m_optax as l2m
from l2m_optax.posterior._scaled import scale_leaves

LAST = {"body": {"bias": False, "kernel": False}, "head": {"bias": True, "kernel": True}}
X = jax.random.normal(jax.random.key(1), (300, 4))


@pytest.fixture(scope="module")
def posterior():
    params = network_params(jax.random.key(0))
    return l2m.laplace(
        params, moment_of(params), num_data=50, batch_size=5, prior_precision=3.0, temperature=0.5
    )


def with_everything(posterior, structure):
    """A prior mean, an offset, a mean of gradients, and bases where `structure` has them."""
    tracker = l2m.track_second_moment(0.9, structure=structure)
    state = tracker.init(posterior.mean)
    for seed in range(20):
        gradients = network_params(jax.random.key(seed))
        _, state = tracker.update(gradients, state)
    found = l2m.laplace(
        posterior.mean,
        state,
        num_data=50,
        batch_size=5,
        prior_precision=3.0,
        prior_mean=network_params(jax.random.key(7)),
    )
    moment = found.second_moment
    mu = jax.tree.map(lambda nu: 0.1 * jnp.sqrt(nu), moment.nu)
    nu = jax.tree.map(lambda nu: nu + 0.1, moment.nu)
    return found._replace(
        second_moment=moment._replace(nu=nu, offset=0.1, mu=mu, mu_weight=0.9, mu_decay=0.9)
    )


@pytest.mark.parametrize("structure", ["diagonal", "kronecker", "full"])
def test_a_scaled_last_layer_scales_the_outputs_and_nothing_else(posterior, structure):
    plain = with_everything(posterior, structure)
    scaled = scale_leaves(plain, LAST, 0.4)
    np.testing.assert_allclose(
        network(scaled.mean, X), 0.4 * network(plain.mean, X), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(
        l2m.output_covariance(network, scaled, X[:5]),
        0.16 * l2m.output_covariance(network, plain, X[:5]),
        rtol=1e-4,
        atol=1e-7,
    )
    gammas = [l2m.tuning.effective_parameters(p) for p in (plain, scaled)]
    np.testing.assert_allclose(*gammas, rtol=1e-5)
    shift = np.log(0.4) * sum(leaf.size for leaf in jax.tree.leaves(plain.mean["head"]))
    entropies = [float(l2m.posterior.entropy(p)) for p in (plain, scaled)]
    np.testing.assert_allclose(entropies[1] - entropies[0], shift, rtol=1e-4)
    for name in ("mean", "prior_mean"):
        jax.tree.map(
            np.testing.assert_array_equal,
            getattr(plain, name)["body"],
            getattr(scaled, name)["body"],
        )


def test_fixed_leaves_are_scaled_too(posterior):
    hidden = l2m.restrict(posterior, "body")
    scaled = scale_leaves(hidden, LAST, 2.0)
    np.testing.assert_allclose(
        l2m.output_variance(network, scaled, X[:5]),
        4.0 * l2m.output_variance(network, hidden, X[:5]),
        rtol=1e-4,
    )


def labels_of(posterior, scale):
    """Drawn from the network's logits times `scale`."""
    return jax.random.categorical(jax.random.key(3), scale * network(posterior.mean, X))


def by_hand(posterior, labels, scales, temperatures):
    """The loss of each pair, by `softmax_integral` of scaled logits and covariances."""
    logits = network(posterior.mean, X)
    covariance = l2m.output_covariance(network, posterior._replace(temperature=jnp.ones(())), X)
    losses = np.zeros((len(scales), len(temperatures)))
    for i, s in enumerate(scales):
        for j, t in enumerate(temperatures):
            p = np.log(l2m.predict.softmax_integral(s * logits, s * s * t * covariance).probs)
            of_label = p[np.arange(len(labels)), labels]
            losses[i, j] = -of_label.sum() - 0.2 * p.mean()
    return losses / len(labels)


@pytest.mark.parametrize("truth", [0.3, 1.0, 2.0])
def test_the_best_pair_is_found(posterior, truth):
    labels = labels_of(posterior, truth)
    fitted, info = l2m.tuning.calibrate_logits(network, posterior, X, labels)
    scale, temperature = float(info.value["logit_scale"]), float(info.value["temperature"])
    temperatures = np.concatenate([[0.0], 10.0 ** np.linspace(-6, 2, 9)])
    alone = by_hand(posterior, labels, np.exp(np.linspace(-2, 2, 81)), [0.0])
    best_alone = np.exp(np.linspace(-2, 2, 81))[alone[:, 0].argmin()]
    shares = np.log(scale) / np.log(best_alone)
    assert min(abs(shares - share) for share in (0.0, 0.5, 1.0)) < 0.15
    others = by_hand(posterior, labels, best_alone ** np.array([0.0, 0.5, 1.0]), temperatures)
    found = by_hand(posterior, labels, [scale], [temperature])
    assert found <= others.min() + 1e-4
    p = l2m.classify(network, fitted, X).probs
    np.testing.assert_allclose(
        -np.log(p[np.arange(300), labels]).mean() - 0.2 * np.log(p).mean() / 300, found, atol=1e-4
    )


@pytest.mark.parametrize("apply_fn", [network, lambda p, x: jnp.tanh(network(p, x))])
def test_the_training_loss_of_scaled_logits_is_not_known(posterior, apply_fn):
    """That of others is kept, and so are the arrays."""
    known = posterior._replace(training_loss=jnp.float32(0.3))
    labels = jax.random.categorical(jax.random.key(3), 0.7 * apply_fn(posterior.mean, X))
    found, info = l2m.tuning.calibrate_logits(apply_fn, known, X, labels)
    scaled = float(info.value["logit_scale"]) != 1.0
    assert scaled == (apply_fn is network)
    assert (found.training_loss is None) == scaled
    assert (found.mean is known.mean) != scaled


def test_labels_that_are_all_right_do_not_ask_for_an_infinite_scale(posterior):
    few = X[:20]
    labels = network(posterior.mean, few).argmax(-1)
    _, info = l2m.tuning.calibrate_logits(network, posterior, few, labels)
    assert 1.0 < float(info.value["logit_scale"]) < 9.0


@pytest.mark.parametrize(
    "apply_fn",
    [
        lambda p, x: jnp.tanh(network(p, x)),  # no leaf is linear
        lambda p, x: network(p, x) + 3.0 * x[:, :3],  # linear, and a constant beside it
    ],
)
def test_outputs_that_cannot_be_scaled_keep_their_scale(posterior, apply_fn):
    labels = jax.random.categorical(jax.random.key(3), 0.7 * apply_fn(posterior.mean, X))
    fitted, info = l2m.tuning.calibrate_logits(apply_fn, posterior, X, labels)
    assert float(info.value["logit_scale"]) == 1.0 and float(info.value["temperature"]) > 0
    jax.tree.map(np.testing.assert_array_equal, fitted.mean, posterior.mean)


def test_bad_targets_are_refused(posterior):
    with pytest.raises(ValueError, match="class numbers"):
        l2m.tuning.calibrate_logits(network, posterior, X, network(posterior.mean, X))
    with pytest.raises(ValueError, match="classes from 0 to 2"):
        l2m.tuning.calibrate_logits(network, posterior, X, jnp.full(300, 3))


def test_labels_that_the_network_does_not_know_are_warned_of(posterior):
    sure = posterior._replace(mean=jax.tree.map(lambda x: 5.0 * x, posterior.mean))
    labels = jax.random.randint(jax.random.key(5), (300,), 0, 3)
    highest = pytest.warns(UserWarning, match="temperature: .* below 100, got the upper bound")
    at_an_end = pytest.warns(UserWarning, match="logit_scale: .* between 0.1 and 10, got an end")
    with highest, at_an_end:
        _, info = l2m.tuning.calibrate_logits(network, sure, X, labels)
    assert info.edge and not info.converged


def test_the_highest_temperature_is_warned_of(posterior):
    """A posterior a million times too narrow, and logits that cannot be scaled."""
    narrow = posterior._replace(data_scale=1e6 * posterior.data_scale, prior_precision=1e6)
    labels = jax.random.randint(jax.random.key(5), (300,), 0, 3)

    def beside(p, x):
        return network(p, x) + 3.0 * x[:, :3]

    with pytest.warns(UserWarning, match="temperature: .* below 100, got the upper bound"):
        _, info = l2m.tuning.calibrate_logits(beside, narrow, X, labels)
    assert info.edge and not info.converged
