"""The moments of parameters of any size, most of which need not be probed.

Leaves that are treated alike have one that stands for them. What is too large to be probed is cut,
and the program that JAX traces for the real shapes is compared with the one that was probed.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any, NamedTuple, NoReturn

from l2m_optax._support.types import PyTree
from l2m_optax.moments._factored import factored_shapes, rows_and_columns
from l2m_optax.moments._identification.alike import of_all, representatives, scope_of, ways
from l2m_optax.moments._identification.attempt import attempt, reject
from l2m_optax.moments._identification.examine import examine
from l2m_optax.moments._identification.expressions import Expressions, Outputs, different, placed
from l2m_optax.moments._identification.in_bases import holds_matrices, moments_in_bases
from l2m_optax.moments._identification.probe import enable_x64
from l2m_optax.moments._identification.stand_ins import MOST_ENTRIES, cut, num_entries, small_leaves
from l2m_optax.moments._identification.trace import Program, trace
from l2m_optax.moments._identification.verdict import LeafMoment, Moments

_LENGTHS = (2, 8, 32, 128)
_FACTORED = 128  # adafactor factors from that length on
_MOST_CUT, _MOST_REAL = 2**17, 2**22


def moments_of(tx: Any, params: PyTree) -> Moments:
    """The moments of a transformation, by the path of the parameter.

    Raises:
      TypeError: if it has none, or if they go by the sizes of leaves or the places of entries, and
        the leaves are too large to be probed.
    """
    try:
        real = trace(tx, params)
    except Exception:  # some are written for float32 alone
        with enable_x64(False):
            return _moments(tx, params, attempt(trace, tx, params))
    return _moments(tx, params, real)


def _moments(tx: Any, params: PyTree, real: Program) -> Moments:
    """The moments in bases, or those of every entry: first whichever the state looks like."""
    is_likely = holds_matrices(real)
    found = moments_in_bases(tx, real) if is_likely else None
    if found is not None:
        return found
    try:
        return _entrywise(tx, params, real)
    except TypeError:  # square leaves have matrices of their own shape, as Adam's moments are
        found = None if is_likely else moments_in_bases(tx, real)
        if found is None:
            raise
        return found


def _entrywise(tx: Any, params: PyTree, real: Program) -> Moments:
    """The moments that follow the squares of the gradients entry by entry.

    Raises:
      TypeError: as `moments_of`.
    """
    stands_for = representatives(real)
    probed = frozenset(stands_for.values())
    if num_entries(params) <= MOST_ENTRIES:
        found = examine(real, scope_of(real, probed))
    else:
        found = _Large(tx, real, probed).moments()
    return of_all(found, stands_for)


class _Large(NamedTuple):
    """A transformation on leaves that are too large to be probed as they are.

    Attributes:
      tx: the transformation.
      real: its program for the real shapes.
      probed: the leaves that stand for all.
    """

    tx: Any
    real: Program
    probed: frozenset[str]

    def moments(self) -> Moments:
        """The moments of the leaves that stand for all."""
        expressions = Expressions()
        expected = expressions.read(self.real)
        program, lengths = self._suited()
        found = self._held(examine(program, scope_of(program, self.probed)))
        actual = expressions.read(program)
        if not lengths:  # real shapes after all, of which entries were left out
            doubtful = self._doubtful(found, placed(actual, expressions))
            return self._reject(found, doubtful) if doubtful else found
        doubtful = self._doubtful(found, different(actual, expected, expressions))
        if not doubtful:
            return found
        return self._of_larger(found, doubtful, lengths, expected, expressions)

    def _suited(self) -> tuple[Program, dict[str, int]]:
        """A program for smaller shapes whose state has the arrays of the real one."""
        for lengths in self._lengths():
            try:
                program = trace(self.tx, cut(self.real, lengths))
            except Exception:  # it may hold arrays of the real shapes
                continue
            if program.state.keys() == self.real.state.keys():
                return program, lengths
        reject("one that goes by the sizes of leaves, some of which are too large to be tried")

    def _lengths(self) -> Iterator[dict[str, int]]:
        """For the leaves that are cut the length of their axes: several ways, the best first."""
        shapes = {path: leaf.shape for path, leaf in self.real.gradients.items()}
        small = small_leaves({path: shapes[path] for path in self.probed})
        for longest in _LENGTHS:
            lengths = {path: longest for path in shapes if path not in small}
            if num_entries(cut(self.real, lengths)) <= _MOST_CUT:
                yield lengths
        if num_entries(cut(self.real, {})) <= _MOST_REAL:
            yield {}

    def _doubtful(self, found: Moments, paths: set[str]) -> list[str]:
        """The leaves whose moments are read from arrays at some of the paths."""
        return [leaf for leaf, moment in found.items() if not paths.isdisjoint(self._read(moment))]

    def _read(self, moment: LeafMoment | None) -> set[str]:
        """The arrays that a moment is read from."""
        if moment is None:
            return set()
        paths = (moment.path, *rows_and_columns(moment.path), moment.mean, moment.count)
        return {path for path in paths if path in self.real.state}

    def _of_larger(
        self,
        found: Moments,
        doubtful: list[str],
        lengths: dict[str, int],
        expected: Outputs,
        expressions: Expressions,
    ) -> Moments:
        """The moments, if larger stand-ins of the doubtful leaves do what the real leaves do.

        Where doubtful leaves are treated alike but for their shapes, the first is made larger, and
        what is found for it must hold for all.
        """
        first: dict[Hashable, str] = {}
        all_ways = ways(self.real)
        stands_for = {leaf: first.setdefault(all_ways[leaf], leaf) for leaf in doubtful}
        lengths = lengths | dict.fromkeys(first.values(), _FACTORED)
        shapes = cut(self.real, lengths)
        if num_entries(shapes) > 2 * _MOST_CUT:
            self._reject(found, doubtful)
        program = attempt(trace, self.tx, shapes)
        wrong = different(expressions.read(program), expected, expressions)
        found = self._held(examine(program, scope_of(program, self.probed)))
        still = self._doubtful({leaf: found[leaf] for leaf in first.values()}, wrong)
        pairs = stands_for.items()
        if still or any(_law(found[one]) != _law(found[other]) for one, other in pairs):
            self._reject(found, still or doubtful)
        return found

    def _held(self, found: Moments) -> Moments:
        """The moments, "factored" where the real state holds means over rows and columns."""
        return {leaf: moment and self._as_held(leaf, moment) for leaf, moment in found.items()}

    def _as_held(self, leaf: str, moment: LeafMoment) -> LeafMoment:
        shapes = {path: array.shape for path, array in self.real.state.items()}
        shape = self.real.gradients[leaf].shape
        if moment.whole or shapes[moment.path] == shape:
            return moment
        row, column = rows_and_columns(moment.path)
        is_factored = len(shape) >= 2 and (shapes.get(row), shapes.get(column)) == factored_shapes(
            shape
        )
        if is_factored and moment.kind in ("unbiased", "factored"):
            return moment._replace(kind="factored")
        held = f"opt_state{moment.path} of shape {shapes[moment.path]}"
        reject(f"{held} for parameters of shape {shape}")

    def _reject(self, found: Moments, doubtful: list[str]) -> NoReturn:
        path = next(m.path for leaf in doubtful if (m := found[leaf]) is not None)
        reject(
            f"opt_state{path}, which goes by the sizes of leaves or the places of entries, and "
            "leaves too large to be tried"
        )


def _law(moment: LeafMoment | None) -> LeafMoment | None:
    """What a moment is, wherever it lies."""
    return moment and moment._replace(path="", mean=None, count=None)
