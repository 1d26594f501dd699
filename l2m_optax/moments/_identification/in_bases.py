"""The moments of optimizers that keep matrices: of squares in a basis, or products of gradients.

Axes that have a matrix are cut, to two sizes, for a basis shows in small matrices as well as in
large ones. The same law must hold for both, and the program for the real shapes must be made of the
same steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from l2m_optax._support.types import PyTree
from l2m_optax.moments._identification.advance import Advance, advance_of, moved
from l2m_optax.moments._identification.alike import of_all, representatives, scope_of
from l2m_optax.moments._identification.attempt import reject
from l2m_optax.moments._identification.neighbours import Neighbours
from l2m_optax.moments._identification.plan import SIZES, Plan
from l2m_optax.moments._identification.probe import Arrays, Probe, record
from l2m_optax.moments._identification.recurrence import Recurrence, tolerance
from l2m_optax.moments._identification.rotated import follows_products, products, rotated
from l2m_optax.moments._identification.stacks import as_runs, is_square, squares_of
from l2m_optax.moments._identification.stand_ins import num_entries
from l2m_optax.moments._identification.trace import Program, is_within, owner_around, trace
from l2m_optax.moments._identification.verdict import LeafMoment, Moments

_LENGTHS = (4, 6)
_MOST_ENTRIES = 2**20
_PLAIN = 64
_FAR = 2**5 * 3**2 * 5**3 * 7 * 11 * 13
"""A count at which whatever is done every k-th step is done, for any usual k."""
_PLAN = Plan(
    scales=(1e6, 1e-6),
    sizes=tuple(SIZES[i % len(SIZES)] for i in range(_PLAIN + 6)),
    jumps={_PLAIN: _FAR - 3 - _PLAIN},
    places=256,  # an axis without a matrix may be long, and every row of it is treated alike
)


def holds_matrices(real: Program) -> bool:
    """Whether a state holds square matrices that have the shape of no leaf."""
    own = {leaf.shape for leaf in real.gradients.values()}
    return any(_is_matrix(leaf.shape) and leaf.shape not in own for leaf in real.state.values())


def moments_in_bases(tx: Any, real: Program) -> Moments | None:
    """The moments of the leaves, by path; `None` unless all can be read, and some in a basis.

    A leaf of which the state holds nothing has the moment `None`.

    Args:
      tx: the transformation.
      real: its program for the real shapes.

    Raises:
      TypeError: if only small gradients reach the moments as they are.
    """
    if not any(_is_matrix(leaf.shape) for leaf in real.state.values()):
        return None
    stands_for = representatives(real, owner_around)
    probed = frozenset(stands_for.values())
    shapes = [_cut(real, longest) for longest in _LENGTHS]
    first = _moments(tx, real, shapes[0], probed)
    if first is None or not _is_in_bases(first):
        return None
    is_sure = shapes[1] == shapes[0] or first == _moments(tx, real, shapes[1], probed)
    return of_all(first, stands_for) if is_sure else None


def _is_matrix(shape: tuple[int, ...]) -> bool:
    return is_square(shape) and shape[-1] > 1


def _moments(tx: Any, real: Program, shapes: PyTree, leaves: frozenset[str]) -> Moments | None:
    """The moments of some leaves, of parameters that are cut to some shapes."""
    if num_entries(shapes) > _MOST_ENTRIES:
        return None
    try:
        program = trace(tx, shapes)
    except Exception:  # it may hold arrays of the real shapes
        return None
    if program.state.keys() != real.state.keys() or _steps(program) != _steps(real):
        return None
    probe = record(program, scope_of(program, leaves, owner_around), plan=_PLAN)
    found = _assigned(probe)
    if found is None and _is_in_bases(_assigned(_smallest(probe))):
        reject("one of gradients that are clipped when they are large")
    return found


def _is_in_bases(found: Moments | None) -> bool:
    """Whether all was found, and some in a basis."""
    return found is not None and any(moment and moment.matrices for moment in found.values())


def _smallest(probe: Probe) -> Probe:
    """The run with the smallest gradients alone."""
    run = slice(i := int(np.argmin(_PLAN.scales)), i + 1)
    states, means = (
        {path: array[:, run] for path, array in of.items()} for of in (probe.states, probe.means)
    )
    return probe._replace(states=states, means=means)


def _cut(program: Program, longest: int) -> PyTree:
    """The parameters of a program, with shorter axes where a matrix goes with an axis or several.

    Axes of different sizes stay different.
    """
    sides = {leaf.shape[-1] for leaf in program.state.values() if _is_matrix(leaf.shape)}
    has_matrix = {p: _with_a_matrix(leaf.shape, sides) for p, leaf in program.params.items()}
    sizes = {
        size
        for path, leaf in program.params.items()
        for size, has in zip(leaf.shape, has_matrix[path], strict=True)
        if has and size > longest
    }
    short = {size: longest + rank for rank, size in enumerate(sorted(sizes))}

    def shape(path: str, leaf: Any) -> Any:
        struct: Any = jax.ShapeDtypeStruct
        pairs = zip(leaf.shape, has_matrix[path], strict=True)
        return struct(tuple(short.get(d, d) if has else d for d, has in pairs), leaf.dtype)

    return program.treedef.unflatten([shape(*pair) for pair in program.params.items()])


def _with_a_matrix(shape: tuple[int, ...], sides: set[int]) -> list[bool]:
    """For each axis whether it, or a group of neighbours with it, has the size of a matrix."""
    groups = [(i, j) for j in range(len(shape) + 1) for i in range(j)]
    found = [(i, j) for i, j in groups if math.prod(shape[i:j]) in sides]
    return [any(i <= axis < j for i, j in found) for axis in range(len(shape))]


def _steps(program: Program) -> list[str]:
    """The names of all that a program does, in order."""
    return list(_names(program.closed.jaxpr))


def _names(jaxpr: Any) -> Iterator[str]:
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from _names(inner)


def _assigned(probe: Probe) -> Moments | None:
    matcher = _Matcher(probe)
    found: Moments = {}
    for leaf, g in probe.means.items():
        held = {path: n for path, n in probe.states.items() if is_within(path, leaf)}
        moments = matcher.moments(g, held or probe.states)
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

    def moments(self, g: np.ndarray, held: Arrays) -> list[LeafMoment]:
        """The second moments among some arrays: of those of products only if there are no others.

        An array in its own basis says more than the products that gave the basis.
        """
        held = {path: n for path, n in held.items() if n.dtype.kind == "f" and n.ndim > 1}
        found = [m for path in held if (m := self._in_basis(path, g, held)) is not None]
        turned = [m for m in found if any(m.matrices)]
        of_products = self._of_products(g, held)
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
