"""Temperature 0 is taken exactly where no other one predicts better."""

import jax.numpy as jnp
import numpy as np

from l2m_optax._support.search import zoom
from l2m_optax.tuning._mode import judge, temperature_after


def test_a_temperature_inside_its_bounds_may_be_worse_than_the_mode():
    grid = jnp.linspace(-3.0, 3.0, 7)
    best = zoom(lambda axes: jnp.square(axes[0]) + 1.0, [grid], 3)
    for mode_loss, wins in ((0.9, True), (1.0, True), (1.1, False), (jnp.nan, False)):
        verdict = judge(best, jnp.float32(mode_loss))
        assert bool(verdict.mode) is wins
        assert not verdict.lost
        found = temperature_after(verdict, best.point[0], 7.0)
        np.testing.assert_allclose(found, 0.0 if wins else 1.0, atol=1e-5)
