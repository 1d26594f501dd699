"""Which leaves of the parameters a transformation treats alike, so that one stands for them all."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping

from l2m_optax.moments._identification.expressions import Expressions, Outputs
from l2m_optax.moments._identification.probe import Scope
from l2m_optax.moments._identification.trace import Program, owner, renamed
from l2m_optax.moments._identification.verdict import LeafMoment, Moments

Owner = Callable[[str, Collection[str]], str | None]
"""Which leaf the array at a path belongs to, as `owner` says it."""


def ways(program: Program, owner: Owner = owner) -> dict[str, Hashable]:
    """For every leaf how its arrays of the state come about; equal for leaves treated alike.

    Leaves of other shapes may have equal ways. A leaf without arrays, or whose arrays depend on
    other leaves, has a way of its own.
    """
    leaves, exact = program.gradients, Expressions()

    def role(path: str) -> str:
        return renamed(path, owner(path, leaves) or "", "")

    owned = _dependencies(exact.read(program), exact, leaves, owner)
    numbers = Expressions().read(program, role)
    held: dict[str, list[str]] = {leaf: [] for leaf in leaves}
    for path in program.state:
        if (leaf := owner(path, leaves)) is not None:
            held[leaf].append(path)
    return {
        leaf: tuple(sorted((role(path), numbers[path]) for path in paths))
        if paths and all(owned[path] <= {leaf} for path in paths)
        else leaf
        for leaf, paths in held.items()
    }


def _dependencies(
    outputs: Outputs, expressions: Expressions, leaves: Collection[str], owner: Owner
) -> dict[str, frozenset[str]]:
    """The leaves that each array of the state depends on; two stand for any larger number."""
    of: list[frozenset[str]] = []
    for label, operands in expressions.parts:
        own = owner(label[1], leaves) if label[0] in ("state", "gradient", "params") else None
        several = frozenset(() if own is None else (own,)).union(*(of[i] for i in operands))
        of.append(frozenset(sorted(several)[:2]))
    return {path: of[number] for path, number in outputs.items()}


def representatives(program: Program, owner: Owner = owner) -> dict[str, str]:
    """For every leaf the first one of its shape that is treated like it."""
    first: dict[Hashable, str] = {}
    keys = {
        leaf: (way, program.gradients[leaf].shape) for leaf, way in ways(program, owner).items()
    }
    return {leaf: first.setdefault(key, leaf) for leaf, key in keys.items()}


def scope_of(program: Program, leaves: frozenset[str], owner: Owner = owner) -> Scope:
    """The arrays of some leaves, those of none, and all that they depend on."""
    expressions = Expressions()
    outputs = expressions.read(program)
    state = {path for path in outputs if owner(path, program.gradients) in {None, *leaves}}
    while True:
        more = expressions.inputs(outputs[path] for path in state) - state
        if not more:
            return Scope(frozenset(state), leaves)
        state |= more


def of_all(found: Moments, stands_for: Mapping[str, str]) -> Moments:
    """The moments of all leaves, from those of the leaves that stand for them."""
    return {leaf: _of(leaf, other, found[other]) for leaf, other in stands_for.items()}


def _of(leaf: str, other: str, moment: LeafMoment | None) -> LeafMoment | None:
    """The moment of a leaf that is treated like another one."""
    if moment is None or moment.whole:
        return moment
    return moment._replace(
        path=renamed(moment.path, other, leaf),
        mean=moment.mean and renamed(moment.mean, other, leaf),
        matrices=tuple(path and renamed(path, other, leaf) for path in moment.matrices),
    )
