"""Running a transformation on known gradients, on small stand-ins for the parameters, in float64.

Several runs go side by side, their gradients a millionfold smaller and larger, so that whatever
bites at some size only, as clipping does, treats them differently.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from l2m_optax._support.checks import path_name
from l2m_optax._support.types import PyTree

# Until 0.8 it was in jax.experimental.
enable_x64: Any = (jax if hasattr(jax, "enable_x64") else jax.experimental).enable_x64

SCALES = (1.0, 1e-6, 1e6, 3.0, 0.3)
"""The size of the gradients of each run."""
SIZES = (1.0, 1.0, 2e-2, 1.0, 1e-4, 1.0, 0.5)
"""The size of the gradients of each update; the small ones make a mean fall, a maximum stay."""
JUMPS = {5: 1000, 6: 100_000}
"""By how much the counts jump ahead before an update: what is on a schedule shows it."""
_MOST_MICRO_STEPS = 64


class Probe(NamedTuple):
    """What a transformation did; every array has the runs in front.

    Attributes:
      states: for each path into the state, its values before the first and after every update,
        of shape (updates + 1, runs, ...).
      gradients: for each path into the parameters, the gradients of every micro-step, of shape
        (updates, micro-steps, runs, ...).
      moving: paths at which something changed before the last micro-step of an update.
    """

    states: dict[str, np.ndarray]
    gradients: dict[str, np.ndarray]
    moving: frozenset[str]


class Runner(NamedTuple):
    """A transformation on stand-ins, all runs at once.

    Attributes:
      state: the initial state, runs in front.
      step: ``state, gradients -> state``.
      like: the tree of the gradients.
    """

    state: PyTree
    step: Callable[[PyTree, PyTree], PyTree]
    like: PyTree


def gradient_tree(params: PyTree) -> PyTree:
    """The part of `params` that gradients are taken for: `optax.lookahead` keeps two copies."""
    return params.fast if isinstance(params, optax.LookaheadParams) else params


def extended(tx: Any) -> optax.GradientTransformationExtraArgs:
    """`tx` as a transformation that takes extra arguments; `optax.MultiSteps` is none itself."""
    if hasattr(tx, "gradient_transformation"):
        tx = tx.gradient_transformation()
    return optax.with_extra_args_support(tx)


def stand_ins(params: PyTree) -> PyTree:
    """Parameters of 1 with at most two entries an axis; they keep their number of axes."""
    return jax.tree.map(lambda p: np.ones((2,) * jnp.ndim(p)), params)


def runner(tx: Any, params: PyTree, size: float, **extra: Any) -> Runner:
    """`tx` made ready on `params` times `size`, which must be NumPy arrays."""
    transformation = extended(tx)
    params = jax.tree.map(lambda p: jnp.asarray(size * p, jnp.float64), params)
    like = gradient_tree(params)

    def update(state: PyTree, gradients: PyTree) -> PyTree:
        return transformation.update(gradients, state, params, **extra)[1]

    state = jax.tree.map(lambda x: jnp.stack([x] * len(SCALES)), transformation.init(params))
    return Runner(state, jax.jit(jax.vmap(update)), like)


def record(tx: Any, params: PyTree, *, size: float = 1.0, **extra: Any) -> Probe:
    """Run `tx` on random gradients.

    Args:
      tx: the transformation.
      params: the parameters, as NumPy arrays; see `stand_ins`.
      size: what the parameters are multiplied by: 0 shows what weight decay does to a moment.
      **extra: passed on to ``tx.update``.

    Returns:
      The `Probe`.
    """
    run = runner(tx, params, size, **extra)
    micro_steps = _micro_steps(run)
    gradients = _random_gradients(run.like, micro_steps)
    state, states = run.state, [_leaves(run.state)]
    moving: set[str] = set()
    for update in range(len(SIZES)):
        if update in JUMPS:
            state = _disturbed(state, states, run.like, JUMPS[update])
        started = _leaves(state) if micro_steps > 1 else {}
        for micro in range(micro_steps):
            if micro == micro_steps - 1 and micro:
                waited = _leaves(state)
                moving |= {p for p in started if not np.array_equal(started[p], waited[p])}
            state = run.step(state, jax.tree.map(lambda g: g[update, micro], gradients))  # noqa: B023
        states.append(_leaves(state))
    together = {path: np.stack([s[path] for s in states]) for path in states[0]}
    return Probe(together, _named(gradients), frozenset(moving))


def _disturbed(
    state: PyTree, states: list[dict[str, np.ndarray]], like: PyTree, jump: int
) -> PyTree:
    """The state much later: its counts ahead, and every number that it adapts another one.

    Prodigy's step size scales its moment and is constant at first, so no gradient shows it. What is
    injected stays, for a hyperparameter changes only if it is scheduled or the user changes it.
    """
    first, second = states[0], states[1]
    # What lies at a scalar parameter's path is its moment, and no number that the optimizer adapts.
    scalars = tuple(path for path, leaf in _named(like).items() if leaf.ndim == 0)

    def disturb(path: Any, leaf: Any) -> Any:
        name = path_name(path, "")
        if name not in first or leaf.ndim != 1 or ".hyperparams[" in name:
            return leaf
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf if name.endswith(scalars) else 1.5 * leaf
        return leaf + jump if np.all(second[name] - first[name] == 1) else leaf

    return jax.tree_util.tree_map_with_path(disturb, state)


def _random_gradients(like: PyTree, micro_steps: int) -> PyTree:
    rng = np.random.default_rng(0)

    def draw(leaf: Any) -> np.ndarray:
        shape = (len(SIZES), micro_steps, len(SCALES), *leaf.shape)
        scales = np.reshape(SCALES, (-1, *[1] * leaf.ndim))
        # No entry near 0, all different, either sign: an absolute value or a sum would show.
        sizes = np.reshape(SIZES, (-1, *[1] * (leaf.ndim + 2)))
        return rng.uniform(0.25, 2.0, shape) * rng.choice([-1.0, 1.0], shape) * scales * sizes

    return jax.tree.map(draw, like)


def _micro_steps(run: Runner) -> int:
    """Calls until the state has moved in some array by what is quadratic in the gradient."""
    constant = jax.tree.map(lambda g: g[0, 0], _random_gradients(run.like, 1))
    state, before = run.state, _leaves(run.state)
    for step in range(1, _MOST_MICRO_STEPS + 1):
        state = run.step(state, constant)
        after = _leaves(state)
        if any(_is_quadratic(after[path] - before[path]) for path in before):
            return step
        if step == 1 and not _accumulates(before, after):
            return 1
    return 1


def _accumulates(before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> bool:
    """Whether gradients may be gathered: some floating array of the state still waits."""
    waiting = [p for p in before if before[p].ndim and np.issubdtype(before[p].dtype, np.floating)]
    return any(np.array_equal(before[path], after[path]) for path in waiting)


def _is_quadratic(change: np.ndarray) -> bool:
    """Whether gradients a millionfold larger changed it about 10^12 times as much."""
    if not np.issubdtype(change.dtype, np.floating) or not np.all(np.isfinite(change)):
        return False
    sizes = np.abs(change).reshape(len(SCALES), -1).max(axis=1, initial=0.0)
    return bool(sizes[1] > 0 and 1e9 < sizes[0] / sizes[1] < 1e15)


def _leaves(state: PyTree) -> dict[str, np.ndarray]:
    """The numbers in a state by path; typed keys of random generators are left out."""
    named = _named(state)
    return {
        path: np.asarray(leaf)
        for path, leaf in named.items()
        if jnp.issubdtype(leaf.dtype, jnp.number)
    }


def _named(tree: PyTree) -> dict[str, Any]:
    return {path_name(p, ""): leaf for p, leaf in jax.tree_util.tree_leaves_with_path(tree)}
