"""A network around its mean, one example at a time: what the exact variances are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from l2m_optax._support.checks import complaint
from l2m_optax._support.trees import fill
from l2m_optax._support.types import ApplyFn, Array, PyTree
from l2m_optax.jacobians._factors import factors, run_perturbed, weights
from l2m_optax.jacobians._program import Program, trace
from l2m_optax.jacobians._reach import Reach, Reached, find_reach
from l2m_optax.jacobians._uses import FullGradient, SingleUse, find_uses
from l2m_optax.moments._basis import bases
from l2m_optax.posterior._posterior import Posterior, free_mean
from l2m_optax.predict._in_bases import use_in_basis, way_in_basis
from l2m_optax.predict._outputs import check_outputs


class Jacobian(NamedTuple):
    """The Jacobian of one example's outputs, unevaluated.

    Attributes:
      program: outputs of one example from the free leaves.
      uses: how the squared Jacobian of each of these leaves, in its basis, is computed.
      shape: of one example's outputs.
    """

    program: Program
    uses: Sequence[SingleUse | FullGradient | Reach]
    shape: tuple[int, ...]

    @property
    def pulled(self) -> bool:
        """Whether a leaf needs cotangents."""
        return not all(isinstance(use, Reach) for use in self.uses)

    @property
    def entries(self) -> int:
        """About how many numbers exist at a time for each example and cotangent."""
        sizes = [v.aval.size for e in self.program.jaxpr.eqns for v in e.outvars]
        return sum(use.size for use in self.uses) + max(sizes, default=0)


def any_reach(reach: Reach) -> bool:
    """Variances need no cotangent of any leaf that reaches the outputs by moves alone."""
    del reach
    return True


def separate_reach(reach: Reach) -> bool:
    """Covariances need it where weights meet several entries of what they are multiplied to."""
    return reach.separate


def jacobian_of(
    apply_fn: ApplyFn,
    posterior: Posterior,
    inputs: PyTree,
    spares: Callable[[Reach], bool],
) -> Jacobian:
    """The Jacobian with respect to the free leaves, traced for one of `inputs`.

    Args:
      apply_fn: as in `output_variance`.
      posterior: whose free leaves are meant.
      inputs: as in `output_variance`.
      spares: whether a leaf's way to the outputs spares its cotangents.

    Raises:
      TypeError: if the outputs are no single real floating-point array.
      ValueError: if they have no batch axis.
    """
    mean = free_mean(posterior)
    leaves, treedef = jax.tree.flatten(mean)
    shape: list[tuple[int, ...]] = []

    def outputs_of(leaves: list[Array], example: PyTree) -> Array:
        batch = jax.tree.map(lambda x: x[None], example)
        params = fill(jax.tree.unflatten(treedef, leaves), posterior.mean)
        outputs = apply_fn(params, batch)
        _check_one_row(check_outputs(outputs))
        shape.append(outputs.shape[1:])
        return jnp.ravel(outputs)

    example = jax.eval_shape(lambda: jax.tree.map(lambda x: x[0], inputs))
    program = trace(outputs_of, leaves, example)
    found = find_uses(program, len(leaves))
    variables = program.jaxpr.invars[: len(leaves)]
    uses: list[SingleUse | FullGradient | Reach] = []
    for leaf, use, one in zip(
        variables, found, bases(posterior.second_moment.basis, mean), strict=True
    ):
        way = way_in_basis(program.jaxpr, leaf, find_reach(program, leaf), one)
        if way is not None and spares(way):
            uses.append(way)
        else:
            uses.append(use_in_basis(program.jaxpr, leaf, use, one))
    return Jacobian(program, uses, shape[0])


class Linearised(NamedTuple):
    r"""The Jacobian at one example, in two parts.

    The entry $(k, l)$ of $J \Sigma J^\top$ is $\sum_i r_i(k)^\top \mathrm{diag}(s_i)\, r_i(l)$
    over the leaves that need cotangents, and what is reached of the others.

    Attributes:
      factors_of: from the unit vector of any output k the factors r(k), one for each of these
        leaves.
      weights: s, in their shapes.
      reached: what the outputs have of the other leaves.
      outputs: of the example, flat.
    """

    factors_of: Callable[[Array], list[Array]]
    weights: list[Array]
    reached: list[Reached]
    outputs: Array


def at(
    jacobian: Jacobian, leaves: Sequence[Array], variances: Sequence[Array], example: PyTree
) -> Linearised:
    """The Jacobian at one example, from the free leaves and their variances in their bases."""
    program, uses = jacobian.program, jacobian.uses
    outputs, pull, residuals = jax.vjp(
        lambda perturbations: run_perturbed(
            program, uses, leaves, perturbations, jax.tree.leaves(example)
        ),
        [use.perturbation(leaf) for use, leaf in zip(uses, leaves, strict=True)],
        has_aux=True,
    )
    triples = list(zip(uses, variances, residuals, strict=True))
    pulled = [i for i, use in enumerate(uses) if not isinstance(use, Reach)]
    through: list[Any] = [uses[i] for i in pulled]
    kept = [residuals[i] for i in pulled]

    def factors_of(unit: Array) -> list[Array]:
        # On meshes with explicit axes the sharding is part of the type: that of the outputs.
        (cotangents,) = pull(jnp.zeros_like(outputs) + unit.astype(outputs.dtype))
        return factors(through, [cotangents[i] for i in pulled], kept)

    return Linearised(
        factors_of,
        weights(through, [variances[i] for i in pulled], kept),
        [use.reached(v, operands) for use, v, operands in triples if isinstance(use, Reach)],
        outputs,
    )


def _check_one_row(outputs: Array) -> None:
    if outputs.shape[:1] != (1,):
        got = f"shape {outputs.shape} for a single example"
        remedy = "keep the axis of examples in front: return an output for each"
        raise ValueError(complaint("apply_fn", "outputs with a batch axis", got, remedy))


@contextmanager
def explained() -> Iterator[None]:
    """Say of an error in a user's function where it came from.

    Raises:
      ValueError: if the function holds a tracer of another transformation.
    """
    try:
        yield
    except jax.errors.UnexpectedTracerError as error:
        got = "one that holds a tracer of another transformation"
        remedy = "pass what it needs with the params or the inputs"
        expected = "a function of params and inputs alone"
        raise ValueError(complaint("apply_fn", expected, got, remedy)) from error
    except Exception as error:
        error.add_note("raised while apply_fn(params, inputs) was traced on a batch of one example")
        raise
