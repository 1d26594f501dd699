"""What predictions say of themselves: classes, the most probable ones, deviations, intervals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from l2m_optax.predict import Classification, Regression

PROBS = jnp.array([[[0.1, 0.6, 0.3], [0.5, 0.2, 0.3]]])  # (1, 2, 3)
ZERO = jnp.zeros((1, 2))
CLASSES = Classification(PROBS, ZERO, ZERO, ZERO)
MEAN, TOTAL = jnp.array([[1.0], [-2.0]]), jnp.array([[4.0], [0.25]])
NUMBERS = Regression(MEAN, TOTAL, 0.5 * TOTAL, 0.5 * TOTAL)


def test_prediction_is_the_most_probable_class():
    assert CLASSES.prediction.tolist() == [[1, 0]]
    assert jnp.issubdtype(CLASSES.prediction.dtype, jnp.integer)


def test_top_k_is_a_sort():
    for k in (1, 2, 3):
        probs, classes = CLASSES.top_k(k)
        order = np.argsort(-np.asarray(PROBS), axis=-1)[..., :k]
        np.testing.assert_array_equal(classes, order)
        np.testing.assert_array_equal(probs, np.take_along_axis(np.asarray(PROBS), order, -1))


def test_nan_is_no_class():
    broken = CLASSES._replace(probs=PROBS.at[0, 1, 2].set(jnp.nan))
    assert broken.prediction.tolist() == [[1, -1]]
    probs, classes = broken.top_k(2)
    assert classes.tolist() == [[[1, 2], [-1, -1]]]
    assert np.isnan(probs[0, 1]).all()
    assert not np.isnan(probs[0, 0]).any()


@pytest.mark.parametrize("level", [0.5, 0.9, 0.99, 1 - 1e-6])
def test_the_interval_is_scipys(level):
    low, high = NUMBERS.interval(level)
    wanted = stats.norm(np.asarray(MEAN), np.sqrt(np.asarray(TOTAL))).interval(level)
    np.testing.assert_allclose((low, high), wanted, rtol=2e-6)


def test_the_interval_holds_nine_in_ten_by_default():
    np.testing.assert_array_equal(NUMBERS.interval(), NUMBERS.interval(0.9))


def test_std_is_of_a_new_observation():
    np.testing.assert_allclose(NUMBERS.std, [[2.0], [0.5]])


def test_under_jit_and_vmap():
    np.testing.assert_array_equal(jax.jit(lambda p: p.top_k(2)[1])(CLASSES), CLASSES.top_k(2)[1])
    low, _ = jax.jit(jax.vmap(lambda p: p.interval(0.9)))(NUMBERS)
    np.testing.assert_allclose(low, NUMBERS.interval(0.9)[0], rtol=1e-6)
    assert jax.tree.structure(CLASSES).num_leaves == 4


@pytest.mark.parametrize("k", [0, -1, 4])
def test_a_k_that_cannot_be_is_refused(k):
    with pytest.raises(ValueError, match=r"k: expected at (least 1|most the 3 classes)"):
        CLASSES.top_k(k)
    with pytest.raises(TypeError, match="k: expected an integer"):
        CLASSES.top_k(1.0)


@pytest.mark.parametrize("level", [0.0, 1.0, 90, -0.1, float("nan")])
def test_a_level_that_cannot_be_is_refused(level):
    with pytest.raises(ValueError, match="level: expected"):
        NUMBERS.interval(level)
