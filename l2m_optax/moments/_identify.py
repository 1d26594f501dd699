"""`identify`: where an optimizer keeps its second moment, and what it is, found by running it.

The contract: what is reported reproduces, value by value, what the state held after gradients that
were chosen to tell a mean of squares from all that looks like one. Nothing goes by a class's name.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp

from l2m_optax._support.types import PyTree
from l2m_optax.moments._identification.attempt import check_transformation
from l2m_optax.moments._identification.memory import Memory
from l2m_optax.moments._identification.plain import plain_tracking
from l2m_optax.moments._identification.probe import enable_x64
from l2m_optax.moments._identification.real_shapes import moments_of
from l2m_optax.moments._identification.trace import gradient_tree
from l2m_optax.moments._identification.verdict import Identification

_VERDICTS: Memory[Identification] = Memory(64)


def identify(tx: Any, params: PyTree) -> Identification:
    r"""Run a transformation on a few known gradients and say what its second moment is.

    Several runs of random gradients, a millionfold smaller and larger among them, are made on
    parameters of 1, in float64, or in float32 if `tx` is written for that alone. Leaves of up to
    65,536 entries together are probed in their own shapes; larger ones are cut, and the program
    that JAX traces for the real shapes must be the same but for the lengths of axes: no number and
    no step in it may go by the size of a leaf or the place of an entry. Leaves that are treated
    alike are probed once. The counts jump far ahead during a run, so that schedules show. The
    verdict is remembered for the next call with the same `tx` and the same structure and shapes.

    An array $n$ of the state that lies at a parameter's path is its second moment if there are
    $d$, $c$ with

    $$n_t = d\, n_{t-1} + c\, g_t^2, \qquad c = r^2 (1 - d),$$

    for every entry, update and run. Then $\mathbb{E}[n_t] = r^2 (1 - d^t)\, \mathbb{E}[g^2]$. Sums,
    means whose weights sum to 1 from the first update on, means about the running mean, and means
    of extrapolated gradients are found the same way. If the state keeps matrices, such a law is
    also looked for in their bases, $n_t = d\, n_{t-1} + c\,(Q^\top g_t)^2$ with an orthogonal Q for
    each axis of the leaf (SOAP), and for products, $M_t = d\, M_{t-1} + c\, G_t G_t^\top$ for each
    axis (Shampoo); such arrays may move only at every k-th count. Leading axes of the leaf may
    number a stack of matrices, each with a Q or M of its own. A running maximum, a momentum or a
    moment of clipped, normalised or decayed gradients fits none of them.

    Args:
      tx: any optax transformation, or `optax.MultiSteps`.
      params: the parameters, or a tree of `jax.ShapeDtypeStruct` of them; their values do not
        matter. Large ones are run in their size, up to 4 million entries, only if `tx` runs on no
        smaller shapes.

    Returns:
      The `Identification`.

    Raises:
      TypeError: if `tx` keeps no second moment, or one that is none of the above; the message says
        which, as far as that can be found out, and what to do.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> import l2m_optax as l2m
      >>> found = l2m.identify(optax.adam(1e-3, b2=0.95), {"w": jnp.ones(3)})
      >>> moment = found.moments[0]
      >>> moment.path, moment.kind, round(moment.decay, 6), moment.count
      ("[0].nu['w']", 'mean', 0.95, '[0].count')
    """
    check_transformation(tx)
    return _VERDICTS.verdict(tx, params, _in_a_thread)


def _in_a_thread(tx: Any, params: PyTree) -> Identification:
    # JAX keeps per thread what it traces: in a new one the probe runs on numbers, inside jit too.
    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(_identify, tx, params).result()


def _identify(tx: Any, params: PyTree) -> Identification:
    leaves, treedef = jax.tree.flatten(gradient_tree(params))
    with enable_x64(True), plain_tracking():
        found = moments_of(tx, params)
    return Identification(tuple(found.values()), tuple(jnp.shape(p) for p in leaves), treedef)
