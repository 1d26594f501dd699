"""A prediction of one input: its mean, and bands of what is not known."""

from __future__ import annotations

from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from l2m_optax._support.types import ArrayLike
from l2m_optax.metrics._arguments import require
from l2m_optax.plot._arguments import column
from l2m_optax.plot._figure import BLUE, PALE_ORANGE, PALE_SKY, axes, legend_above
from l2m_optax.predict._summaries import Regression

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def regression_band(x: ArrayLike, prediction: Regression, *, ax: Axes | None = None) -> Axes:
    r"""The mean and two bands of 95%: one for the function, one for new observations of it.

    The inner band is $m \pm 1.96 \sqrt{\text{epistemic}}$; more data would make it narrower. The
    outer band is $m \pm 1.96 \sqrt{\text{total}}$ and includes the noise.

    Args:
      x: the one input, in any order, shape (N,) or (N, 1).
      prediction: what `regression` returned, fields of shape (N,) or (N, 1).
      ax: where to draw; a new figure by default.

    Returns:
      The axes, to which the data can be added: ``ax.plot(x_train, y_train, "k.")``.

    Raises:
      ImportError: if a figure is wanted and Matplotlib is missing.
      ValueError: if there is more than one input or output, lengths differ, a variance is negative,
        or something is not finite.

    Example:
      >>> import jax.numpy as jnp
      >>> import l2m_optax as l2m
      >>> draws = jnp.array([[0.0, 1.0], [0.2, 1.4]])
      >>> ax = l2m.plot.regression_band(jnp.array([0.0, 1.0]), l2m.regression(draws, 0.1))
      >>> [text.get_text() for text in ax.get_legend().get_texts()]
      ['mean', '95%, epistemic + aleatoric', '95%, epistemic']
    """
    x = column("x", x)
    order = np.argsort(x, kind="stable")
    x = x[order]
    mean, total, _, epistemic = (field[order] for field in _fields(prediction, x.size))
    ax = axes(ax)
    z = NormalDist().inv_cdf(0.975)
    inner, outer = z * np.sqrt(epistemic), z * np.sqrt(total)
    ax.plot(x, mean, color=BLUE, label="mean", zorder=3)
    for reach, color, label in [
        (outer, PALE_ORANGE, "95%, epistemic + aleatoric"),
        (inner, PALE_SKY, "95%, epistemic"),
    ]:
        ax.fill_between(x, mean - reach, mean + reach, color=color, linewidth=0, label=label)
    ax.set(xlabel="x", ylabel="y", xlim=(x[0], x[-1]) if x[0] < x[-1] else None)
    legend_above(ax)
    return ax


def _fields(prediction: Regression, size: int) -> list[NDArray[np.float64]]:
    """The fields of a prediction as vectors; variances may not be negative."""
    named = dict(zip(Regression._fields, prediction, strict=True))
    vectors = {name: column(f"prediction.{name}", value, size) for name, value in named.items()}
    for name, vector in vectors.items():
        sound, got = name == "mean" or vector.min() >= 0, f"{vector.min():.4g}"
        remedy = "pass what regression returned"
        require(sound, f"prediction.{name}", "variances", got, remedy)
    return list(vectors.values())
