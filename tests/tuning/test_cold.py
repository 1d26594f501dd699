"""The temperature without validation data: a law of γ, ten times less for a diagonal."""

import jax.numpy as jnp
import numpy as np
import pytest

import l2m_optax as l2m

NU = {"a": np.array([[0.3, 1.0], [2.0, 0.0]], np.float32), "b": np.array([1.0, 0.2], np.float32)}
DELTA, N, BATCH, CLASSES = 4.0, 50, 5, 3
TURNED = l2m.moments.Basis(left=jnp.array([[0.6, -0.8], [0.8, 0.6]]), right=None)


def posterior_with(basis):
    moment = l2m.SecondMoment(nu=NU, basis=basis)
    params = {name: jnp.ones_like(nu) for name, nu in NU.items()}
    return l2m.laplace(params, moment, num_data=N, batch_size=BATCH, prior_precision=DELTA)


def gamma(name):
    f = NU[name] * N * BATCH * (N - 1) / (N - BATCH)
    return np.sum(f / (f + DELTA))


@pytest.mark.parametrize(
    ("basis", "weights"),
    [
        (None, {"a": 0.1, "b": 0.1}),
        ({"a": TURNED, "b": None}, {"a": 1.0, "b": 0.1}),
        ({"a": TURNED, "b": TURNED}, {"a": 1.0, "b": 1.0}),
        ({"a": l2m.moments.Basis(None, None), "b": None}, {"a": 0.1, "b": 0.1}),
    ],
    ids=["diagonal", "mixed", "in bases", "bases that turn nothing"],
)
def test_a_diagonal_counts_ten_times(basis, weights):
    expected = 0.1 * sum(weight * gamma(name) for name, weight in weights.items()) / (N * CLASSES)
    found = l2m.tuning.cold_temperature(posterior_with(basis), CLASSES)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(("basis", "most"), [(None, 0.01), ({"a": TURNED, "b": TURNED}, 0.1)])
def test_more_parameters_than_numbers_make_it_no_higher(basis, most):
    posterior = posterior_with(basis)._replace(num_data=1)
    np.testing.assert_allclose(l2m.tuning.cold_temperature(posterior, 2), most, rtol=1e-6)


def test_an_unknown_number_of_data_is_asked_for():
    with pytest.raises(ValueError, match=r"posterior.num_data: expected the number.*num_data=N"):
        l2m.tuning.cold_temperature(posterior_with(None)._replace(num_data=None), 2)
