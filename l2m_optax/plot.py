"""Pictures of calibration and of a posterior: arrays in, Matplotlib axes out.

Each function draws on ``ax=``, or on a new figure, and returns the axes; nothing is shown or saved.
Matplotlib comes with ``pip install 'l2m-optax[plot]'`` and is imported on the first new figure.
"""

from __future__ import annotations

from statistics import NormalDist
from typing import TYPE_CHECKING

import jax
import numpy as np
from numpy.typing import NDArray

from l2m_optax import metrics
from l2m_optax._support.checks import complaint, is_concrete
from l2m_optax._support.trees import broadcast
from l2m_optax._support.types import ArrayLike
from l2m_optax.posterior._posterior import Posterior, data_precision
from l2m_optax.predict._summaries import Regression

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe & Ito, Color universal design (2008): told apart with any colour vision.
_BLUE, _ORANGE, _VERMILLION = "#0072B2", "#E69F00", "#D55E00"
_PALE_ORANGE, _PALE_SKY = "#F7DDA8", "#A5D6F3"  # for areas
_INK, _GREY = "#333333", "#BBBBBB"


def reliability_diagram(
    probabilities: ArrayLike, labels: ArrayLike, *, ax: Axes | None = None
) -> Axes:
    """Accuracy against confidence in 15 bins, from `metrics.reliability_curve`.

    Calibrated predictions lie on the diagonal, overconfident ones below it; bars behind show how
    many examples each bin holds.

    Args:
      probabilities: class probabilities, shape (N, K).
      labels: integer labels, shape (N,).
      ax: where to draw; a new figure by default.

    Returns:
      The axes.

    Raises:
      ImportError: if a figure is wanted and Matplotlib is missing.
      TypeError: if `labels` are no integers.
      ValueError: as for `metrics.negative_log_likelihood`.

    Example:
      >>> import jax.numpy as jnp
      >>> from l2m_optax import plot
      >>> ax = plot.reliability_diagram(jnp.array([[0.7, 0.3]]), jnp.array([0]))
      >>> ax.get_xlabel()
      'confidence'

    Reference:
      DeGroot & Fienberg (1983); Guo et al., On calibration of modern neural networks (2017).
    """
    _require_untraced(probabilities=probabilities, labels=labels)
    curve = jax.device_get(metrics.reliability_curve(probabilities, labels))
    error = metrics.expected_calibration_error(probabilities, labels)
    ax = _axes(ax)
    width = 1.0 / curve.size.size
    left = width * np.arange(curve.size.size)
    share = curve.size / curve.size.sum()
    ax.bar(left, share, width, align="edge", color=_GREY, alpha=0.5, label="share of examples")
    ax.plot([0, 1], [0, 1], color=_INK, linestyle="--", linewidth=1, label="calibrated")
    confidence, accuracy = curve.confidence[curve.size > 0], curve.accuracy[curve.size > 0]
    ax.vlines(confidence, confidence, accuracy, color=_VERMILLION, linewidth=2)
    label = f"accuracy (ECE {error:.3f})"
    ax.plot(curve.confidence, curve.accuracy, "o-", color=_BLUE, markersize=5, label=label)
    ax.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02), aspect="equal")
    _legend_above(ax)
    return ax


def risk_coverage(uncertainty: ArrayLike, losses: ArrayLike, *, ax: Axes | None = None) -> Axes:
    """Mean loss of the least uncertain predictions, from `metrics.risk_coverage_curve`.

    An uncertainty that is worth its name makes it rise; the dashed curve is the lowest there can
    be, of an uncertainty that ranks the losses themselves.

    Args:
      uncertainty: any number that is higher where less is known, shape (N,).
      losses: the loss of each prediction, shape (N,): 0 and 1 for right and wrong, say.
      ax: where to draw; a new figure by default.

    Returns:
      The axes.

    Raises:
      ImportError: if a figure is wanted and Matplotlib is missing.
      ValueError: as for `metrics.risk_coverage_curve`.

    Example:
      >>> import jax.numpy as jnp
      >>> from l2m_optax import plot
      >>> ax = plot.risk_coverage(jnp.array([0.1, 0.9]), jnp.array([0.0, 1.0]))
      >>> ax.get_ylabel()
      'risk (mean loss)'

    Reference:
      El-Yaniv & Wiener, On the foundations of noise-free selective classification (2010).
    """
    _require_untraced(uncertainty=uncertainty, losses=losses)
    curve = metrics.risk_coverage_curve(uncertainty, losses)
    best = metrics.risk_coverage_curve(losses, losses)
    area = metrics.aurc(uncertainty, losses)
    ax = _axes(ax)
    ax.plot(curve.coverage, curve.risk, color=_BLUE, label=f"by uncertainty (AURC {area:.3g})")
    ax.plot(
        best.coverage, best.risk, color=_INK, linestyle="--", linewidth=1, label="lowest possible"
    )
    ax.set(xlabel="coverage (share kept)", ylabel="risk (mean loss)", xlim=(0, 1))
    ax.legend(loc="upper left", frameon=False)
    return ax


