"""What the arrays and matrices of a state are to the gradients of one parameter.

They are squares in a basis of orthogonal matrices, or products of the gradient with itself. A leaf
may be a stack of matrices: then each array is a stack as well.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from l2m_optax.moments._identification.advance import Advance, advance_of, moved
from l2m_optax.moments._identification.neighbours import Neighbours
from l2m_optax.moments._identification.probe import Arrays, Probe
from l2m_optax.moments._identification.recurrence import Recurrence, tolerance
from l2m_optax.moments._identification.rotated import follows_products, products, rotated
from l2m_optax.moments._identification.stacks import as_runs, squares_of
from l2m_optax.moments._identification.trace import is_within, owner_around
from l2m_optax.moments._identification.verdict import LeafMoment, Moments


def assigned(probe: Probe) -> Moments | None:
    """The moments of all leaves, each from the arrays at its path and those at the path of none."""
    matcher = _Matcher(probe)
    found: Moments = {}
    loose = {p: n for p, n in probe.states.items() if owner_around(p, probe.means) is None}
    for leaf, g in probe.means.items():
        held = {path: n for path, n in probe.states.items() if is_within(path, leaf)}
        moments = matcher.moments(g, held or probe.states, held | loose if held else probe.states)
        if len(moments) > 1 or (held and not moments):
            return None
        found[leaf] = moments[0] if moments else None
    return found


class _Matcher:
    """Compares arrays of one probe with the gradients of a leaf."""

    def __init__(self, probe: Probe) -> None:
        self._probe = probe
        self._counts = Neighbours(probe).counts
        floats = [n for n in probe.states.values() if n.dtype.kind == "f" and n.ndim > 2]
        self._allowed = tolerance(any(n.dtype != np.float64 for n in floats))

    def moments(self, g: np.ndarray, held: Arrays, matrices: Arrays) -> list[LeafMoment]:
        """The second moments among some arrays: of those of products only if there are no others.

        An array in its own basis says more than the products that gave the basis.

        Args:
          g: the gradients.
          held: the arrays that may be a mean of squares.
          matrices: the arrays among which its basis may be, or the products.
        """
        held, matrices = (
            {path: n for path, n in of.items() if n.dtype.kind == "f" and n.ndim > 1}
            for of in (held, matrices)
        )
        found = [m for path in held if (m := self._in_basis(path, g, matrices)) is not None]
        turned = [m for m in found if any(m.matrices)]
        of_products = self._of_products(g, matrices)
        return turned or ([of_products] if of_products is not None else found)

    def _in_basis(self, path: str, g: np.ndarray, held: Arrays) -> LeafMoment | None:
        n = self._probe.states[path]
        if not _is_view(n.shape[2:], g.shape[2:]) or np.any(n < 0):
            return None
        g = g.reshape(g.shape[:2] + n.shape[2:])
        others = {other: q for other, q in held.items() if other != path}
        for axes in range(max(1, n.ndim - 2)):
            matrices = squares_of(others, n.shape[2 : 2 + axes])
            if axes and not matrices:
                continue
            found = rotated(as_runs(n, axes), as_runs(g, axes), matrices, self._allowed)
            if found is not None:
                return self._moment(path, found.recurrence, found.matrices)
        return None

    def _of_products(self, g: np.ndarray, held: Arrays) -> LeafMoment | None:
        """The moment that products along every axis of a leaf, or of a view of it, determine."""
        for view, axes in _stacked_views(g.shape[2:]):
            matrices = squares_of(held, view[:axes])
            pairs = self._followed(as_runs(g.reshape(g.shape[:2] + view), axes), matrices)
            laws, advances = {law for _, law in pairs}, {self._advance(path) for path, _ in pairs}
            if len(pairs) == len(view) - axes and len(laws) == len(advances) == 1:
                paths = tuple(path for path, _ in pairs)
                moment = self._moment(paths[0], laws.pop(), paths)
                return moment and moment._replace(products=True)
        return None

    def _followed(self, g: np.ndarray, held: Arrays) -> list[tuple[str, Recurrence]]:
        """For each axis the first matrix that follows the products along it, if there is one."""
        found: dict[str, Recurrence] = {}
        for axis in range(g.ndim - 2):
            sides = (g.shape[2 + axis],) * 2
            of_size = {p: m for p, m in held.items() if m.shape[2:] == sides and p not in found}
            along = products(g, axis) if of_size else g
            for path, m in of_size.items():
                law = follows_products(m, along, self._allowed)
                if law is not None:
                    found[path] = law
                    break
        return list(found.items())

    def _moment(
        self, path: str, law: Recurrence, matrices: tuple[str | None, ...]
    ) -> LeafMoment | None:
        advance, count = self._advance(path), self._count(path)
        if advance is None:
            return None
        return LeafMoment(
            path,
            law.kind,
            law.decay,
            law.initial,
            law.rescaling,
            micro_steps=self._probe.micro_steps,
            count=count,
            first_count=0 if count is None else self._counts[count],
            first=advance.first,
            every=advance.every,
            matrices=matrices if any(matrices) else (),
        )

    def _advance(self, path: str) -> Advance | None:
        count = self._count(path)
        counts = None
        if count is not None:
            held = self._probe.states[count]
            counts = held.reshape(len(held), -1)[1:, 0] - self._counts[count]
        return advance_of(moved(self._probe.states[path]), counts)

    def _count(self, path: str) -> str | None:
        """The count that is held nearest to an array."""
        around = [name for name in self._counts if path.startswith(_parent(name))]
        return max(around, key=lambda name: len(_parent(name)), default=None)


def _parent(path: str) -> str:
    """The path without its last key."""
    return path[: max(path.rfind("."), path.rfind("["), 0)]


def _views(shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """A shape, and those in which neighbouring axes of it are one, each axis apart first."""
    if len(shape) < 2:
        yield from [shape] * len(shape)
        return
    for rest in _views(shape[1:]):
        yield (shape[0], *rest)
    for rest in _views(shape[1:]):
        yield (shape[0] * rest[0], *rest[1:])


def _stacked_views(shape: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], int]]:
    """The views of a shape, and how many leading axes of each may be a stack; none, at first."""
    for axes in range(max(1, len(shape))):
        yield from ((view, axes) for view in _views(shape) if axes < len(view))


def _is_view(shape: tuple[int, ...], leaf: tuple[int, ...]) -> bool:
    """Whether the axes of an array are those of a leaf, or groups of neighbours of them."""
    if len(shape) > len(leaf) + 1:  # what is out of sight has more
        return False
    ends, own = (set(np.cumprod((1, *of)).tolist()) for of in (leaf, shape))
    return own <= ends and max(own) == max(ends)
