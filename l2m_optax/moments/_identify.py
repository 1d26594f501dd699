"""`identify`: where an optimizer keeps its second moment, and what it is, found by running it.

The contract: what is reported reproduces, value by value, what the state held after gradients that
were chosen to tell a mean of squares from all that looks like one. Nothing goes by a class's name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from l2m_optax._support.checks import complaint, path_name
from l2m_optax._support.types import PyTree
from l2m_optax.moments import _recurrence
from l2m_optax.moments._clipping import clipping_effect
from l2m_optax.moments._factored import factored_shapes, rows_and_columns
from l2m_optax.moments._probe import (
    JUMPS,
    SCALES,
    Probe,
    enable_x64,
    extended,
    gradient_tree,
    record,
    stand_ins,
)

_LAST_KEY = re.compile(r"(\.\w+|\[[^\[\]]*\])$")
_TRACK = "chain l2m_optax.track_second_moment(0.999) in front"


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
      count: path of the number of updates, or `None` if the state does not count.
      first_count: its value before the first update.
      injected: path of the hyperparameter that holds the decay (`optax.inject_hyperparams`).
      mean: path of the running mean of the gradients, or `None`.
      mean_decay: its decay.
      whole: whether the array is that of all parameters, raveled and joined (`optax.flatten`).
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

    @property
    def needs_debiasing(self) -> bool:
        """Whether the weights of the mean sum to less than 1."""
        return self.kind not in ("unbiased", "factored")


class Identification(NamedTuple):
    """What `identify` found: plain hashable data.

    Attributes:
      leaves: for every leaf of the parameters its `LeafMoment`, or `None` where the optimizer keeps
        no second moment and the posterior is a point.
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


def identify(tx: Any, params: PyTree) -> Identification:
    r"""Run a transformation on a few known gradients and say what its second moment is.

    Several runs of random gradients, a millionfold smaller and larger among them, are made on
    stand-ins with the structure of `params` and at most two entries an axis, in float64. An array
    $n$ of the state that lies at a parameter's path is its second moment if there are $d$, $c$ with

    $$n_t = d\, n_{t-1} + c\, g_t^2, \qquad c = r^2 (1 - d),$$

    for every entry, update and run. Then $\mathbb{E}[n_t] = r^2 (1 - d^t)\, \mathbb{E}[g^2]$. Sums,
    means whose weights sum to 1 from the first update on, means about the running mean, and means
    of extrapolated gradients are found the same way. A running maximum, a momentum or a moment of
    clipped, normalised or decayed gradients fits none of them.

    Args:
      tx: any optax transformation, or `optax.MultiSteps`.
      params: the parameters, or a tree of `jax.ShapeDtypeStruct` of them; their values do not
        matter, and nothing of their size is computed unless the shape of the state needs it.

    Returns:
      The `Identification`.

    Raises:
      TypeError: if `tx` keeps no second moment, or one that is none of the above; the message says
        which, as far as that can be found out, and what to do.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> import l2m_optax as l2m
      >>> found = l2m.identify(optax.adam(1e-3, b2=0.95), {"w": jnp.ones(3)})
      >>> moment = found.moments[0]
      >>> moment.path, moment.kind, round(moment.decay, 6), moment.count
      ("[0].nu['w']", 'mean', 0.95, '[0].count')
    """
    # JAX keeps per thread what it traces: in a new one the probe runs on numbers, inside jit too.
    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(_identify, tx, params).result()


def _identify(tx: Any, params: PyTree) -> Identification:
    with enable_x64(True):
        probe = _record(tx, params, size=1.0)
        found = _assign(probe)
        if isinstance(found, str):
            _refuse(tx, params, probe, found)
        leaves, treedef = jax.tree.flatten(gradient_tree(params))
        shapes = tuple(jnp.shape(leaf) for leaf in leaves)
        return Identification(_factored(tx, params, found, shapes), shapes, treedef)


