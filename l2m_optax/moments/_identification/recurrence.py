"""Which recurrence an array of the state obeys: a running mean, a sum, or none of them.

Every candidate is linear in its coefficients, so each is found by least squares on what the probe
recorded, and is accepted only if it reproduces every recorded value.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

_EXACT = 1e-10
_ROUNDED = 3e-6
_ROWS = 2**13  # values that the coefficients are computed from; all are compared with the result


class Recurrence(NamedTuple):
    r"""How an array follows what it averages: $n_t = d_t n_{t-1} + r^2 w_t x_t$.

    Attributes:
      kind: "mean" if $d_t = d$ and $w_t = 1-d$; "unbiased" if $w_1 = 1$ and $w_t = 1-d_t$ then, so
        that the weights always sum to 1; "sum" if $d_t = w_t = 1$.
      decay: d; `None` where it changes from update to update, 1 for a sum.
      initial: $n_0$, the same for every entry.
      rescaling: r, by which what comes before multiplies the gradients.
    """

    kind: str
    decay: float | None
    initial: float
    rescaling: float


def rounded(decay: float, allowed: float = _EXACT) -> float:
    """The shortest number within the error of a decay.

    It is what the user wrote, and it is the same for all leaves.
    """
    share = 1.0 - decay
    short = float(f"{share:.4g}")
    return 1.0 - (short if abs(short - share) < 10 * allowed * share else float(f"{share:.9g}"))


def tolerance(rounded: bool) -> float:
    """The relative error up to which a recurrence counts as obeyed."""
    return _ROUNDED if rounded else _EXACT


def second_order(n: np.ndarray, x: np.ndarray, allowed: float) -> Recurrence | None:
    """How an array follows the squares of the gradients.

    Args:
      n: the values of the array before the first and after every update, (updates + 1, ...).
      x: the squares that entered each update, (updates, ...).
      allowed: the largest relative error.

    Returns:
      The `Recurrence`, or `None` if `n` obeys none.
    """
    if not _usable(n) or np.any(n < 0):
        return None
    initial = float(n[0].flat[0])
    if initial < 0 or np.any(n[0] != initial):
        return None
    return _constant(n, x, initial, allowed) or _normalised(n, x, initial, allowed)


def first_order(m: np.ndarray, g: np.ndarray, allowed: float) -> float | None:
    """The decay of `m` if it is a running mean of `g` that started from 0."""
    if not _usable(m) or np.any(m[0]):
        return None
    # Gradients of either sign may bring the mean close to 0, where no relative error is small.
    (d, c), error = _solve(m[1:], m[:-1], g, scale=np.abs(m[1:]) + np.abs(m[:-1]))
    decay = 1.0 - c
    return (
        rounded(decay, allowed) if error < allowed and abs(c - (1.0 - d)) < 10 * allowed else None
    )


def is_idle(n: np.ndarray) -> bool:
    """Whether no gradient ever moved `n` away from zero, as behind `optax.set_to_zero`."""
    return not np.any(n)


def lagged(n: np.ndarray, g: np.ndarray, allowed: float) -> tuple[float, float] | None:
    r"""The decay of `n` and the $\beta$ of $x_t = (g_t + \beta(g_t - g_{t-1}))^2$, if it fits."""
    if not _usable(n) or np.any(n[0]):
        return None
    now, before = g[1:], g[:-1]
    (d, aa, ab, bb), error = _solve(n[2:], n[1:-1], now**2, now * before, before**2)
    if error > allowed or aa <= 0 or bb <= 0:
        return None
    a, b = np.sqrt(aa), np.sqrt(bb)
    share = (a - b) ** 2
    closed = abs(share - (1 - d)) < 1e-6 and abs(ab + 2 * a * b) < 1e-6 * a * b
    return (rounded(d), float(f"{b / (a - b):.9g}")) if closed and a > b else None


def one_update(
    before: np.ndarray, after: np.ndarray, x: np.ndarray, allowed: float
) -> tuple[float, float] | None:
    """The d and c of one update, $n_t = d n_{t-1} + c x_t$, if all entries move by the same."""
    if not (np.all(after > 0) and np.all(np.isfinite(after)) and np.any(after != before)):
        return None
    (d, c), error = _solve(after, before, x)
    noise = 10 * allowed
    sound = error < allowed and -noise <= d <= 1 + noise and c >= -noise
    return (float(d), float(c)) if sound else None


def _constant(n: np.ndarray, x: np.ndarray, initial: float, allowed: float) -> Recurrence | None:
    (d, c), error = _solve(n[1:], n[:-1], x)
    if error > allowed or c <= 0 or _needs_no_gradient(n, allowed):
        return None
    noise = 10 * allowed
    if abs(d - 1) < 1e-12 or (abs(d - 1) < noise and abs(c - 1) < noise):
        exact = abs(c - 1) < noise
        usable = exact or allowed <= _EXACT
        return (
            Recurrence("sum", 1.0, initial, 1.0 if exact else float(np.sqrt(c))) if usable else None
        )
    if not -noise <= d < 1:
        return None
    if abs(c - (1 - d)) < max(noise * min(1.0, 1e3 * c), 1e-7 * c):
        # The share of the newest square is known to more digits than the decay.
        return Recurrence("mean", rounded(1 - c, allowed), initial, 1.0)
    return Recurrence("mean", rounded(d, allowed), initial, float(f"{np.sqrt(c / (1 - d)):.6g}"))


def _needs_no_gradient(n: np.ndarray, allowed: float) -> bool:
    """Whether an array only falls or grows by itself, as a Hessian that was never estimated."""
    _, error = _solve(n[1:], n[:-1])
    return error < 1e-2 * allowed


def _normalised(n: np.ndarray, x: np.ndarray, initial: float, allowed: float) -> Recurrence | None:
    (k,), error = _solve(n[1], x[0])
    if initial != 0 or error > allowed or k <= 0:
        return None
    rescaling = 1.0 if abs(k - 1) < _ROUNDED else float(np.sqrt(k))
    if rescaling == 1.0:
        k, allowed = 1.0, _ROUNDED  # the share of the newest square may be computed in float32
    decays = []
    for t in range(2, len(n)):
        (d,), error = _solve(n[t] - k * x[t - 1], n[t - 1] - k * x[t - 1], scale=n[t])
        if error > allowed or not 0 <= d < 1:
            return None
        decays.append(float(d))
    same = np.ptp(decays) < 10 * allowed
    return Recurrence("unbiased", rounded(decays[0]) if same else None, 0.0, rescaling)


def _usable(n: np.ndarray) -> bool:
    return bool(np.all(np.isfinite(n)) and np.all(n[1:] != 0) and np.any(n[1:] != n[:-1]))


def _solve(
    target: np.ndarray, *columns: np.ndarray, scale: np.ndarray | None = None
) -> tuple[np.ndarray, float]:
    """The coefficients with which the sum of `columns` is `target`, and the largest error.

    Errors are relative to `scale`, by default to `target`.
    """
    size = np.abs(target if scale is None else scale).ravel()
    rows = np.stack([column.ravel() / size for column in columns], axis=1)
    wanted = target.ravel() / size
    few = slice(None, None, max(1, len(rows) // _ROWS))
    norms = np.linalg.norm(rows[few], axis=0)
    norms[norms == 0] = 1.0
    coefficients = np.linalg.lstsq(rows[few] / norms, wanted[few], rcond=None)[0] / norms
    error = np.max(np.abs(rows @ coefficients - wanted), initial=0.0)
    return coefficients, float(error)
