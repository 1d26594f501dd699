r"""Which recurrence an array obeys in bases that the state itself holds, as those of SOAP do.

With an orthogonal matrix for each axis, $n_t = d\,n_{t-1} + c\,(Q^\top g_t)^2$. A rotation leaves
the sum of all squares as it is: $d$ and $c$ follow from the sums, before any matrix is known. The
sums over all axes but one depend on the matrix of that axis alone, so that each is found by itself.
What is found must then reproduce every value.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from typing import NamedTuple

import numpy as np

from l2m_optax.moments._identification.advance import moved
from l2m_optax.moments._identification.recurrence import Recurrence, second_order

_CLOSE = 1e-5
"""The error that is allowed, relative to the largest entry in the same update."""
_TURN = "turned after it is used", "turned before it is used"


class Rotated(NamedTuple):
    """How an array follows the squares of the gradients.

    Attributes:
      recurrence: the law in the basis.
      matrices: for each axis the path of its orthogonal matrix, or `None`.
    """

    recurrence: Recurrence
    matrices: tuple[str | None, ...]


def rotated(
    n: np.ndarray, g: np.ndarray, held: Mapping[str, np.ndarray], allowed: float
) -> Rotated | None:
    """How an array follows the squares of the gradients in some basis.

    Args:
      n: its values before the first and after every update, (updates + 1, runs, ...).
      g: the gradients in the shape of the array, (updates, runs, ...).
      held: the arrays that may be matrices of the basis, by path, like `n`.
      allowed: the largest relative error of the sums.
    """
    moves = moved(n)
    law = _of_sums(n, np.square(g), moves, allowed)
    if law is None:
        return None
    for turn in _TURN:
        used = {path: q[:-1] if turn == _TURN[0] else q[1:] for path, q in held.items()}
        for names in product(*_sides(n, g, used, law, moves)):
            qs = [None if name is None else used[name] for name in names]
            after = [None if name is None else held[name][1:] for name in names]
            if _reproduced(n, _expected(n, _squares(g, qs), law), _changes(qs, after), moves):
                return Rotated(law, names)
    return None


def products(g: np.ndarray, axis: int) -> np.ndarray:
    r"""$G G^\top$ of gradients that are unfolded along an axis: (updates, runs, size, size)."""
    unfolded = np.moveaxis(g, 2 + axis, 2)
    unfolded = unfolded.reshape(*unfolded.shape[:3], -1)
    return unfolded @ np.swapaxes(unfolded, -1, -2)


def follows_products(m: np.ndarray, p: np.ndarray, allowed: float) -> Recurrence | None:
    """How a matrix follows products of the gradients with themselves, if it does.

    Args:
      m: its values, (updates + 1, runs, size, size).
      p: the products, (updates, runs, size, size).
      allowed: the largest relative error of the traces.
    """
    moves, diagonal = moved(m), np.arange(m.shape[-1])
    law = _of_sums(m[..., diagonal, diagonal], p[..., diagonal, diagonal], moves, allowed)
    if law is None or np.any(m[0] != law.initial * np.eye(m.shape[-1])):
        return None
    return law if _is_close(m[1:], _expected(m, p, law), moves) else None


def _of_sums(n: np.ndarray, x: np.ndarray, moves: np.ndarray, allowed: float) -> Recurrence | None:
    """The law of the mean over all entries, in the updates that move the array."""
    axes = tuple(range(2, n.ndim))
    values = n.mean(axis=axes)
    initial = float(n[0].flat[0])
    if not np.any(moves) or np.any(values < 0) or np.any(n[0] != initial):
        return None
    first = int(np.argmax(moves))
    values = np.concatenate([values[first : first + 1], values[1:][moves]])
    law = second_order(values, x.mean(axis=axes)[moves], allowed)
    if law is None or law.kind not in ("mean", "sum"):
        return None
    return law._replace(initial=initial)


def _share(law: Recurrence) -> float:
    """The weight of the newest square."""
    decay = law.decay or 0.0
    return law.rescaling**2 * (1.0 if law.kind == "sum" else 1.0 - decay)


def _expected(n: np.ndarray, x: np.ndarray, law: Recurrence) -> np.ndarray:
    return (law.decay or 0.0) * n[:-1] + _share(law) * x


def _is_close(values: np.ndarray, expected: np.ndarray, moves: np.ndarray) -> bool:
    axes = tuple(range(2, values.ndim))
    error = np.max(np.abs(values - expected), axis=axes)
    return bool(np.all((error <= _CLOSE * np.max(np.abs(expected), axis=axes))[moves]))


def _sides(
    n: np.ndarray,
    g: np.ndarray,
    used: Mapping[str, np.ndarray],
    law: Recurrence,
    moves: np.ndarray,
) -> Iterator[list[str | None]]:
    """For each axis the matrices with which the sums over the others come out right."""
    for axis in range(n.ndim - 2):
        others = tuple(2 + i for i in range(n.ndim - 2) if i != axis)
        sums, size = n.sum(axis=others), n.shape[2 + axis]
        plain = _expected(sums, np.square(g).sum(axis=others), law)
        found: list[str | None] = [None] if _is_close(sums[1:], plain, moves) else []
        of_size = {path: q for path, q in used.items() if q.shape[2:] == (size, size)}
        p = products(g, axis) if of_size else g
        for path, q in of_size.items():
            if _is_orthogonal(q, moves):
                squares = np.einsum("...ji,...jk,...ki->...i", q, p, q, optimize=True)
                expected = np.sort(_expected(sums, squares, law), axis=-1)
                if _is_close(np.sort(sums[1:], axis=-1), expected, moves):
                    found.append(path)
        yield found


def _is_orthogonal(q: np.ndarray, moves: np.ndarray) -> bool:
    off = np.abs(np.swapaxes(q, -1, -2) @ q - np.eye(q.shape[-1]))
    return bool(np.all(off[moves] < 1e-3))


def _squares(g: np.ndarray, qs: list[np.ndarray | None]) -> np.ndarray:
    """The squares of the gradients in the basis."""
    for axis, q in enumerate(qs):
        if q is not None:
            moved_g = np.moveaxis(g, 2 + axis, 2)
            flat = moved_g.reshape(*moved_g.shape[:3], -1)
            flat = np.swapaxes(q, -1, -2) @ flat
            g = np.moveaxis(flat.reshape(moved_g.shape), 2, 2 + axis)
    return np.square(g)


def _changes(
    used: list[np.ndarray | None], after: list[np.ndarray | None]
) -> list[np.ndarray | None]:
    """For each axis the updates and runs that leave another matrix than the one that was used."""
    return [
        None if q is None or then is None else np.any(q != then, axis=(-2, -1))
        for q, then in zip(used, after, strict=True)
    ]


def _reproduced(
    n: np.ndarray, expected: np.ndarray, changes: list[np.ndarray | None], moves: np.ndarray
) -> bool:
    """Whether the values are those expected; a basis that is turned may reorder its columns."""
    values = n[1:]
    for axis, changed in enumerate(changes):
        if changed is not None:
            values, expected = (_ordered(x, axis, changed) for x in (values, expected))
    return _is_close(values, expected, moves)


def _ordered(x: np.ndarray, axis: int, where: np.ndarray) -> np.ndarray:
    """Entries along an axis by the sums over the others, in some updates and runs."""
    others = tuple(2 + i for i in range(x.ndim - 2) if i != axis)
    order = np.argsort(x.sum(axis=others), axis=-1)
    order = np.where(where[..., None], order, np.arange(order.shape[-1]))
    return np.take_along_axis(x, np.expand_dims(order, others), axis=2 + axis)