def _record(tx: Any, params: PyTree, size: float) -> Probe:
    """The probe on stand-ins, or on real shapes where they make the state another one."""
    try:
        suited = _suited(tx, params)
        try:
            return record(tx, suited, size=size, value=jnp.ones(()))
        except TypeError:  # some, as optax.contrib.sam, take no extra argument
            return record(tx, suited, size=size)
    except Exception as error:
        remedy = f"{_TRACK}, or pass the moment yourself: l2m_optax.SecondMoment"
        got = f"{type(error).__name__}: {str(error)[:200]}"
        expected = "an optimizer that runs on gradients"
        raise TypeError(complaint("tx", expected, got, remedy)) from error


def _suited(tx: Any, params: PyTree) -> PyTree:
    small = stand_ins(params)
    # Masks that go by size make the state of small parameters another one.
    if _shapes_in_state(tx, small).keys() == _shapes_in_state(tx, params).keys():
        return small
    return jax.tree.map(lambda p: np.ones(jnp.shape(p)), params)


def _shapes_in_state(tx: Any, params: PyTree) -> dict[str, tuple[int, ...]]:
    """What a state holds, as the shape of the array at each path."""
    abstract = jax.tree.map(lambda p: _abstract(p), params)
    state = jax.eval_shape(extended(tx).init, abstract)
    return {path_name(p, ""): x.shape for p, x in jax.tree_util.tree_leaves_with_path(state)}


def _abstract(leaf: Any) -> Any:
    struct: Any = jax.ShapeDtypeStruct
    return struct(jnp.shape(leaf), jnp.float64)


def _factored(
    tx: Any, params: PyTree, leaves: tuple[LeafMoment | None, ...], shapes: tuple[Any, ...]
) -> tuple[LeafMoment | None, ...]:
    """The moments, with "factored" where the array is the parameter's on a stand-in only."""
    held = _shapes_in_state(tx, params)
    return tuple(_as_held(*pair, held) for pair in zip(leaves, shapes, strict=True))


def _as_held(
    moment: LeafMoment | None, shape: tuple[int, ...], held: dict[str, tuple[int, ...]]
) -> LeafMoment | None:
    if moment is None or moment.whole or held[moment.path] == shape:
        return moment
    row, column = rows_and_columns(moment.path)
    if len(shape) >= 2 and (held.get(row), held.get(column)) == factored_shapes(shape):
        return moment._replace(kind="factored")
    expected = f"an array of shape {shape}"
    raise TypeError(complaint(f"opt_state{moment.path}", expected, str(held[moment.path]), _TRACK))


def _assign(probe: Probe) -> tuple[LeafMoment | None, ...] | str:
    """Every parameter's moment, or why there is none."""
    found = {path: list(_moments(probe, path)) for path in probe.gradients}
    whole = None if any(found.values()) else _whole(probe)
    if whole is not None:
        return (whole,) * len(found)
    roots = {m.path[: len(m.path) - len(p)] for p, moments in found.items() for m in moments}
    if not roots:
        return "no array that is a mean of squared gradients"
    leaves = []
    for path, moments in found.items():
        if len(moments) > 1:
            return f"several for params{path}: " + ", ".join(m.path for m in moments)
        held = [root + path for root in roots if root + path in probe.states]
        if not moments and not all(_recurrence.is_idle(probe.states[h]) for h in held):
            return f"one for some leaves, but {held[0]} is no second moment of params{path}"
        leaves.append(moments[0] if moments else None)
    return tuple(leaves)


def _moments(probe: Probe, path: str) -> Iterator[LeafMoment]:
    """The arrays of the state that are a second moment of the parameter at `path`."""
    gradients = probe.gradients[path]
    for where, n in probe.states.items():
        if where.endswith(path) and n.shape[1:] == gradients.shape[2:]:
            moment = _moment(probe, where, path, gradients)
            if moment is not None:
                yield moment


def _whole(probe: Probe) -> LeafMoment | None:
    """The moment of all parameters raveled and joined, if the state holds one."""
    parts = [g.reshape(*g.shape[:3], -1) for g in probe.gradients.values()]
    gradients = np.concatenate(parts, axis=-1)
    for where, n in probe.states.items():
        if n.shape[1:] == gradients.shape[2:]:
            moment = _moment(probe, where, "", gradients)
            if moment is not None:
                return moment._replace(whole=True)
    return None


