"""What `identify` reports: plain hashable data, one `LeafMoment` for every leaf that has one."""

from __future__ import annotations

from typing import Any, NamedTuple


class LeafMoment(NamedTuple):
    r"""The second moment of one leaf of the parameters.

    Attributes:
      path: where it sits in the state, as in ``"[0].nu['w']"``.
      kind: "mean", an exponential moving average that started from `initial`; "unbiased", one
        whose weights always sum to 1; "sum"; "centered", a mean of squared distances from the
        running mean; "lagged", a mean of $(g_t + \beta (g_t - g_{t-1}))^2$; "factored".
      decay: of the mean; `None` where it changes over the updates.
      initial: the value before the first update.
      rescaling: what precedes the moment multiplies gradients by this.
      variance_factor: what the mean tends to, over the variance of the gradient.
      micro_steps: calls whose gradients are averaged into one update.
      count: path of the number of updates, or `None` if the state does not count; a transformation
        that is mapped has a stack of them.
      first_count: its value before the first update.
      injected: path of the hyperparameter that holds the decay (`optax.inject_hyperparams`).
      mean: path of the running mean of the gradients, or `None`.
      mean_decay: its decay.
      whole: whether the array is that of all parameters, raveled and joined (`optax.flatten`).
      first: the count at the first update of the moment: 2 if the first gradient does not enter it.
      every: by how much the count grows from one update of the moment to the next.
      matrices: the paths of matrices, for each axis of the array one or `None`; empty where there
        are none. Where there are fewer than axes, the leading axes of the array number a stack, and
        each array of matrices is one too. They are the orthogonal matrices of the basis in which
        the squares are taken.
      products: whether `matrices` are not a basis but means of the products of the gradient with
        itself along each axis, from whose eigenvectors and eigenvalues the moment is made.
    """

    path: str
    kind: str
    decay: float | None
    initial: float = 0.0
    rescaling: float = 1.0
    variance_factor: float = 1.0
    micro_steps: int = 1
    count: str | None = None  # type: ignore[assignment]  # hides tuple.count, as in optax
    first_count: int = 0
    injected: str | None = None
    mean: str | None = None
    mean_decay: float | None = None
    whole: bool = False
    first: int = 1
    every: int = 1
    matrices: tuple[str | None, ...] = ()
    products: bool = False

    @property
    def needs_debiasing(self) -> bool:
        """Whether the weights of the mean sum to less than 1."""
        return self.kind not in ("unbiased", "factored")


Moments = dict[str, LeafMoment | None]
"""For the path of every parameter its moment."""


class Identification(NamedTuple):
    """What `identify` found: plain hashable data.

    Attributes:
      leaves: for every leaf of the parameters its `LeafMoment`, or `None` where the optimizer keeps
        no second moment and the leaf is fixed.
      shapes: the shape of every leaf.
      treedef: the structure of the parameters.
    """

    leaves: tuple[LeafMoment | None, ...]
    shapes: tuple[tuple[int, ...], ...]
    treedef: Any

    @property
    def moments(self) -> tuple[LeafMoment, ...]:
        """The moments of the leaves that have one."""
        return tuple(moment for moment in self.leaves if moment is not None)
