"""At fixed weights F must not depend on the batch size; micro-batches keep it so at any size."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import l2m_optax as l2m

MICRO, STEPS, DECAY = 8, 4_000, 0.999


def gathered(data, w, batch_size):
    """The moments of whole batches and of micro-batches of 8, at learning rate 0."""
    whole = optax.scale_by_adam(b1=0.99, b2=DECAY)
    micro = l2m.track_second_moment(DECAY)

    def step(states, batch):
        x, y = data.x[batch], data.y[batch]
        each = -x * (y - x @ w)[:, None]
        grads = jnp.mean(each.reshape(-1, MICRO, len(w)), axis=1)
        _, one = whole.update(jnp.mean(grads, axis=0), states[0], w)
        _, two = micro.update(jnp.mean(grads, axis=0), states[1], w, moment_updates=grads)
        return (one, two), None

    everyone = np.tile(np.arange(len(data.y)), (STEPS, 1))
    batches = np.random.default_rng(batch_size).permuted(everyone, axis=1)[:, :batch_size]
    (one, two), _ = jax.jit(lambda *args: jax.lax.scan(step, *args))(
        (whole.init(w), micro.init(w)), batches
    )
    return l2m.second_moment(one, w, tx=whole), l2m.second_moment(two, w)


def total(w, moment, **kwargs):
    return float(
        jnp.sum(l2m.posterior.data_precision(l2m.laplace(w, moment, num_data=2000, **kwargs)))
    )


@pytest.mark.parametrize("away", [0.0, 0.3], ids=["mode", "away"])
def test_total_of_f_does_not_depend_on_the_batch_size(regression, away):
    mode = jnp.linalg.lstsq(regression.x, regression.y)[0]
    w = mode + away
    whole, centered, micro = [], [], []
    for batch_size in (8, 64, 512):
        moment, tracked = gathered(regression, w, batch_size)
        whole.append(total(w, moment, batch_size=batch_size))
        centered.append(total(w, moment, batch_size=batch_size, centered=True))
        micro.append(total(w, tracked, batch_size=MICRO))
    assert max(micro) / min(micro) < 1.1
    assert max(centered) / min(centered) < 1.6
    grows = max(whole) / min(whole)
    assert grows > 3.0 if away else grows < 1.2
    per_example = np.asarray(regression.x * (regression.y - regression.x @ w)[:, None], np.float64)
    exact = np.sum(np.square(per_example))
    if not away:
        np.testing.assert_allclose(micro, exact, rtol=0.1)
