"""No message prints more than a few values, however many it is about."""

import jax.numpy as jnp
import numpy as np
import pytest

import l2m_optax as l2m
from l2m_optax import decisions, metrics, plot
from l2m_optax._support import checks

MANY = jnp.linspace(0.1, 0.9, 900)
TREE = {f"layer_{i}": np.ones(i + 1) for i in range(300)}  # of NumPy: jax compiles each shape

LONG = {
    "auroc of two scores": lambda: metrics.auroc(MANY, MANY),
    "aupr of two scores": lambda: metrics.aupr(MANY, MANY),
    "fpr_at_95_tpr of two scores": lambda: metrics.fpr_at_95_tpr(MANY, MANY),
    "a quantile for each input": lambda: decisions.conformal_set(jnp.ones((900, 1)), MANY),
    "a negative quantile for each input": lambda: decisions.conformal_interval(
        l2m.regression(jnp.zeros((2, 900)), 1.0), -MANY
    ),
    "a risk for each input": lambda: decisions.selective_threshold(MANY, MANY, risk=-MANY),
    "negative prior precisions": lambda: l2m.laplace(
        {"w": MANY},
        l2m.SecondMoment(nu={"w": MANY}),
        num_data=100,
        batch_size=10,
        prior_precision={"w": -MANY},
    ),
    "inputs of many lengths": lambda: checks.check_batched(TREE),
    "negative entropies": lambda: plot.entropy_histogram(-MANY, MANY),
}


@pytest.mark.parametrize("case", LONG)
def test_a_message_is_short(case):
    with pytest.raises(ValueError, match=r": expected .+, got .+; .+") as caught:
        LONG[case]()
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], "none"),
        ([2], "2"),
        (["a", "b", "c"], "a, b, c"),
        (range(1, 101), "1, 2, 3 and 97 more"),
        (np.array([0.5, 1 / 3], np.float32), "0.5, 0.3333"),
    ],
)
def test_few_values_stand_for_many(values, expected):
    assert checks.few(values) == expected
