"""The scale: what turns a mean squared batch gradient into the precision of all the data.

Every factor of it stands here, and nowhere else.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from l2m_optax._support.checks import (
    check_count,
    check_positive,
    complaint,
    is_concrete,
    is_positive,
    or_nan,
)
from l2m_optax._support.types import ArrayLike


def data_scale(
    num_data: int,
    batch_size: int | Sequence[int],
    micro_steps: ArrayLike,
    loss_scale: ArrayLike,
    with_replacement: bool,
) -> jax.Array:
    r"""The scale $\frac{N B k}{c^2} \cdot \frac{N-1}{N - B k}$, float32 of shape ().

    Products are made of Python's numbers: those of NumPy and JAX overflow in silence (1,281,167
    images times 2,048 is more than 32 bits hold). An impossible number that is traced makes the
    scale NaN.

    Batches of sizes $B_1, \dots, B_m$ are seen equally often. The running mean averages the
    variances of their mean gradients, which are proportional to $1/B_j$. So B is the harmonic mean
    of the sizes.

    Args:
      num_data: N, number of examples.
      batch_size: B, examples behind one gradient, or the sizes of an epoch's batches.
      micro_steps: k, gradients that are averaged before they are squared.
      loss_scale: c.
      with_replacement: whether the finite population factor, $(N-1)/(N - B k)$, is left out.
    """
    check_count("num_data", num_data, 2)
    check_positive("loss_scale", loss_scale, "pass 1 for a mean negative log-likelihood")
    data, sizes, steps = int(num_data), _sizes(batch_size), _micro_steps(micro_steps)
    batch = Fraction(len(sizes)) / sum(Fraction(n, b) for b, n in Counter(sizes).items())
    scale: Any = float(data) * float(batch) * steps
    if not with_replacement:
        _check_epoch(data, sizes)
        together = steps if len(sizes) == 1 else _together(steps, len(sizes))
        scale = scale * (float(data - 1) / _left(data, batch, together))
    factor: Any = or_nan(loss_scale, is_positive)
    factor = float(factor) if is_concrete(factor) else factor
    return _sound(scale / factor / factor)  # the square of a small factor may be 0


def _sizes(batch_size: int | Sequence[int]) -> list[int]:
    """The sizes of an epoch's batches; one size if there is one number for all."""
    several = isinstance(batch_size, list | tuple) or np.ndim(batch_size) == 1
    sizes: Sequence[Any] = list(batch_size) if several else [batch_size]  # type: ignore[arg-type]
    if not sizes:
        remedy = "pass one number, or the sizes of an epoch's batches"
        raise ValueError(complaint("batch_size", "the size of at least one batch", "none", remedy))
    for size in sizes:
        check_count("batch_size", size)
    return [int(size) for size in sizes]


def _check_epoch(data: int, sizes: Sequence[int]) -> None:
    """Refuse a batch of all examples, and an epoch of more examples than there are."""
    _left(data, Fraction(max(sizes)), 1)
    if len(sizes) > 1 and sum(sizes) > data:
        expected = f"an epoch of at most num_data = {data} examples"
        remedy = "pass the sizes of one epoch's batches, counted as num_data counts, or one number"
        raise ValueError(complaint("batch_size", expected, str(sum(sizes)), remedy))


def _together(steps: Any, batches: int) -> Any:
    r"""The number that replaces k in $N - B k$, because an update may span two epochs.

    Only batches of one epoch have no example in common. If k divides the number m of an epoch's
    batches, each update lies in one epoch, and the number is k. Otherwise some updates take a
    batches from one epoch and k - a from the next. Updates begin equally often at each multiple of
    $g = \gcd(k, m)$, so that the mean of $(a^2 + (k-a)^2)/k$ is $k - (k^2 - g^2)/(3m)$.
    """
    if isinstance(steps, int):
        if steps > batches:
            expected = f"at most the {batches} batches of an epoch"
            remedy = "pass one number as batch_size, the mean size"
            raise ValueError(complaint("micro_steps", expected, str(steps), remedy))
        return steps - Fraction(steps**2 - math.gcd(steps, batches) ** 2, 3 * batches)
    steps = or_nan(steps, lambda k: k <= batches)
    whole = jnp.nan_to_num(steps).astype(jnp.int32)
    common = jnp.gcd(whole, jnp.int32(batches)).astype(jnp.float32)
    return steps - (steps - common) * (steps + common) / (3.0 * batches)


def _micro_steps(micro_steps: ArrayLike) -> Any:
    """The number of micro-steps, an int or traced; an ensemble has the same for each member."""
    if not is_concrete(micro_steps):
        steps = jnp.asarray(micro_steps, jnp.float32)
        return or_nan(steps, lambda k: is_positive(k) & (k == jnp.floor(k)))
    held = np.unique(np.asarray(micro_steps, np.float64))
    if held.size != 1 or not (held[0] >= 1 and held[0].is_integer()):
        got = ", ".join(f"{value:g}" for value in held[:4])
        remedy = "pass the number of gradients that are averaged into one, 1 by default"
        raise ValueError(complaint("micro_steps", "one whole number of at least 1", got, remedy))
    return int(held[0])


def _left(data: int, batch: Fraction, steps: Any) -> Any:
    """N - B·k, which rounding does not make 0 or negative; NaN if k is traced and too large."""
    if not isinstance(steps, int | Fraction):
        # With N = B·q + r it is B·(q - k) + r: only the small whole numbers q and k cancel.
        whole, rest = divmod(data, batch)
        return or_nan((whole - steps) * float(batch) + float(rest), is_positive)
    if batch * steps >= data:
        expected, got = f"fewer than num_data = {data}", f"{float(batch * steps):.17g}"
        remedy = (
            "a full batch has no sampling noise, so its squared gradients hold no curvature: "
            "train the last epochs on smaller batches, or track_second_moment on them"
        )
        raise ValueError(complaint("batch_size", expected, got, remedy))
    return float(data - batch * steps)


def _sound(scale: Any) -> jax.Array:
    """The scale in float32; it is refused if float32 cannot hold it."""
    if is_concrete(scale):
        limits = np.finfo(np.float32)
        if not float(limits.tiny) <= scale <= float(limits.max):
            expected = "a data scale that float32 can hold"
            remedy = "the posterior's precision goes as 1/loss_scale²: check it, and num_data"
            raise ValueError(complaint("loss_scale", expected, f"{scale:.3g}", remedy))
    scale = jnp.asarray(scale, jnp.float32)
    return jnp.asarray(or_nan(scale, is_positive))
