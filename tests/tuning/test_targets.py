"""Targets against outputs: each frequent mistake meets the sentence that helps."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import network
from scipy import optimize

import l2m_optax as l2m

N = 40
X = jax.random.normal(jax.random.key(0), (N, 4))
LABELS = np.arange(N) % 3
NUMBERS = np.linspace(-1.0, 1.0, 3 * N, dtype=np.float32).reshape(N, 3)


def logits(params, x):
    return network(params, x)


def column(params, x):
    return network(params, x)[:, :1]


def flat(params, x):
    return network(params, x)[:, 0]


def of_one_number(params, x):
    z = flat(params, x)
    return jnp.stack([0 * z, z], -1)


def of_one_logit(params, x):
    z = column(params, x)
    return jnp.concatenate([0 * z, z], -1)


def squares(outputs, targets):
    return -jnp.square(outputs - targets)


def tokens(params, x):
    """Two tokens an example, of three classes each."""
    return jnp.stack([network(params, x), 2.0 * network(params, -x)], axis=1)


PAIR = np.stack([LABELS, LABELS[::-1]], axis=1)

REFUSALS = {
    "column of labels": (
        logits,
        LABELS[:, None],
        "of shape (40, 1); pass targets[..., 0]",
    ),
    "real labels": (logits, LABELS * 1.0, "for classes pass targets.astype(int)"),
    "column of real labels": (logits, 1.0 * LABELS[:, None], "pass targets[..., 0].astype(int)"),
    "one-hot integers": (logits, np.eye(3, dtype=int)[LABELS], "one-hot classes pass targets.argm"),
    "one-hot reals": (
        logits,
        np.eye(3)[LABELS],
        "that are one-hot; pass targets.argmax(-1)",
    ),
    "booleans": (logits, LABELS > 0, "got bool of shape (40,); pass targets.astype(int) for"),
    "too few": (logits, LABELS[:9], "got int32 of shape (9,); pass the targets of these 40 inputs"),
    "none": (logits, LABELS[:0], "expected at least one, got an empty array of shape (0,)"),
    "label too large": (logits, LABELS + 1, "expected classes from 0 to 2, got 1 to 3"),
    "label below 0": (logits, LABELS - 1, "expected classes from 0 to 2, got -1 to 1"),
    "row for a column": (column, NUMBERS[:, 0], "pass targets[..., None]"),
    "integers for a column": (column, LABELS, "for numbers pass targets.astype(float)[..., None]"),
    "column of integers": (column, LABELS[:, None], "for numbers pass targets.astype(float); for"),
    "column for a row": (flat, NUMBERS[:, :1], "pass targets[..., 0]"),
    "integers for a row": (flat, LABELS, "for two classes return jnp.stack([0 * z, z], -1) of the"),
    "one logit": (column, LABELS, "for two classes return jnp.concatenate([0 * z, z], -1) of the"),
    "NaN": (
        column,
        np.where(NUMBERS[:, :1] > 0, np.nan, NUMBERS[:, :1]),
        "20 NaN or infin",
    ),
    "flattened tokens": (tokens, PAIR.ravel(), "class numbers of shape (40, 2) or real numbers of"),
    "labels of one token": (tokens, LABELS, "expected class numbers of shape (40, 2)"),
    "one-hot tokens": (tokens, np.eye(3, dtype=int)[PAIR], "pass targets.argmax(-1)"),
    "real tokens": (tokens, 1.0 * PAIR, "for classes pass targets.astype(int)"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_mistakes_meet_their_remedy(posterior, case):
    apply_fn, targets, message = REFUSALS[case]
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        l2m.tune(apply_fn, posterior, X, targets)
    expected, got = re.search(r": expected (.+), got (.+); .+", str(caught.value)).groups()
    assert expected != got
    assert len(str(caught.value)) < 250


def test_the_remedies_work(posterior):
    """What the messages tell people to pass is taken."""
    tune = l2m.tune
    for targets in (LABELS[:, None][..., 0], np.eye(3)[LABELS].argmax(-1), LABELS.astype(int)):
        tune(logits, posterior, X, targets, num_samples=2)
    one_hot = np.eye(3, dtype=np.float32)[LABELS]
    tune(logits, posterior, X, one_hot, likelihood=l2m.likelihoods.gaussian, num_samples=2)
    tune(column, posterior, X, NUMBERS[:, 0][..., None])
    tune(column, posterior, X, LABELS.astype(float)[..., None])
    tune(flat, posterior, X, NUMBERS[:, :1][..., 0])
    for one in (of_one_logit, of_one_number):
        l2m.tuning.check_scale(one, posterior, X, np.minimum(LABELS, 1))
    tune(logits, posterior, X, NUMBERS)


def test_a_likelihood_that_broadcasts_its_targets_is_refused(posterior):
    """(n,) against (n, 1) has a leading axis n, and n² values."""
    with pytest.raises(ValueError, match=r"likelihood: expected one value.*shape \(40, 40\) from"):
        l2m.tune(column, posterior, X, NUMBERS[:, 0], likelihood=squares)
    with pytest.raises(ValueError, match=r"targets: expected shape \(40, 1\)"):
        l2m.tune(column, posterior, X, NUMBERS[:, 0], likelihood=l2m.likelihoods.gaussian)


def test_several_outputs_are_refused(posterior):
    with pytest.raises(TypeError, match="expected one array of real outputs, got a tuple"):
        l2m.tune(lambda p, x: (network(p, x), x), posterior, X, LABELS)


@pytest.fixture
def spoken(posterior):
    x = jax.random.normal(jax.random.key(4), (100, 4))
    drawn = jax.random.categorical(jax.random.key(5), 0.4 * tokens(posterior.mean, x))
    return x, np.asarray(drawn)


@pytest.mark.parametrize("kind", ["linearized", "monte_carlo"])
def test_tokens_are_tuned_as_their_flattened_outputs(posterior, spoken, kind):
    x, y = spoken

    def flattened(params, x):
        return tokens(params, x).reshape(-1, 3)

    options = {"kind": kind, "num_samples": 8}
    whole = l2m.tune(tokens, posterior, x, y, **options).info
    loader = [(x[:30], y[:30]), (x[30:], y[30:])]
    parts = l2m.tune(tokens, posterior, loader, **options).info
    # As many inputs as labels: the second half of the flattened outputs has none of its own.
    expected = l2m.tune(flattened, posterior, x, y.ravel(), **options).info
    assert not whole.edge
    np.testing.assert_allclose([whole.value, parts.value], expected.value, rtol=1e-3)


def test_tokens_count_once_each(posterior, spoken):
    """Against a dense search with the mean over all tokens."""
    x, y = spoken
    info = l2m.tune(tokens, posterior, x, y, num_samples=8).info

    def loss(log_temperature):
        hot = posterior._replace(temperature=jnp.exp(log_temperature))
        drawn = l2m.linearized(jax.random.key(0), tokens, hot, x, num_samples=8, antithetic=True)
        probs = np.float64(jax.nn.softmax(drawn)).mean(0)
        return -np.mean(np.log(np.take_along_axis(probs, y[..., None], axis=-1)))

    best = optimize.minimize_scalar(loss, bounds=(-8, 6), method="bounded")
    np.testing.assert_allclose(loss(np.log(info.value)), best.fun, atol=1e-4)


def test_the_bound_of_tokens_is_that_of_their_flattened_outputs(posterior, spoken):
    x, y = spoken

    def flattened(params, x):
        return tokens(params, x).reshape(-1, 3)

    key = jax.random.key(0)
    one = l2m.tuning.elbo(key, tokens, posterior, x, y, num_samples=4)
    other = l2m.tuning.elbo(key, flattened, posterior, x, y.ravel(), num_samples=4)
    np.testing.assert_allclose(one, other, rtol=1e-5)


def test_tokens_have_no_exact_covariance(posterior, spoken):
    with pytest.raises(ValueError, match=r"kind='exact'.*\(N, 2, 3\); pass kind='linear"):
        l2m.tune(tokens, posterior, *spoken, kind="exact")
