"""What every prediction needs of a network: one array of real outputs, of independent examples."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from l2m_optax._support.checks import check_hashable, complaint, is_concrete
from l2m_optax._support.types import ApplyFn, Array, PyTree
from l2m_optax.posterior._posterior import Posterior, check_posterior

_FEW = 4
"""How many examples are looked at."""
_ROUNDING = 0.02
"""Relative changes up to this are taken for rounding."""
_CALLED = (
    "raised in apply_fn(params, inputs): it is given the params that the optimizer trained and a "
    "batch of inputs. If the model takes them in another form, wrap it, with flax for example: "
    "def apply_fn(params, x): return model.apply({'params': params}, x)"
)


def check_call(apply_fn: Any, posterior: Any) -> None:
    """Refuse arguments that are no function and no `Posterior`: most often they are swapped.

    Raises:
      TypeError: if they are not what they should be, or `apply_fn` is not hashable.
    """
    remedy = "pass (apply_fn, posterior, inputs, ...) in this order, after a key if there is one"
    if not callable(apply_fn):
        got = f"a {type(apply_fn).__name__}"
        raise TypeError(complaint("apply_fn", "a function", got, remedy))
    check_posterior(posterior, remedy)
    check_hashable("apply_fn", apply_fn)


def shape_of_outputs(apply_fn: ApplyFn, params: PyTree, inputs: PyTree) -> jax.ShapeDtypeStruct:
    """Shape and dtype of the outputs; an error in `apply_fn` gets a note of how it is called.

    Raises:
      TypeError: if they are not one array of real numbers.
    """
    try:
        outputs: Any = jax.eval_shape(apply_fn, params, inputs)
    except Exception as error:
        error.add_note(_CALLED)
        raise
    return check_outputs(outputs)  # type: ignore[return-value]  # the shapes it was given


def check_outputs(outputs: Any) -> Array:
    """Refuse outputs of `apply_fn` that are not one array of real numbers.

    Args:
      outputs: what `apply_fn` returned: an array, traced or not, or a `jax.ShapeDtypeStruct`.

    Returns:
      The same.

    Raises:
      TypeError: if they are a dict, a tuple, integers or anything else.
    """
    dtype = getattr(outputs, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        remedy = "return the outputs alone: lambda params, x: model.apply(params, x)"
        got = _described(outputs)
        raise TypeError(complaint("apply_fn", "one array of real outputs", got, remedy))
    return outputs


def _described(outputs: Any) -> str:
    if hasattr(outputs, "dtype"):
        return f"{outputs.dtype}{list(outputs.shape)}"
    leaves = jax.tree.leaves(outputs)
    first = ", ".join(_described(x) if hasattr(x, "dtype") else repr(x)[:20] for x in leaves[:3])
    more = ", ..." if len(leaves) > 3 else ""
    return f"a {type(outputs).__name__} of {first}{more}"


def coupling(apply_fn: ApplyFn, posterior: Posterior, inputs: PyTree) -> Array:
    """How far the outputs of a few inputs together are from those of each alone, relatively.

    What is computed one example at a time needs them to be the same.
    """
    few = jax.tree.map(lambda x: x[:_FEW], inputs)
    alone = jax.vmap(lambda x: apply_fn(posterior.mean, jax.tree.map(lambda y: y[None], x))[0])(few)
    together = apply_fn(posterior.mean, few)
    return relative_change(together, alone, together)


@functools.partial(jax.jit, static_argnums=0)
def influence(apply_fn: ApplyFn, params: PyTree, inputs: PyTree) -> Array:
    """How far the first input's output moves when the other inputs of a small batch are replaced.

    What is computed a batch at a time needs no more: a network may well treat the places of a batch
    differently, as dropout with a fixed key does. Where there is nothing to compare, the answer is
    0: a single input, inputs or outputs without a common axis of examples, and networks
    that take no other number of examples than they got.
    """
    sizes = {jnp.shape(x)[:1] for x in jax.tree.leaves(inputs)}
    if len(sizes) != 1 or sizes <= {(), (0,), (1,)}:
        return jnp.zeros(())
    pair = _with_others_replaced(inputs)
    try:
        both = jax.vmap(lambda x: check_outputs(apply_fn(params, x)))(pair)
    except Exception:  # of a network that takes one number of examples only, or of its outputs
        return jnp.zeros(())
    if both.shape[1:2] != jax.tree.leaves(pair)[0].shape[1:2]:
        return jnp.zeros(())
    return relative_change(both[0, 0], both[1, 0], both[0])


def _with_others_replaced(inputs: PyTree) -> PyTree:
    """Two batches that share their first example only; in the second it stands everywhere."""
    few = jax.tree.map(lambda x: x[:_FEW], inputs)
    alike = jax.tree.map(lambda x: jnp.broadcast_to(x[:1], x.shape), few)
    return jax.tree.map(lambda *x: jnp.stack(x), few, alike)


def relative_change(before: Array, after: Array, scale: Array) -> Array:
    """The largest change of an output, relative to the largest output."""
    # A spread of 0, of one example or of equal ones, may have been divided by.
    after = jnp.where(jnp.isnan(after) & ~jnp.isnan(before), jnp.inf, after)
    return jnp.max(jnp.abs(before - after), initial=0) / jnp.max(jnp.abs(scale), initial=0)


def if_independent(result: Array, coupled: Array) -> Array:
    """NaN in the place of a result if examples depend on each other, which `jit` cannot refuse."""
    return jnp.where(coupled > _ROUNDING, jnp.nan, result)


def check_independent(coupled: Array) -> None:
    """Refuse networks in which one example's outputs depend on others; traced numbers pass.

    Raises:
      ValueError: if `coupled`, a `coupling` or an `influence`, is more than rounding.
    """
    if is_concrete(coupled) and float(coupled) > _ROUNDING:
        got = f"outputs that change by {float(coupled):.0%} with the other examples of the batch"
        remedy = "predict as after training: running statistics, no dropout (train=False)"
        expected = "outputs of an example that depend on that example only"
        raise ValueError(complaint("apply_fn", expected, got, remedy))


def check_rows(predicted: Array) -> None:
    """Refuse predictions that are not finite; traced ones pass.

    Raises:
      FloatingPointError: naming the first input that has one.
    """
    if not is_concrete(predicted):
        return
    bad = ~np.isfinite(np.asarray(predicted, np.float32)).reshape(len(predicted), -1).all(axis=1)
    if bad.any():
        got = f"NaN or infinity for input {int(np.argmax(bad))} and {int(bad.sum()) - 1} more"
        remedy = "look for NaN in this input and in the params"
        raise FloatingPointError(complaint("apply_fn", "finite outputs", got, remedy))
