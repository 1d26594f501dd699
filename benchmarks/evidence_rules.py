"""Rules that weaken the evidence's decay where its own state shows a fit that is almost perfect.

A rule is followed while `nats_per_parameter` is below its limit. That number is 0 before the first
search, when nothing is known yet.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from evidence_tasks import Task
from evidence_training import Found, by_evidence, evidence

State = Any  # an `EvidenceWeightDecayState`


class Rule(NamedTuple):
    """Below so many nats, `factors(state)` of the decay: a tree with a number for each leaf."""

    limit: float
    factors: Callable[[State], Any]


def at_most(bound: float, state: State) -> Any:
    """As if δ were no more than the bound."""
    return jax.tree.map(lambda delta: jnp.minimum(1.0, bound / delta), state.prior_precision)


def power(limit: float, exponent: int, state: State) -> Any:
    factor = (state.nats_per_parameter / limit) ** exponent
    return jax.tree.map(lambda delta: factor, state.prior_precision)


RULES = {
    "δ is at most 1": Rule(0.25, functools.partial(at_most, 1.0)),
    "δ is at most 0.1": Rule(0.25, functools.partial(at_most, 0.1)),
    "the decay times (nats / 0.25)²": Rule(0.25, functools.partial(power, 0.25, 2)),
    "the decay times nats / 0.5": Rule(0.5, functools.partial(power, 0.5, 1)),
}


def ruled(
    inner: optax.GradientTransformationExtraArgs, rule: Rule
) -> optax.GradientTransformationExtraArgs:
    """The evidence's decay, weakened by a rule; the state is that of the evidence."""

    def update(grads: Any, state: State, params: Any = None, **extra: Any) -> tuple[Any, State]:
        decayed, state = inner.update(grads, state, params, **extra)
        nats = state.nats_per_parameter
        followed = (nats > 0) & (nats < rule.limit)

        def weaken(g: jax.Array, with_decay: jax.Array, factor: jax.Array) -> jax.Array:
            return jnp.where(followed, g + factor * (with_decay - g), with_decay)

        return jax.tree.map(weaken, grads, decayed, rule.factors(state)), state

    return optax.GradientTransformationExtraArgs(inner.init, update)


def following(
    rule: Rule, strength: Any, rate: Any, task: Task, centre: Any
) -> optax.GradientTransformation:
    return optax.chain(ruled(evidence(strength, task, centre), rule), optax.adam(rate))


OPTIMIZERS = {name: functools.partial(following, rule) for name, rule in RULES.items()}


def of_rules(task: Task, seed: int) -> dict[str, Found]:
    """Without a rule, and with each."""
    found = {name: by_evidence(task, seed, optimizer=tx) for name, tx in OPTIMIZERS.items()}
    return {"**evidence**": by_evidence(task, seed)} | found