def entropy_histogram(
    in_distribution: ArrayLike, out_of_distribution: ArrayLike, *, ax: Axes | None = None
) -> Axes:
    """Entropies of two kinds of inputs in 30 common bins, each as shares of its own examples.

    Args:
      in_distribution: predictive entropies, such as ``classification(...).total``, in nats, shape
        (N,).
      out_of_distribution: entropies of inputs that are unlike the training data, shape (M,).
      ax: where to draw; a new figure by default.

    Returns:
      The axes.

    Raises:
      ImportError: if a figure is wanted and Matplotlib is missing.
      ValueError: if either is no vector, empty, negative, or not finite.

    Example:
      >>> import jax.numpy as jnp
      >>> from l2m_optax import plot
      >>> ax = plot.entropy_histogram(jnp.array([0.1, 0.2]), jnp.array([1.0, 0.9]))
      >>> ax.get_xlabel()
      'predictive entropy (nats)'
    """
    inside = _entropies("in_distribution", in_distribution)
    outside = _entropies("out_of_distribution", out_of_distribution)
    both = np.concatenate([inside, outside])
    area = metrics.auroc(both, np.arange(len(both)) >= len(inside))
    ax = _axes(ax)
    edges = np.linspace(0.0, max(both.max(), np.finfo(np.float32).tiny), 31)
    for values, color, label in [
        (inside, _BLUE, "in distribution"),
        (outside, _ORANGE, f"out of distribution (AUROC {area:.3f})"),
    ]:
        share = np.histogram(values, edges)[0] / len(values)
        ax.stairs(share, edges, color=color, fill=True, alpha=0.35)
        ax.stairs(share, edges, color=color, linewidth=1.5, label=label)
    ax.set(xlabel="predictive entropy (nats)", ylabel="share of examples", ylim=(0, None))
    ax.set_xlim(0.0, edges[-1])
    ax.legend(frameon=False)
    return ax


