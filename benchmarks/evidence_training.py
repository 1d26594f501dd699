"""The trainings of `evidence`: with no decay, with one of a grid, and with that of the evidence.

A way to train is a function of a task and a seed, which returns what it `Found`, by name.
"""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import training
from evidence_tasks import Task

import l2m_optax as l2m

GRID = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
GRID_BEHIND = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
OVERCOUNTS = (1.0, 10.0, 30.0)


def mean_loss(task: Task, params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    return of_outputs(task, task.apply_fn(params, x), y)


def of_outputs(task: Task, outputs: jax.Array, y: jax.Array) -> jax.Array:
    if task.kind == "gaussian":
        return 0.5 * jnp.mean(jnp.square(outputs - y))
    return optax.softmax_cross_entropy_with_integer_labels(outputs, y).mean()


def pull(strength: Any, centre: Any) -> optax.GradientTransformation:
    """A decay towards a centre, as `optax.add_decayed_weights` is one towards zero."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return jax.tree.map(lambda g, p, c: g + strength * (p - c), updates, params, centre), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def added(strength: Any, rate: Any, task: Task, centre: Any) -> optax.GradientTransformation:
    """L2: the decay goes through Adam. The strength is a prior precision where the noise is 1."""
    return optax.chain(pull(strength, centre), optax.adam(rate))


def behind(strength: Any, rate: Any, task: Task, centre: Any) -> optax.GradientTransformation:
    """AdamW."""
    scale = optax.scale_by_learning_rate(rate)
    return optax.chain(optax.scale_by_adam(), pull(strength, centre), scale)


def evidence(
    overcount: Any, task: Task, centre: Any, **options: Any
) -> optax.GradientTransformationExtraArgs:
    """The decay of the evidence for a task; the options are those of `evidence_weight_decay`."""
    return l2m.evidence_weight_decay(
        num_data=len(task.data(0)[0]) * task.observations,
        batch_size=task.batch_size * task.observations,
        likelihood=task.kind,
        overcount=overcount,
        prior_mean=centre if task.is_fine_tuning else None,
        **options,
    )


def tuned(
    strength: Any, rate: Any, task: Task, centre: Any, **options: Any
) -> optax.GradientTransformation:
    """The strength is the overcount."""
    return optax.chain(evidence(strength, task, centre, **options), optax.adam(rate))


diagonal, short_memory, early, kronecker = (
    functools.partial(tuned, **options)
    for options in ({}, {"decay": 0.99}, {"start": 10.0}, {"structure": "kronecker"})
)


def prepared(task: Task, optimizer: Callable, strength: Any, seed: Any, data: tuple) -> tuple:
    """The optimizer, the parameters at the start, and a key for each epoch."""
    steps = task.epochs * (len(data[0]) // task.batch_size)
    rate = optax.cosine_decay_schedule(task.rate, steps, alpha=0.01)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), 1), task.epochs)
    params = task.initial(seed, data)
    centre = params if task.is_fine_tuning else jax.tree.map(jnp.zeros_like, params)
    return optimizer(strength, rate, task, centre), params, keys


@functools.partial(jax.jit, static_argnums=(0, 1))
def trained(task: Task, optimizer: Callable, strength: Any, seed: Any, data: tuple) -> tuple:
    """The parameters and the state at the end of a training."""
    tx, params, keys = prepared(task, optimizer, strength, seed, data)
    loss = functools.partial(mean_loss, task)
    return training.run(loss, tx, params, keys, *data[:2], task.batch_size)[0]


@functools.cache
def program(task: Task, run: Callable, optimizer: Callable) -> Callable:
    """`trained`, or one like it, compiled for data of the size that each seed has, and run once."""
    compiled = run.lower(task, optimizer, 1.0, 0, task.data(0)).compile()
    jax.block_until_ready(compiled(1.0, 0, task.data(0)))  # the first is slower
    return compiled


def timed(
    task: Task, optimizer: Callable, strength: float, seed: int, data: tuple, run: Any = trained
) -> tuple:
    """The parameters, the state, and the seconds of the processor."""
    compiled = program(task, run, optimizer)
    start = time.process_time()
    params, state = jax.block_until_ready(compiled(strength, seed, data))
    return params, state, time.process_time() - start


def nll(task: Task, params: Any, noise: Any, x: jax.Array, y: jax.Array) -> float:
    loss = mean_loss(task, params, x, y)
    if task.kind == "gaussian":
        loss = 0.5 * jnp.log(2 * jnp.pi * noise) + loss / noise
    return float(loss)


def accuracy(task: Task, params: Any, x: jax.Array, y: jax.Array) -> float:
    if task.kind == "gaussian":
        return float("nan")
    return float(jnp.mean(jnp.argmax(task.apply_fn(params, x), axis=-1) == y))


class Found(NamedTuple):
    """What a training ended with.

    Attributes:
      validation: NLL on validation data.
      test: NLL on test data.
      seconds: of the processor.
      nats: `nats_per_parameter` of the evidence's state.
      accuracy: on test data, of classes.
      test_by_validation: NLL on test data, with the noise of the residuals on validation data.
      params: the network.
      state: of the optimizer.
    """

    validation: float
    test: float
    seconds: float
    nats: float
    accuracy: float
    test_by_validation: float
    params: Any
    state: Any


def found(
    task: Task, data: tuple, params: Any, state: Any, seconds: float, noise: Any = None
) -> Found:
    """By default the noise is the mean squared training residual."""
    noise = 2 * mean_loss(task, params, *data[:2]) if noise is None else noise
    of_validation = 2 * mean_loss(task, params, *data[2:4])
    nats = getattr(state[0], "nats_per_parameter", None) if isinstance(state, tuple) else None
    return Found(
        nll(task, params, noise, *data[2:4]),
        nll(task, params, noise, *data[4:6]),
        seconds,
        float("nan") if nats is None else float(nats),
        accuracy(task, params, *data[4:6]),
        nll(task, params, of_validation, *data[4:6]),
        params,
        state,
    )


def validation(one: Found) -> float:
    return one.validation


def test(one: Found) -> float:
    return one.test


@functools.cache
def of_strength(task: Task, seed: int, optimizer: Callable, strength: float) -> Found:
    data = task.data(seed)
    return found(task, data, *timed(task, optimizer, strength, seed, data))


def no_decay(task: Task, seed: int) -> dict[str, Found]:
    return {"no decay": of_strength(task, seed, added, 0.0)}


def l2(
    task: Task, seed: int, grid: Sequence[float] = GRID, optimizer: Callable = added
) -> list[Found]:
    """With no decay, and with precisions δ of the grid: those of a noise of 0.1 in a regression."""
    unit = 0.1 if task.kind == "gaussian" else 1.0
    unit /= len(task.data(seed)[0]) * task.observations
    return [of_strength(task, seed, optimizer, delta * unit) for delta in (0.0, *grid)]


def adamw(task: Task, seed: int) -> list[Found]:
    none = of_strength(task, seed, added, 0.0)
    return [none, *(of_strength(task, seed, behind, strength) for strength in GRID_BEHIND)]


def best(name: str, tried: list[Found]) -> dict[str, Found]:
    """Of a grid, the one of the best NLL on validation data and that on test data."""
    print(name, [round(one.test, 4) for one in tried], flush=True)
    return {
        f"{name}, by validation data": min(tried, key=validation),
        f"{name}, by the test data": min(tried, key=test),
    }


def of_l2(task: Task, seed: int) -> dict[str, Found]:
    return best("L2", l2(task, seed))


def of_adamw(task: Task, seed: int) -> dict[str, Found]:
    return best("AdamW", adamw(task, seed))


def by_evidence(
    task: Task, seed: int, overcount: float = 10.0, optimizer: Callable = diagonal
) -> Found:
    data = task.data(seed)
    params, state, seconds = timed(task, optimizer, overcount, seed, data)
    noise = state[0].noise_variance if task.kind == "gaussian" else 1.0
    one = found(task, data, params, state, seconds, noise)
    deltas = sorted({float(delta) for delta in jax.tree.leaves(state[0].prior_precision)})
    gamma = float(sum(jax.tree.leaves(state[0].effective_parameters)))
    print("evidence", round(one.test, 4), np.round(deltas, 2), gamma, one.nats, flush=True)
    return one


def of_diagonal(task: Task, seed: int) -> dict[str, Found]:
    return {f"**evidence**, a = {a:g}": by_evidence(task, seed, a) for a in OVERCOUNTS}


def of_default(task: Task, seed: int) -> dict[str, Found]:
    return {"**evidence**, a = 10": by_evidence(task, seed)}


def of_kronecker(task: Task, seed: int) -> dict[str, Found]:
    one = by_evidence(task, seed, 1.0, kronecker)
    return {"**evidence**, Kronecker, a = 1": one}