def _moment(probe: Probe, where: str, path: str, gradients: np.ndarray) -> LeafMoment | None:
    """What the array at `where` is to the gradients of one parameter."""
    n = probe.states[where]
    if not np.issubdtype(n.dtype, np.floating) or where in probe.moving:
        return None
    allowed = _recurrence.tolerance(_rounds(probe))
    for g, micro_steps in _views(gradients):
        beside = _Beside(probe, where, path, g, allowed)
        moment = (
            _square(where, n, g, allowed)
            or _centered(where, n, g, beside, allowed)
            or _lagged(where, n, g, allowed)
        )
        if moment is not None:
            return beside.complete(moment._replace(micro_steps=micro_steps))
    return None


def _views(gradients: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
    """What an update may see of its micro-steps: their mean, or the last one."""
    yield gradients.mean(axis=1), gradients.shape[1]
    if gradients.shape[1] > 1:
        yield gradients[:, -1], 1


def _rounds(probe: Probe) -> bool:
    """Whether some array is held in less than float64 (`optax.MultiSteps` gathers in float32)."""
    floats = [n for n in probe.states.values() if jnp.issubdtype(n.dtype, jnp.floating)]
    return any(n.dtype != np.float64 and n.ndim > 2 for n in floats)


def _square(where: str, n: np.ndarray, g: np.ndarray, allowed: float) -> LeafMoment | None:
    found = _recurrence.second_order(n, np.square(g), allowed)
    if found is None:
        return None
    return LeafMoment(where, found.kind, found.decay, found.initial, found.rescaling)


def _centered(
    where: str, n: np.ndarray, g: np.ndarray, beside: _Beside, allowed: float
) -> LeafMoment | None:
    r"""A mean of squared distances from the running mean $m_t$ of independent gradients.

    With decay $b$, $\mathrm{Var}(m) = \sigma^2 (1-b)/(1+b)$. The distance from the mean before the
    update, $g_t - m_{t-1}$, has the variance $\sigma^2 \cdot 2/(1+b)$; the one from the mean after
    it, $g_t - m_t = b\,(g_t - m_{t-1})$, has $\sigma^2 \cdot 2b^2/(1+b)$.
    """
    if beside.mean is None or beside.mean_decay is None:
        return None
    m, b = beside.probe.states[beside.mean], beside.mean_decay
    # A constant under the root, adabelief's eps, is lost in all but the tiniest gradients.
    large = [i for i in range(n.shape[1]) if np.abs(g[:, i]).max() > 1e-3]
    if not large:
        return None
    for distance, factor in ((g - m[1:], 2 * b * b / (1 + b)), (g - m[:-1], 2 / (1 + b))):
        found = _recurrence.second_order(n[:, large], np.square(distance)[:, large], 1e3 * allowed)
        if found is not None and found.kind == "mean" and found.rescaling == 1.0:
            return LeafMoment(where, "centered", found.decay, variance_factor=factor)
    return None


def _lagged(where: str, n: np.ndarray, g: np.ndarray, allowed: float) -> LeafMoment | None:
    r"""A mean of $(g_t + \beta (g_t - g_{t-1}))^2$, as adan's.

    For independent gradients of mean 0 its expectation is $\sigma^2 ((1+\beta)^2 + \beta^2)$.
    """
    found = _recurrence.lagged(n, g, allowed)
    if found is None:
        return None
    decay, beta = found
    return LeafMoment(where, "lagged", decay, variance_factor=(1 + beta) ** 2 + beta**2)


class _Beside:
    """The count and the running mean of gradients that stand in the same node of the state."""

    def __init__(self, probe: Probe, where: str, path: str, g: np.ndarray, allowed: float) -> None:
        root = where[: len(where) - len(path)]
        self.probe, self.node = probe, _LAST_KEY.sub("", root)
        self.mean: str | None = None
        self.mean_decay: float | None = None
        shape = probe.states[where].shape
        for other, m in probe.states.items():
            if self._is_field(other, path) and other != where and m.shape == shape:
                self.mean_decay = _recurrence.first_order(m, g, allowed)
                if self.mean_decay is not None:
                    self.mean = other
                    break

    def complete(self, moment: LeafMoment) -> LeafMoment:
        """`moment` with what stands beside it; a wrapper may count where the state does not."""
        counts = {path: n for path, n in self.probe.states.items() if _counts(n)}
        beside = [path for path in counts if self._is_field(path, "")]
        around = [path for path in counts if self._is_wrappers(path)]
        for path in (beside or around)[:1]:
            moment = moment._replace(count=path, first_count=int(counts[path][0, 0]))
        return moment._replace(
            injected=_injected(self.probe, moment), mean=self.mean, mean_decay=self.mean_decay
        )

    def _is_wrappers(self, other: str) -> bool:
        """Whether `other` is the count of a state, such as an `ExposedState`, around the node."""
        wrapper, is_count, _ = other.rpartition(".count")
        return bool(is_count) and self.node.startswith(f"{wrapper}.inner_state")

    def _is_field(self, other: str, path: str) -> bool:
        """Whether `other` is ``node``, one key, ``path``."""
        if not (other.startswith(self.node) and other.endswith(path)):
            return False
        key = other[len(self.node) : len(other) - len(path)]
        return bool(key) and not _LAST_KEY.sub("", key)


def _injected(probe: Probe, moment: LeafMoment) -> str | None:
    """The hyperparameter around the moment that has the value of its decay."""
    hits = [
        path
        for path, value in probe.states.items()
        if _is_around(path, moment.path) and value.ndim == 2 and _is_near(value[0, 0], moment.decay)
    ]
    # The decay of the gradients' mean may have the same value.
    return min(hits, key=lambda path: path.endswith("['b1']"), default=None)


def _is_around(path: str, where: str) -> bool:
    """Whether `path` is a hyperparameter injected into the states under which `where` lies."""
    node, inside, _ = path.partition(".hyperparams[")
    return bool(inside) and where.startswith(f"{node}.inner_state")


def _is_near(value: Any, decay: float | None) -> bool:
    """Whether `value` is `decay` up to rounding to float32."""
    return decay is not None and abs(float(value) - decay) < 1e-7


def _counts(n: np.ndarray) -> bool:
    """Whether a number goes up by 1 with every update, until the probe makes it jump."""
    whole = np.issubdtype(n.dtype, np.integer) and n.ndim == 2
    return bool(whole and np.all(np.diff(n[: min(JUMPS) + 1], axis=0) == 1))


# --- refusals ------------------------------------------------------------------------------------


def _refuse(tx: Any, params: PyTree, probe: Probe, reason: str) -> NoReturn:
    """Say why, as far as tiny gradients, parameters of 0 and the state's types can tell."""
    names = ", ".join(sorted({type(node).__name__ for node in _nodes(_state(tx, params))}))
    behind = _assign(_tiny(probe))
    if not isinstance(behind, str):
        effect = clipping_effect(probe, sorted({m.path for m in behind if m is not None}))
        got = f"one of gradients that are clipped when they are large: {effect}"
        remedy = f"{_TRACK}, before the clipping"
    elif not isinstance(_assign(_record(tx, params, size=0.0)), str):
        got = "one of gradients to which weight decay, or something else of the weights, was added"
        remedy = f"put the decay behind the moment, or {_TRACK}"
    else:
        got, remedy = f"{reason}, in {names or 'an empty state'}", _TRACK
    expected = "a running mean of the squares of the gradients it is given"
    raise TypeError(complaint("tx", expected, got, remedy))


def _tiny(probe: Probe) -> Probe:
    """The run with the smallest gradients alone."""
    run = [int(np.argmin(SCALES))]
    states = {path: n[:, run] for path, n in probe.states.items()}
    gradients = {path: g[:, :, run] for path, g in probe.gradients.items()}
    return Probe(states, gradients, probe.moving)


def _state(tx: Any, params: PyTree) -> PyTree:
    return extended(tx).init(jax.tree.map(jnp.asarray, stand_ins(params)))


def _nodes(state: PyTree) -> Iterator[Any]:
    """Every NamedTuple in `state`."""
    if hasattr(state, "_fields"):
        yield state
    children = jax.tree.leaves(state, is_leaf=lambda node: node is not state)
    yield from (found for child in children if child is not state for found in _nodes(child))
