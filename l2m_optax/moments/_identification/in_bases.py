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
from l2m_optax.moments._identification.alike import of_all, representatives, scope_of
from l2m_optax.moments._identification.attempt import reject
from l2m_optax.moments._identification.match_matrices import assigned
from l2m_optax.moments._identification.plan import SIZES, Plan
from l2m_optax.moments._identification.probe import Probe, record
from l2m_optax.moments._identification.stacks import is_square
from l2m_optax.moments._identification.stand_ins import num_entries
from l2m_optax.moments._identification.trace import Program, owner_around, trace
from l2m_optax.moments._identification.verdict import Moments

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
    found = assigned(probe)
    if found is None and _is_in_bases(assigned(_smallest(probe))):
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
