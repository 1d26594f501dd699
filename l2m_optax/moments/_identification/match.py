"""What one array of the state is to the gradients of one parameter."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import jax.numpy as jnp
import numpy as np

from l2m_optax.moments._factored import averaged_axes, factored_shapes, rows_and_columns
from l2m_optax.moments._identification import recurrence as _recurrence
from l2m_optax.moments._identification.neighbours import Neighbours
from l2m_optax.moments._identification.probe import Probe
from l2m_optax.moments._identification.verdict import LeafMoment
from l2m_optax.moments._moment import mean_variance_ratio


class Matcher:
    """Compares arrays of one probe with gradients."""

    def __init__(self, probe: Probe) -> None:
        self.states, self.probe = probe.states, probe
        self.neighbours = Neighbours(probe)
        self.allowed = _recurrence.tolerance(_rounds(probe))

    def moments(self, path: str) -> Iterator[LeafMoment]:
        """The arrays of the state that are a second moment of the parameter at `path`."""
        views = list(_views(self.probe.means[path], self.probe.lasts[path], self.probe.micro_steps))
        for where in self.neighbours.by_leaf[path]:
            found = self.match(where, path, views) or self._factored(where, path, views)
            if found is not None:
                yield found

    def whole(self) -> LeafMoment | None:
        """The moment of all parameters raveled and joined, if the state holds one."""
        means, lasts = (_joined(of.values()) for of in (self.probe.means, self.probe.lasts))
        views = list(_views(means, lasts, self.probe.micro_steps))
        for where in self.states:
            found = self.match(where, "", views)
            if found is not None:
                return found._replace(whole=True)
        return None

    def match(
        self, where: str, path: str, views: list[tuple[np.ndarray, int]]
    ) -> LeafMoment | None:
        """What the array at `where` is to the gradients, or `None` if it is no second moment."""
        n = self.states[where]
        if n.shape[1:] != views[0][0].shape[1:] or not np.issubdtype(n.dtype, np.floating):
            return None
        if where in self.probe.moving or np.any(n < 0):  # squares have no negative mean
            return None
        for g, micro_steps in views:
            mean = self.neighbours.running_mean(where, path, g, self.allowed)
            moment = (
                _square(where, n, g, self.allowed)
                or self._centered(where, n, g, mean)
                or _lagged(where, n, g, self.allowed)
            )
            if moment is not None:
                moment = self._with_neighbours(moment, path, micro_steps)
                name, decay = mean or (None, None)
                return moment._replace(mean=name, mean_decay=decay)
        return None

    def _with_neighbours(self, moment: LeafMoment, path: str, micro_steps: int) -> LeafMoment:
        count = self.neighbours.count(moment.path, path)
        return moment._replace(
            micro_steps=micro_steps,
            count=count,
            first_count=0 if count is None else self.neighbours.counts[count],
            injected=self.neighbours.injected(moment),
        )

    def _centered(
        self, where: str, n: np.ndarray, g: np.ndarray, mean: tuple[str, float] | None
    ) -> LeafMoment | None:
        r"""A mean of squared distances from the running mean $m_t$ of independent gradients.

        With decay $b$ and $r = (1-b)/(1+b)$, $\mathrm{Var}(m) = r \sigma^2$. The distance from the
        mean before the update, $g_t - m_{t-1}$, has the variance $(1+r) \sigma^2$; the one from the
        mean after it, $g_t - m_t = b\,(g_t - m_{t-1})$, has $b^2 (1+r) \sigma^2$.
        """
        if mean is None:
            return None
        m, b = self.states[mean[0]], mean[1]
        # A constant under the root, adabelief's eps, is lost in all but the tiniest gradients.
        large = [i for i in range(n.shape[1]) if np.abs(g[:, i]).max() > 1e-3]
        if not large:
            return None
        before = 1 + mean_variance_ratio(b)
        for distance, factor in ((g - m[1:], b * b * before), (g - m[:-1], before)):
            x = np.square(distance)[:, large]
            found = _recurrence.second_order(n[:, large], x, 1e3 * self.allowed)
            if found is not None and found.kind == "mean" and found.rescaling == 1.0:
                return LeafMoment(where, "centered", found.decay, variance_factor=factor)
        return None

    def _factored(
        self, where: str, path: str, views: list[tuple[np.ndarray, int]]
    ) -> LeafMoment | None:
        """The product of two means, over columns and over rows, that stand for `where`."""
        row, column = rows_and_columns(where)
        shape = views[0][0].shape[2:]
        if row == where or len(shape) < 2 or not {row, column} <= self.states.keys():
            return None
        means = self.states[row], self.states[column]
        if tuple(n.shape[2:] for n in means) != factored_shapes(shape):
            return None
        second, longest = averaged_axes(shape)
        for g, micro_steps in views:
            over = [np.square(g).mean(axis=2 + axis) for axis in (longest, second)]
            pairs = zip(means, over, strict=True)
            both = [_recurrence.second_order(n, x, self.allowed) for n, x in pairs]
            if both[0] is not None and both[0] == both[1] and both[0].kind == "unbiased":
                moment = LeafMoment(where, "factored", both[0].decay, rescaling=both[0].rescaling)
                return self._with_neighbours(moment, path, micro_steps)
        return None


def _views(
    means: np.ndarray, lasts: np.ndarray, micro_steps: int
) -> Iterator[tuple[np.ndarray, int]]:
    """What an update may see of its micro-steps: their mean, or the last one."""
    yield means, micro_steps
    if micro_steps > 1:
        yield lasts, 1


def _joined(gradients: Iterable[np.ndarray]) -> np.ndarray:
    return np.concatenate([g.reshape(*g.shape[:2], -1) for g in gradients], axis=-1)


def _rounds(probe: Probe) -> bool:
    """Whether some array is held in less than float64 (`optax.MultiSteps` gathers in float32)."""
    floats = [n for n in probe.states.values() if jnp.issubdtype(n.dtype, jnp.floating)]
    return any(n.dtype != np.float64 and n.ndim > 2 for n in floats)


def _square(where: str, n: np.ndarray, g: np.ndarray, allowed: float) -> LeafMoment | None:
    found = _recurrence.second_order(n, np.square(g), allowed)
    if found is None:
        return None
    return LeafMoment(where, found.kind, found.decay, found.initial, found.rescaling)


def _lagged(where: str, n: np.ndarray, g: np.ndarray, allowed: float) -> LeafMoment | None:
    r"""A mean of $(g_t + \beta (g_t - g_{t-1}))^2$, as adan's.

    For independent gradients of mean 0 its expectation is $\sigma^2 ((1+\beta)^2 + \beta^2)$.
    """
    found = _recurrence.lagged(n, g, allowed)
    if found is None:
        return None
    decay, beta = found
    return LeafMoment(where, "lagged", decay, variance_factor=(1 + beta) ** 2 + beta**2)
