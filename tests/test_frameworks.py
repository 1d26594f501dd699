"""The recipes of docs/frameworks.md run, and their posteriors are what they should be."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_readme import PYTHON_BLOCK, read, run_blocks

import l2m_optax as l2m

PAGE = read("docs/frameworks.md")
FIRST, *SECTIONS = re.split(r"^(?::::\{tab-item\}|## (?!From)) *", PAGE, flags=re.MULTILINE)


@pytest.mark.parametrize("section", SECTIONS, ids=[s.partition("\n")[0] for s in SECTIONS])
def test_recipe(section, monkeypatch):
    monkeypatch.setattr("test_readme.read", lambda name: FIRST + section)
    page = run_blocks("docs/frameworks.md")
    posterior, apply_fn, x, p = (page[name] for name in ("posterior", "apply_fn", "x", "p"))
    np.testing.assert_allclose(jnp.sum(p.probs, axis=-1), 1.0, atol=1e-5)
    assert float(jnp.mean(jnp.argmax(p.probs, axis=-1) == page["y"])) > 0.5
    assert float(jnp.min(p.epistemic)) >= 0.0
    assert float(jnp.mean(l2m.decisions.novelty(apply_fn, posterior, x))) > 1e-4
    few = x[:8]
    draws = l2m.linearized(jax.random.key(9), apply_fn, posterior, few, num_samples=4000)
    exact = l2m.output_variance(apply_fn, posterior, few)
    np.testing.assert_allclose(jnp.var(draws, axis=0), exact, rtol=0.2)


def test_every_recipe_has_a_block_of_its_own():
    assert all(PYTHON_BLOCK.search(section) for section in SECTIONS)


def test_a_network_that_looks_at_its_batch_is_refused():
    import flax.linen as nn

    model = nn.BatchNorm(use_running_average=False)
    x = jax.random.normal(jax.random.key(0), (16, 3))
    variables = model.init(jax.random.key(1), x)
    moment = l2m.SecondMoment(nu=jax.tree.map(jnp.ones_like, variables["params"]))
    posterior = l2m.laplace(variables["params"], moment, num_data=100, batch_size=10)

    def apply_fn(params, x):
        return model.apply(variables | {"params": params}, x, mutable=["batch_stats"])[0]

    with pytest.raises(ValueError, match="running statistics, no dropout"):
        l2m.output_variance(apply_fn, posterior, x)


@pytest.mark.parametrize("grouped", [False, True])
def test_a_prior_mean_is_where_the_evidence_counts_from(posterior, grouped):
    """δ = γ / ‖θ* - θ0‖², as for the parameters moved by θ0 under a prior around zero."""
    start = jax.tree.map(lambda m: m + 0.3, posterior.mean)
    around = posterior._replace(prior_mean=start)
    moved = posterior._replace(mean=jax.tree.map(jnp.subtract, posterior.mean, start))
    groups = {"body": "body", "head": "head"} if grouped else None
    fits = [l2m.fit_prior_precision(p, groups=groups).info for p in (around, moved)]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), fits[0].value, fits[1].value
    )
    np.testing.assert_allclose(
        l2m.tuning.log_evidence(around), l2m.tuning.log_evidence(moved), rtol=1e-6
    )
    np.testing.assert_allclose(
        l2m.tuning.kl_divergence(around), l2m.tuning.kl_divergence(moved), rtol=1e-6
    )
    if not grouped:
        fitted = around._replace(prior_precision=fits[0].value)
        norm = sum(jnp.sum(jnp.square(d)) for d in jax.tree.leaves(moved.mean))
        expected = l2m.tuning.effective_parameters(fitted) / norm
        np.testing.assert_allclose(fits[0].value, expected, rtol=1e-4)