def regression_band(x: ArrayLike, prediction: Regression, *, ax: Axes | None = None) -> Axes:
    r"""The mean and two bands of 95%: of the function, and of new observations of it.

    The inner band is $m \pm 1.96 \sqrt{\text{epistemic}}$, which more data would narrow; the outer
    one, $m \pm 1.96 \sqrt{\text{total}}$, holds the noise too.

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
    x = _column("x", x)
    fields = zip(Regression._fields, prediction, strict=True)
    columns = [_column(f"prediction.{name}", value, x.size) for name, value in fields]
    for name, column in zip(Regression._fields, columns, strict=True):
        sound, got = name == "mean" or column.min() >= 0, f"{column.min():.4g}"
        remedy = "pass what regression returned"
        _require(sound, f"prediction.{name}", "variances", got, remedy)
    order = np.argsort(x, kind="stable")
    x, (mean, total, _, epistemic) = x[order], (column[order] for column in columns)
    ax = _axes(ax)
    z = NormalDist().inv_cdf(0.975)
    inner, outer = z * np.sqrt(epistemic), z * np.sqrt(total)
    ax.plot(x, mean, color=_BLUE, label="mean", zorder=3)
    for reach, color, label in [
        (outer, _PALE_ORANGE, "95%, epistemic + aleatoric"),
        (inner, _PALE_SKY, "95%, epistemic"),
    ]:
        ax.fill_between(x, mean - reach, mean + reach, color=color, linewidth=0, label=label)
    ax.set(xlabel="x", ylabel="y", xlim=(x[0], x[-1]) if x[0] < x[-1] else None)
    _legend_above(ax)
    return ax


def posterior_layers(posterior: Posterior, *, ax: Axes | None = None) -> Axes:
    """What the data say about each leaf, next to what its prior says.

    A row a leaf: the median of the data's precision F, its middle 50% (thick) and 90% (thin), and
    the prior precision δ as a bar. Where F is below δ the posterior is mostly prior; the percentage
    on the right is the share of such entries. An F of 0, of an entry that never had a gradient, is
    left of any logarithmic axis. Points, which have no posterior, and empty leaves are left out.

    Args:
      posterior: a `Posterior`.
      ax: where to draw; a new figure, as high as there are leaves, by default.

    Returns:
      The axes.

    Raises:
      ImportError: if a figure is wanted and Matplotlib is missing.
      ValueError: if the posterior is traced.

    Example:
      >>> import jax.numpy as jnp
      >>> import l2m_optax as l2m
      >>> moment = l2m.SecondMoment(nu={"w": jnp.array([0.1, 1.0])})
      >>> params = {"w": jnp.zeros(2)}
      >>> posterior = l2m.laplace(params, moment, num_data=100, batch_size=10)
      >>> [label.get_text() for label in l2m.plot.posterior_layers(posterior).get_yticklabels()]
      ['w (2)']
    """
    data = data_precision(posterior)
    prior = jax.tree.leaves(broadcast(posterior.prior_precision, data))
    names, precisions, deltas = [], [], []
    for (path, f), delta in zip(jax.tree_util.tree_leaves_with_path(data), prior, strict=True):
        if f.size:
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            names.append(name)
            precisions.append(_numbers(f"F of {name}", f))
            deltas.append(float(_numbers(f"δ of {name}", delta)))
    _require(names, "posterior", "a leaf with a second moment", "points only", "release some")
    ax = _axes(ax, height=1.5 + 0.32 * len(names))
    ax.set_xscale("log")
    rows = np.arange(len(names))
    low, quarter, median, three, high = np.transpose(
        [np.quantile(f, [0.05, 0.25, 0.5, 0.75, 0.95]) for f in precisions]
    )
    ax.hlines(rows, low, high, color=_BLUE, linewidth=1, label="90% of F")
    ax.hlines(rows, quarter, three, color=_BLUE, linewidth=5, alpha=0.5, label="50% of F")
    ax.plot(median, rows, "o", color=_BLUE, label="median of F")
    ax.plot(
        deltas, rows, "|", color=_VERMILLION, markersize=14, markeredgewidth=2.5, label="prior δ"
    )
    for row, f, delta in zip(rows, precisions, deltas, strict=True):
        ax.annotate(
            f"{np.mean(f < delta):.0%}",
            (1.02, row),
            xycoords=ax.get_yaxis_transform(),
            va="center",
            color=_INK,
        )
    ax.set_yticks(rows, [f"{name} ({f.size})" for name, f in zip(names, precisions, strict=True)])
    ax.set(xlabel="precision (1 / parameter²)", ylim=(len(names) - 0.5, -0.5))
    ax.annotate("F < δ", (1.02, 1.02), xycoords="axes fraction", color=_INK)
    _legend_above(ax)
    return ax


def _axes(ax: Axes | None, height: float = 3.6) -> Axes:
    """The axes given, or those of a new figure `height` inches high."""
    if ax is not None:
        return ax
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        remedy = "pip install 'l2m-optax[plot]'"
        message = complaint("matplotlib", "an installed package", "none", remedy)
        raise ImportError(message) from error
    return plt.subplots(figsize=(5.0, height), layout="constrained")[1]


def _legend_above(ax: Axes) -> None:
    """For pictures that leave no corner empty."""
    ax.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2, fontsize="small", frameon=False)


def _entropies(name: str, values: ArrayLike) -> NDArray[np.float64]:
    """A vector of entropies; those that rounding took below 0 are 0."""
    numbers = _numbers(name, values)
    filled = numbers.ndim == 1 and numbers.size
    _require(filled, name, "shape (N,), not empty", str(numbers.shape), "pass one an input")
    remedy = "pass entropies, not log-probabilities"
    _require(numbers.min() >= -1e-5, name, "nothing below 0", f"{numbers.min():.4g}", remedy)
    return np.maximum(numbers, 0.0)


def _column(name: str, values: ArrayLike, size: int | None = None) -> NDArray[np.float64]:
    """A vector out of shape (N,) or (N, 1)."""
    numbers = _numbers(name, values)
    expected = (
        "shape (N,) or (N, 1), not empty" if size is None else f"shape ({size},) or ({size}, 1)"
    )
    narrow = numbers.ndim == 1 or numbers.shape[1:] == (1,)
    sized = numbers.size if size is None else numbers.size == size
    remedy = "pass one input and one output an example"
    _require(narrow and sized, name, expected, str(numbers.shape), remedy)
    return numbers.reshape(-1)


def _numbers(name: str, values: ArrayLike) -> NDArray[np.float64]:
    _require_untraced(**{name: values})
    numbers = np.asarray(values, np.float64)
    bad = int(np.sum(~np.isfinite(numbers)))
    got = f"{bad} NaN or infinite of {numbers.size}"
    _require(bad == 0, name, "finite numbers", got, "find where the prediction diverged")
    return numbers


def _require_untraced(**values: ArrayLike) -> None:
    for name, value in values.items():
        _require(is_concrete(value), name, "values", "a traced array", "draw outside of jax.jit")


def _require(condition: object, where: str, expected: str, got: str, remedy: str) -> None:
    if not condition:
        raise ValueError(complaint(where, expected, got, remedy))
