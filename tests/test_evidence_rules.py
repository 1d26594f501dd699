"""The rules against too strong a decay, of `make bench-evidence`, change the decay and only it."""

import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

import l2m_optax as l2m

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

from evidence_rules import RULES, ruled

N, SEARCHED, UNSEARCHED = 100, 120, 50
PARAMS = {"one": {"w": jnp.array([0.3, -0.5])}, "two": {"w": jnp.array([2.0, 1.0, -1.0])}}
EVIDENCE = l2m.evidence_weight_decay(num_data=N, batch_size=10, decay=0.9)


def decay(tx, loss, steps):
    """What the last of some updates adds to the gradient, and the state then."""
    keys = jax.random.split(jax.random.key(0), steps)

    def step(state, key):
        grads = optax.tree.random_like(key, PARAMS)
        updates, state = tx.update(grads, state, PARAMS, value=loss)
        return state, jax.tree.map(jnp.subtract, updates, grads)

    state, added = jax.lax.scan(step, tx.init(PARAMS), keys)
    return jax.tree.map(lambda leaf: leaf[-1], added), state


def strength(decay):
    """δ of each module: N times what is added, over the parameter."""
    return {name: float(jnp.mean(N * decay[name]["w"] / PARAMS[name]["w"])) for name in PARAMS}


def nats_of(loss):
    return float(decay(EVIDENCE, loss, SEARCHED)[1].nats_per_parameter)


LOSSES = {"small": 0.002, "large": 0.2}  # nats of a determined parameter: 0.05 and 5 or so


def test_the_losses_are_on_either_side_of_the_limits():
    assert 0 < nats_of(LOSSES["small"]) < 0.2 < 0.5 < nats_of(LOSSES["large"])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("loss", "steps"), [("large", SEARCHED), ("small", UNSEARCHED)])
def test_without_a_sign_the_decay_is_that_of_the_evidence(rule, loss, steps):
    expected, _ = decay(EVIDENCE, LOSSES[loss], steps)
    found, _ = decay(ruled(EVIDENCE, RULES[rule]), LOSSES[loss], steps)
    chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("rule", "most"), [("δ is at most 1", 1.0), ("δ is at most 0.1", 0.1)])
def test_with_the_sign_no_module_has_more_than_the_bound(rule, most):
    plain = strength(decay(EVIDENCE, LOSSES["small"], SEARCHED)[0])
    found = strength(decay(ruled(EVIDENCE, RULES[rule]), LOSSES["small"], SEARCHED)[0])
    assert max(plain.values()) > most
    assert found == pytest.approx({name: min(d, most) for name, d in plain.items()}, rel=1e-3)


@pytest.mark.parametrize(
    ("rule", "factor"),
    [
        ("the decay times (nats / 0.25)²", lambda nats: (nats / 0.25) ** 2),
        ("the decay times nats / 0.5", lambda nats: nats / 0.5),
    ],
)
def test_with_the_sign_the_decay_is_in_proportion_to_a_power_of_the_nats(rule, factor):
    plain, state = decay(EVIDENCE, LOSSES["small"], SEARCHED)
    found, same = decay(ruled(EVIDENCE, RULES[rule]), LOSSES["small"], SEARCHED)
    assert strength(found) == pytest.approx(
        {name: factor(float(state.nats_per_parameter)) * d for name, d in strength(plain).items()},
        rel=1e-3,
    )
    chex.assert_trees_all_close(same, state)
