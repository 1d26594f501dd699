"""Epochs of shuffled batches: the loop that every benchmark trains by, plain and with trackers."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax


def epochs(
    step: Callable[[Any, tuple[jax.Array, jax.Array]], tuple[Any, Any]],
    start: Any,
    keys: jax.Array,
    number: int,
    batch_size: int,
) -> tuple[Any, Any]:
    """The carry at the end, and its first part, the parameters, after every epoch.

    Args:
      step: ``step(carry, (rows, key))``, as in `jax.lax.scan`.
      start: the first carry.
      keys: one for each epoch.
      number: of all examples.
      batch_size: what is left over of an epoch is left out of it.
    """
    steps = number // batch_size

    def epoch(carry, key):
        rows = jax.random.permutation(key, number)[: steps * batch_size]
        step_keys = jax.random.split(jax.random.fold_in(key, 1), steps)
        carry, _ = jax.lax.scan(step, carry, (rows.reshape(steps, batch_size), step_keys))
        return carry, carry[0]

    return jax.lax.scan(epoch, start, keys)


def run(
    loss: Callable[..., jax.Array],
    tx: optax.GradientTransformation,
    params: Any,
    keys: jax.Array,
    x: jax.Array,
    y: jax.Array,
    batch_size: int,
    *,
    dropout: bool = False,
) -> tuple[tuple[Any, optax.OptState], Any]:
    """The parameters and the state at the end, and the parameters after every epoch.

    Args:
      loss: ``loss(params, x, y)`` of a batch; with dropout ``loss(params, x, y, key)``.
      tx: the optimizer.
      params: where training starts.
      keys: one for each epoch.
      x: all inputs.
      y: all targets.
      batch_size: what is left over of an epoch is left out of it.
      dropout: whether the loss takes a key.
    """
    takes_loss = optax.with_extra_args_support(tx)

    def step(carry, args):
        params, state = carry
        rows, key = args
        of_loss = jax.value_and_grad(loss)
        value, grads = of_loss(params, x[rows], y[rows], *([key] if dropout else []))
        updates, state = takes_loss.update(grads, state, params, value=value)
        return (optax.apply_updates(params, updates), state), None

    return epochs(step, (params, tx.init(params)), keys, len(x), batch_size)


def run_tracked(
    loss: Callable[..., jax.Array],
    tx: optax.GradientTransformation,
    trackers: Mapping[str, optax.GradientTransformationExtraArgs],
    drawn: Callable[..., Any],
    params: Any,
    keys: jax.Array,
    x: jax.Array,
    y: jax.Array,
    batch_size: int,
) -> tuple[Any, optax.OptState, dict[str, Any]]:
    """As `run`, seen by trackers: the parameters, the state, and the state of each tracker.

    Args:
      loss: as in `run`.
      tx: as in `run`.
      trackers: by name. Those with "true" in it see gradients on targets of the model.
      drawn: ``drawn(key, params, x)``: such gradients, for the batch ``x``.
      params: as in `run`.
      keys: as in `run`.
      x: as in `run`.
      y: as in `run`.
      batch_size: as in `run`.
    """

    def step(carry, args):
        (params, state, tracked), (rows, key) = carry, args
        grads = jax.grad(loss)(params, x[rows], y[rows])
        of_model = functools.partial(drawn, key, params, x[rows])
        tracked = {
            name: tracker.update(
                grads, tracked[name], moment_updates=of_model if "true" in name else None
            )[1]
            for name, tracker in trackers.items()
        }
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state, tracked), None

    start = params, tx.init(params), {name: t.init(params) for name, t in trackers.items()}
    return epochs(step, start, keys, len(x), batch_size)[0]
