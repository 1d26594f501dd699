"""Write docs/optimizers.md from the table that the tests hold true: `make docs-optimizers`."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests"))

from optimizers import CORRECTED, MATRICES, READ, REFUSED  # noqa: E402

INTRODUCTION = """\
# What each optimizer holds

`make docs-optimizers` makes this page from `tests/optimizers.py`; every row is a test. The verdicts
are those of `identify`. It runs the optimizer on known gradients and does not look at names.
`laplace(..., tx=tx)`, `second_moment(opt_state, params, tx=tx)` and `expose_second_moment(tx)`
follow these verdicts. "Corrected" means that the state does not hold a plain mean of squares of
every leaf, and that the library corrects for this.

Without `tx`, only states whose type says what they hold are read. adamax, yogi and adopt keep their
states in Adam's own type. So this type is refused until you pass `tx`, or pass `decay`, with which
you state that the array is a mean of squares.

For an optimizer that is refused, track the second moment beside it:
`optax.chain(l2m.track_second_moment(0.999), tx)`.

| optimizer | verdict | what its state holds |
|---|---|---|
"""

OTHERS = """
## Optimizers that keep matrices

They are found by what they do, too. `identify` looks for orthogonal matrices in which an array of
the state follows the squares of the gradients, and for means and sums of products of the gradient
with itself. The moment that is read then has a basis (`moments.Basis`), and the posterior has
correlations. Axes that have a matrix are cut for that, so that long ones cost no more. A leaf may
be a stack of matrices, see below.

| optimizer | verdict | what its state holds |
|---|---|---|
"""
NOTES = """
The tests hold these rows for programs written from the papers, and for the kron of psgdax. PyPI has
no soap-jax, ivon-optax or blrax; distributed-kron 2.0.0, psgd-jax 0.2.9, precondition-opt 0.3.0,
optax-shampoo 0.0.6 and kfac-jax 0.0.8 fail with JAX 0.10 and optax 0.2.8 when they are imported or
first run.

**SOAP's older squares belong to older bases.** The basis is turned every few steps, and a square
stays as it was taken. Nothing in the state can undo this. It matters little where the basis hardly
moves while the mean looks back. `make bench-soap` compares the moment that is read with that of the
same gradients in the last basis alone, on the digits of scikit-learn. The sum of the moment is
right in any case.

```{include} ../benchmarks/results/soap.md
```

Most output variances come out too small: where directions were mixed, their moments are too equal.
`l2m.track_second_moment(0.999, structure="kronecker")` has no such error. It keeps products, and
takes their basis at the end.

**Stacks.** `jax.lax.scan` over layers and `nn.scan` have L matrices in one leaf of shape (L, m, n).
An optimizer that treats each matrix by itself keeps squares of that shape, and bases of shapes
(L, m, m) and (L, n, n). The moment that is read is that of the L matrices, each in its own basis.
There may be several leading axes, as for layers of experts. If the whole optimizer is mapped, its
counts are stacks too. Then pass the mapped one:

    tx = optax.GradientTransformation(jax.vmap(soap.init), jax.vmap(soap.update))

The bases show what the axes of a leaf are. An optimizer may also fold the same leaf into one matrix
of shape (L·m, n), or keep three bases, one for each axis. Both are read. Three bases become two,
because the Kronecker product of two bases is one: (L, L) and (m·n, m·n), or (L·m, L·m) and (n, n),
whichever takes less memory. These are refused: a stack of bases for one side and a single basis for
the other, layers that are updated at different steps, and blocks of a matrix with a basis each.
`l2m.track_second_moment(0.999, structure=l2m.transforms.Stacked("kronecker"))` in front has a basis
for each matrix of a stack beside any optimizer.

**Shampoo's sums** never forget where it has no decay: they hold the large gradients of the first
steps too, as adagrad's do. With a decay, Shampoo is read like a tracked Kronecker structure. A leaf
with a factor for one side only is refused: it does not say how the squares lie on the other side.

**IVON** has a posterior of its own scale. Its precision is λ(h + δ), with its effective sample size
λ, its Hessian h and its weight decay δ. A batch size of 1 leaves h as it is:

    moment = l2m.SecondMoment(opt_state[0].hess)
    l2m.laplace(params, moment, num_data=ess, batch_size=1, prior_precision=ess * weight_decay)

A Hessian below 0 is refused. IVON only keeps h + δ above 0, so that entries which data hardly
determine may be below it. EVON keeps such a Hessian in a basis, which would be a `moments.Basis` of
its two matrices; its program could not be had, so no test shows that.

**kfac-jax** draws labels from the model and takes means over examples. The factors of a dense layer
without a bias have eigenvalues a and s, and eigenvectors A and S: the same call takes
`SecondMoment(outer(a, s), basis=moments.Basis(A, S))` with `batch_size=1` and the number of
examples. A bias is one more input in its factor, for which a kernel's basis has no row.
"""


def rows(verdicts: dict[str, tuple[str, str]]) -> str:
    """The lines of a table, by name."""
    lines = (
        f"| {name} | {verdict} | {text} |" for name, (verdict, text) in sorted(verdicts.items())
    )
    return "\n".join(lines) + "\n"


def table() -> str:
    """The page."""
    found = {name: ("read", f"a mean of squares with decay {d:g}") for name, d in READ.items()}
    found |= {name: ("corrected", text) for name, text in CORRECTED.items()}
    found |= {name: ("refused", text) for name, text in REFUSED.items()}
    return INTRODUCTION + rows(found) + OTHERS + rows(MATRICES) + NOTES


if __name__ == "__main__":
    (ROOT / "docs" / "optimizers.md").write_text(table(), encoding="utf-8")
