"""Running a transformation on known gradients, in float64.

Several runs are made, with gradients a millionfold smaller and larger, so that whatever depends on
their size, as clipping does, treats the runs differently.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np

from l2m_optax.moments._identification.disturb import disturbed
from l2m_optax.moments._identification.places import sampled, thinned
from l2m_optax.moments._identification.plan import Plan
from l2m_optax.moments._identification.trace import Program

# Until 0.8 it was in jax.experimental.
enable_x64: Any = (jax if hasattr(jax, "enable_x64") else jax.experimental).enable_x64

MOST_MICRO_STEPS = 64
"""Calls after which a transformation that gathers gradients is given up."""
_MOST_KEPT = 2**17
"""Entries of all parameters together that are kept; of more, which are rare, samples are."""

Arrays = dict[str, np.ndarray]


class Probe(NamedTuple):
    """What a transformation did. Every array has the runs on its second axis.

    Attributes:
      states: for each path into the state, its values before the first and after every update,
        of shape (updates + 1, runs, ...).
      means: for each path into the parameters, the gradient of every update, averaged over its
        micro-steps, of shape (updates, runs, ...).
      lasts: the same for the last micro-step alone.
      micro_steps: calls that make one update.
      moving: paths at which something changed before the last micro-step of an update.
      waits: whether gradients were gathered until `MOST_MICRO_STEPS`, and no update came.
    """

    states: Arrays
    means: Arrays
    lasts: Arrays
    micro_steps: int
    moving: frozenset[str]
    waits: bool = False


class Scope(NamedTuple):
    """What of a program is probed.

    Attributes:
      state: paths into the state; what they depend on must be among them.
      leaves: paths of the parameters whose gradients are recorded.
    """

    state: frozenset[str]
    leaves: frozenset[str]


def everything(program: Program) -> Scope:
    """The scope that leaves nothing out."""
    return Scope(frozenset(program.state), frozenset(program.gradients))


_PLAN = Plan()


def record(program: Program, scope: Scope, *, size: float = 1.0, plan: Plan = _PLAN) -> Probe:
    """Run a transformation on random gradients, with parameters of 1.

    Args:
      program: the transformation on leaves of given shapes.
      scope: what is recorded.
      size: the value of the parameters: 0 shows what weight decay does to a moment.
      plan: what gradients are given.

    Returns:
      The `Probe`.
    """
    run = _runner(program, scope, size, plan.places)
    found = _micro_steps(run)
    records = [_one_run(run, number, found or 1, plan) for number in range(len(plan.scales))]
    names = [run.names[i] for i in run.numbers]
    means = dict(zip(run.leaves, _together(r.means for r in records), strict=True))
    lasts = dict(zip(run.leaves, _together(r.lasts for r in records), strict=True))
    return Probe(
        dict(zip(names, _together(r.states for r in records), strict=True)),
        means,
        lasts,
        found or 1,
        frozenset(names[i] for r in records for i in r.moving),
        found is None,
    )


class _Runner(NamedTuple):
    """A program made ready to run.

    Attributes:
      state: the first values of the leaves of the state that are updated.
      step: ``state, gradients -> state``, of leaves.
      names: the paths of these leaves.
      numbers: the indices of those that are numbers; keys of random generators are none.
      shapes: the shapes of all gradients.
      leaves: the paths of the gradients that are recorded, with their indices.
      keep: what is recorded of an array.
    """

    state: list[Any]
    step: Callable[[list[Any], list[np.ndarray]], list[Any]]
    names: list[str]
    numbers: list[int]
    shapes: list[tuple[int, ...]]
    leaves: dict[str, int]
    keep: Callable[[np.ndarray], np.ndarray]

    def snapshot(self, state: list[Any]) -> list[np.ndarray]:
        """The values of the numbers in a state."""
        return [self.keep(np.asarray(state[i])) for i in self.numbers]

    def kept(self, flat: np.ndarray) -> list[np.ndarray]:
        """The gradients that are recorded, out of all in one vector."""
        split = self.split(flat)
        return [self.keep(split[i]) for i in self.leaves.values()]

    def much_later(self, state: list[Any], states: list[list[np.ndarray]], jump: int) -> list[Any]:
        """The state with its counts ahead; see `disturbed`."""
        gradients = {path: self.shapes[i] for path, i in self.leaves.items()}
        numbers = {self.names[i]: i for i in self.numbers}
        return disturbed(state, numbers, states[:2], gradients, jump)

    def split(self, flat: np.ndarray) -> list[np.ndarray]:
        """The gradients of all leaves, out of one vector."""
        ends = [0, *accumulate(math.prod(shape) for shape in self.shapes)]
        parts = zip(ends[:-1], ends[1:], self.shapes, strict=True)
        return [flat[start:end].reshape(shape) for start, end, shape in parts]


def _runner(program: Program, scope: Scope, size: float, places: int | None) -> _Runner:
    params = [size * jnp.ones(p.shape) for p in program.params.values()]
    first = jax.tree.leaves(program.init(program.treedef.unflatten(params)))
    updated = {i: path for i, path in enumerate(program.state) if path in scope.state}
    function = jax.extend.core.jaxpr_as_fun(program.closed)

    @jax.jit
    def following(state: list[Any], gradients: list[Any], params: list[Any]) -> list[Any]:
        whole = list(first)
        for i, leaf in zip(updated, state, strict=True):
            whole[i] = leaf
        after = function(*whole, *gradients, *params)[len(first) :]
        return [after[i] for i in updated]  # what is not asked for is not compiled

    state = [first[i] for i in updated]
    shapes = [g.shape for g in program.gradients.values()]
    total = sum(math.prod(shape) for shape in shapes)
    most = _MOST_KEPT if total <= _MOST_KEPT else max(64, _MOST_KEPT // len(shapes))
    return _Runner(
        state,
        lambda state, gradients: following(state, gradients, params),
        list(updated.values()),
        [i for i, leaf in enumerate(state) if jnp.issubdtype(leaf.dtype, jnp.number)],
        shapes,
        {path: i for i, path in enumerate(program.gradients) if path in scope.leaves},
        partial(sampled, most=most) if places is None else partial(thinned, places=places),
    )


class _Run(NamedTuple):
    """What one run left: for every update the arrays that are recorded."""

    states: list[list[np.ndarray]]
    means: list[list[np.ndarray]]
    lasts: list[list[np.ndarray]]
    moving: set[int]


def _together(runs: Iterator[list[list[np.ndarray]]]) -> Iterator[np.ndarray]:
    """For every array its values in all updates and runs, of shape (updates, runs, ...)."""
    by_update = zip(*runs, strict=True)
    by_array = zip(*(zip(*of_runs, strict=True) for of_runs in by_update), strict=True)
    return (np.array(array) for array in by_array)


def _one_run(run: _Runner, number: int, micro_steps: int, plan: Plan) -> _Run:
    state, record = run.state, _Run([run.snapshot(run.state)], [], [], set())
    for update, size in enumerate(plan.sizes):
        if update in plan.jumps:
            state = run.much_later(state, record.states, plan.jumps[update])
        started = run.snapshot(state) if micro_steps > 1 else []
        total: Any = 0.0
        for micro in range(micro_steps):
            if micro and micro == micro_steps - 1:
                record.moving.update(_changed(started, run.snapshot(state)))
            gradients = size * plan.scales[number] * _gradients(run, number, update, micro)
            total = total + gradients
            state = run.step(state, run.split(gradients))
        record.states.append(run.snapshot(state))
        record.means.append(run.kept(total / micro_steps))
        record.lasts.append(run.kept(gradients))
    return record


def _changed(before: list[np.ndarray], after: list[np.ndarray]) -> set[int]:
    pairs = enumerate(zip(before, after, strict=True))
    return {i for i, (old, new) in pairs if not np.array_equal(old, new)}


def _gradients(run: _Runner, number: int, update: int, micro: int) -> np.ndarray:
    """The gradients of one call in a run, those of all leaves in one vector.

    No entry is near 0, all differ, and some are negative: an absolute value or a sum would show.
    The sum over the micro-steps of an update is not near 0 either, for there the rounding of what
    gathers them in float32 would be large: all have one sign, but for every second, a small one.
    """
    total = sum(math.prod(shape) for shape in run.shapes)
    signs = np.random.default_rng((number, update)).choice([-1.0, 1.0], total)
    rng = np.random.default_rng((number, update, micro))
    if micro % 2:
        signs = rng.choice([-1.0, 1.0], total) / 16.0
    return rng.uniform(0.25, 2.0, total) * signs


def _micro_steps(run: _Runner) -> int | None:
    """Calls until the state has moved in some array by what is quadratic in the gradient.

    1 where no array of the state waits for more calls, `None` where no number of calls is enough.
    """
    flat = _gradients(run, 0, 0, 0)
    sizes = [run.split(size * flat) for size in (1.0, 1e-6, 0.0)]
    states, before = [run.state] * len(sizes), run.snapshot(run.state)
    for step in range(1, MOST_MICRO_STEPS + 1):
        states = [run.step(s, g) for s, g in zip(states, sizes, strict=True)]
        after = [run.snapshot(state) for state in states]
        # What an array started from may fade by itself, as it does without any gradient.
        if any(
            _is_quadratic(x - base, y - base)
            for n, x, y, z in zip(before, *after, strict=True)
            for base in (n, z)
        ):
            return step
        if step == 1 and not _waits(before, after[0]):
            return 1
    return None


def _waits(before: list[np.ndarray], after: list[np.ndarray]) -> bool:
    """Whether gradients may be gathered: some floating array of the state has not moved yet."""
    pairs = zip(before, after, strict=True)
    return any(n.ndim and _is_float(n) and np.array_equal(n, m) for n, m in pairs)


def _is_quadratic(large: np.ndarray, small: np.ndarray) -> bool:
    """Whether gradients a millionfold larger changed an array about 10^12 times as much."""
    if not _is_float(large) or not np.all(np.isfinite(large)) or not np.any(small):
        return False
    return bool(1e9 < np.abs(large).max() / np.abs(small).max() < 1e15)


def _is_float(array: np.ndarray) -> bool:
    return bool(jnp.issubdtype(array.dtype, jnp.floating))
