"""Bad input meets an error that says path, expected, got and remedy, before any arithmetic."""

import re

import jax
import jax.numpy as jnp
import optax
import pytest
from helpers import moment_of, network, network_params

import l2m_optax as l2m

PARAMS = network_params(jax.random.key(0))
MOMENT = moment_of(PARAMS)
POSTERIOR = l2m.laplace(PARAMS, MOMENT, num_data=50, batch_size=5)
INPUTS = jnp.ones((6, 4))
KEY = jax.random.key(0)


def trained(tx, params=PARAMS):
    return tx.update(params, tx.init(params), params)[1]


def build(moment=MOMENT, params=PARAMS, **kwargs):
    return l2m.laplace(params, moment, **{"num_data": 50, "batch_size": 5, **kwargs})


def with_nu(value):
    bias = MOMENT.nu["body"]["bias"].at[0].set(value)
    return MOMENT._replace(nu={**MOMENT.nu, "body": {**MOMENT.nu["body"], "bias": bias}})


def without(tree, key):
    return {k: v for k, v in tree.items() if k != key}


def donated():
    state = trained(optax.adam(1e-3))
    jax.tree.leaves(state[0].nu)[0].delete()
    return state


def all_donated():
    state = trained(optax.adam(1e-3))
    jax.tree.map(lambda x: x.delete(), state)
    return state


def injected_low():
    return optax.inject_hyperparams(optax.adam, hyperparam_dtype=jnp.bfloat16)(1e-3, b2=0.999)


TWO = optax.chain(optax.scale_by_adam(), optax.scale_by_rms())

REFUSALS = {
    # laplace: numbers
    "full batch": (lambda: build(batch_size=50), ValueError, "full batch has no sampling noise"),
    "batch above data": (lambda: build(batch_size=51), ValueError, "fewer than num_data = 50"),
    "no data": (lambda: build(num_data=0), ValueError, "num_data: expected at least 2, got 0"),
    "negative batch": (lambda: build(batch_size=-1), ValueError, "batch_size: expected at least 1"),
    "fractional data": (lambda: build(num_data=50.5), TypeError, "num_data: expected an integer"),
    "loss scale 0": (lambda: build(loss_scale=0.0), ValueError, "loss_scale: expected a positive"),
    "negative prior": (lambda: build(prior_precision=-1.0), ValueError, "prior_precision: exp"),
    "prior 0": (lambda: build(prior_precision=0.0), ValueError, "prior_precision: expected a pos"),
    "NaN temperature": (lambda: build(temperature=jnp.nan), ValueError, "temperature: expected"),
    "three temperatures": (
        lambda: build(temperature=jnp.ones(3)),
        ValueError,
        "temperature: expected one number, got shape (3,)",
    ),
    "a loss of each example": (
        lambda: build(training_loss=jnp.ones(50)),
        ValueError,
        "training_loss: expected one number, got shape (50,); pass the mean",
    ),
    "prior of another tree": (
        lambda: build(prior_precision={"tail": 1.0}),
        ValueError,
        "prior_precision: expected a prefix of params",
    ),
    "prior mean of another shape": (
        lambda: build(prior_mean=jax.tree.map(lambda x: x[:1], PARAMS)),
        ValueError,
        r"prior_mean['body']['bias']: expected shape (5,), got (1,)",
    ),
    "centered without mu": (lambda: build(centered=True), ValueError, "centered=True: expected"),
    "centered without memory": (
        lambda: build(MOMENT._replace(mu=MOMENT.nu, mu_decay=0.0), centered=True),
        ValueError,
        "centered=True: expected a decay between 0 and 1, got 0",
    ),
    "centered by a weight of 0": (
        lambda: build(MOMENT._replace(mu=MOMENT.nu, mu_decay=0.9, mu_weight=0.0), centered=True),
        ValueError,
        "moment.mu_weight: expected a positive finite number, got 0",
    ),
    "negative temperature": (
        lambda: build(temperature=-1.0),
        ValueError,
        "temperature: expected a finite number of at least 0, got -1",
    ),
    "weight 0": (
        lambda: build(MOMENT._replace(weight=0.0)),
        ValueError,
        "moment.weight: expected a positive finite number, got 0",
    ),
    "negative weight of a leaf": (
        lambda: build(MOMENT._replace(weight={"body": 1.0, "head": -0.5})),
        ValueError,
        "moment.weight: expected a positive finite number, got -0.5",
    ),
    "no update": (
        lambda: build(MOMENT._replace(count=0)),
        ValueError,
        "moment.count: expected at least one update, got 0",
    ),
    "no micro-step": (
        lambda: build(MOMENT._replace(micro_steps=0)),
        ValueError,
        "micro_steps: expected one whole number of at least 1, got 0",
    ),
    "half a micro-step": (
        lambda: build(MOMENT._replace(micro_steps=1.5)),
        ValueError,
        "micro_steps: expected one whole number of at least 1, got 1.5",
    ),
    "infinite scale": (
        lambda: build(loss_scale=1e-30),
        ValueError,
        "loss_scale: expected a data scale that float32 can hold",
    ),
    # laplace: arrays
    "NaN in params": (
        lambda: build(params=with_nu(jnp.nan).nu),
        FloatingPointError,
        "params['body']['bias']: expected finite values, got 1 NaN or infinite of 5",
    ),
    "no params": (
        lambda: l2m.laplace({}, l2m.SecondMoment(nu={}), num_data=50, batch_size=5),
        ValueError,
        "params: expected at least one array, got an empty tree",
    ),
    "complex nu": (
        lambda: build(
            MOMENT._replace(nu=jax.tree.map(lambda x: x.astype(jnp.complex64), MOMENT.nu))
        ),
        TypeError,
        "nu['body']['bias']: expected a real floating-point array, got complex64",
    ),
    "NaN in nu": (
        lambda: build(with_nu(jnp.nan)),
        FloatingPointError,
        "nu['body']['bias']: expected finite values, got 1 NaN or infinite of 5",
    ),
    "infinity in nu": (lambda: build(with_nu(jnp.inf)), FloatingPointError, "1 NaN or infinite"),
    "negative nu": (lambda: build(with_nu(-1.0)), ValueError, "got 1 negative of 5"),
    "nu of zeros": (
        lambda: build(MOMENT._replace(nu=jax.tree.map(jnp.zeros_like, PARAMS))),
        ValueError,
        "nu: expected some positive entries, got zeros everywhere",
    ),
    "integer leaf": (
        lambda: build(params={**PARAMS, "step": jnp.int32(3)}),
        TypeError,
        "params['step']: expected a real floating-point array, got int32",
    ),
    "complex leaf": (
        lambda: build(params={**PARAMS, "z": jnp.ones(2, jnp.complex64)}),
        TypeError,
        "params['z']: expected a real floating-point array, got complex64",
    ),
    "missing moment": (
        lambda: build(MOMENT._replace(nu=without(MOMENT.nu, "head"))),
        ValueError,
        "nu['head']['bias']: expected shape (3,), got no such leaf",
    ),
    "superfluous moment": (
        lambda: build(params=without(PARAMS, "head")),
        ValueError,
        "params['head']['bias']: expected a parameter, got none",
    ),
    "other shape": (
        lambda: build(params={**PARAMS, "head": jax.tree.map(lambda x: x[:2], PARAMS["head"])}),
        ValueError,
        "nu['head']['bias']: expected shape (2,), got (3,)",
    ),
    # second_moment
    "sgd": (
        lambda: l2m.second_moment(trained(optax.sgd(0.1, momentum=0.9))),
        TypeError,
        "got EmptyState, TraceState; chain l2m_optax.track_second_moment(0.999) in front",
    ),
    "lion": (lambda: l2m.second_moment(trained(optax.lion(0.1))), TypeError, "ScaleByLionState"),
    "exposed sgd": (
        lambda: l2m.expose_second_moment(optax.sgd(0.1)).init(PARAMS),
        TypeError,
        "EmptyState",
    ),
    "two moments": (lambda: l2m.second_moment(trained(TWO)), TypeError, "got 2: opt_state[0]"),
    "no state": (lambda: l2m.second_moment({"w": 1.0}), TypeError, "got dict"),
    "never updated": (
        lambda: build(optax.adam(1e-3).init(PARAMS)),
        ValueError,
        "opt_state[0].count: expected at least one update, got 0",
    ),
    "never updated, exposed": (
        lambda: build(l2m.expose_second_moment(optax.adam(1e-3)).init(PARAMS)),
        ValueError,
        "expected at least one update",
    ),
    "never updated, tracked": (
        lambda: build(l2m.track_second_moment(0.9).init(PARAMS)),
        ValueError,
        "opt_state.count: expected at least one update",
    ),
    "Adam's own state": (
        lambda: build(trained(optax.adam(1e-3))),
        TypeError,
        "opt_state[0]: expected a state whose type says what it holds, got ScaleByAdamState",
    ),
    "decay of 1": (
        lambda: l2m.second_moment(trained(optax.adam(1e-3)), decay=1.0),
        ValueError,
        "decay: expected 0 <= decay < 1, got 1.0",
    ),
    "injected decay rounded to 1": (
        lambda: l2m.second_moment(trained(injected_low())),
        ValueError,
        "hyperparams: expected 0 <= decay < 1",
    ),
    "decay unknown": (
        lambda: build(trained(optax.amsgrad(1e-3))),
        ValueError,
        "opt_state[0].nu: expected the decay of the running mean, got none, after only 1 updates",
    ),
    "decay unknown under jit": (
        lambda: jax.jit(l2m.second_moment)(trained(optax.amsgrad(1e-3))),
        ValueError,
        "a traced count and no decay",
    ),
    "count unknown": (
        lambda: l2m.second_moment(trained(optax.rmsprop(1e-3)), decay=0.9),
        ValueError,
        "pass count=, or wrap the optimizer",
    ),
    "all of it donated": (
        lambda: l2m.laplace(PARAMS, all_donated(), tx=optax.adam(1e-3), num_data=50, batch_size=5),
        ValueError,
        "opt_state[0].count: expected a live array, got a donated buffer; read the state before",
    ),
    "donated": (lambda: l2m.second_moment(donated(), decay=0.9), ValueError, "a donated buffer"),
    # transforms, restrict
    "decay 1": (lambda: l2m.track_second_moment(1.0), ValueError, "decay: expected 0 <= decay < 1"),
    "restrict to nothing": (
        lambda: l2m.restrict(POSTERIOR, "tail"),
        ValueError,
        "where: expected a leaf with a second moment, got none of params['body']['bias']",
    ),
    "release of nothing": (
        lambda: l2m.release(POSTERIOR, "head"),
        ValueError,
        "where: expected a fixed leaf, got none",
    ),
    # sampling and predictive
    "no draws": (lambda: l2m.sample(KEY, POSTERIOR, 0), ValueError, "num_samples: expected at"),
    "half a draw": (
        lambda: l2m.monte_carlo(KEY, network, POSTERIOR, INPUTS, num_samples=1.5),
        TypeError,
        "num_samples: expected an integer",
    ),
    "density of other params": (
        lambda: l2m.log_prob(POSTERIOR, without(PARAMS, "head")),
        ValueError,
        "params['head']['bias']",
    ),
    "chunk of 0": (
        lambda: l2m.linearized(KEY, network, POSTERIOR, INPUTS, num_samples=2, chunk_size=0),
        ValueError,
        "chunk_size: expected at least 1",
    ),
    "variance chunk of 0": (
        lambda: l2m.output_variance(network, POSTERIOR, INPUTS, chunk_size=0),
        ValueError,
        "chunk_size: expected at least 1",
    ),
    "ragged draws": (
        lambda: l2m.predict.apply_ensemble(
            network, {"a": jnp.ones((2, 3)), "b": jnp.ones((3, 3))}, INPUTS
        ),
        ValueError,
        "draws['b']: expected a leading axis of draws, (2,)",
    ),
    "a stack of no draws": (
        lambda: l2m.predict.apply_ensemble(network, {"a": jnp.ones((0, 3))}, INPUTS),
        ValueError,
        "draws['a']: expected a leading axis of draws, one or more, got shape (0, 3)",
    ),
    "inputs without a batch": (
        lambda: l2m.output_variance(network, POSTERIOR, jnp.ones(())),
        ValueError,
        "x[None]",
    ),
    "unhashable apply_fn": (
        lambda: l2m.linearized(KEY, _Unhashable(), POSTERIOR, INPUTS, num_samples=2),
        TypeError,
        "apply_fn: expected a hashable function, got an unhashable _Unhashable",
    ),
    "the posterior first": (
        lambda: l2m.classify(POSTERIOR, network, INPUTS),
        TypeError,
        "apply_fn: expected a function, got a Posterior; pass (apply_fn, posterior, inputs, ...)",
    ),
    "one example for many": (
        lambda: l2m.classify(lambda p, x: network(p, x[None])[0], POSTERIOR, INPUTS[0]),
        ValueError,
        "got (3,); give a single example a batch axis, x[None]; for one binary logit",
    ),
    "params for a posterior": (
        lambda: l2m.classify(network, PARAMS, INPUTS),
        TypeError,
        "posterior: expected a Posterior, got a dict",
    ),
    "variance of params": (
        lambda: l2m.regress(network, PARAMS, INPUTS),
        TypeError,
        "posterior: expected a Posterior, got a dict",
    ),
    "draws of params": (
        lambda: l2m.linearized(KEY, network, PARAMS, INPUTS, num_samples=2),
        TypeError,
        "posterior: expected a Posterior, got a dict",
    ),
    "samples of params": (
        lambda: l2m.monte_carlo(KEY, network, PARAMS, INPUTS, num_samples=2),
        TypeError,
        "posterior: expected a Posterior, got a dict",
    ),
    "a server of params": (
        lambda: l2m.make_predictive(KEY, network, PARAMS),
        TypeError,
        "posterior: expected a Posterior, got a dict",
    ),
    "a posterior for a key": (
        lambda: l2m.sample(POSTERIOR, KEY, 2),
        TypeError,
        "posterior: expected a Posterior, got a PRNGKeyArray; pass (key, posterior, num_samples)",
    ),
    "a table of params": (
        lambda: l2m.predict.tabulate(network, PARAMS, INPUTS),
        TypeError,
        "posterior: expected a Posterior, got a dict",
    ),
    "an optimizer that was not called": (
        lambda: l2m.laplace(
            PARAMS, trained(optax.adam(1e-3)), tx=optax.adam, num_data=50, batch_size=5
        ),
        TypeError,
        "tx: expected a transformation of gradients, with init and update, got a function; "
        "pass the optimizer of the training, as in tx=optax.adam(1e-3)",
    ),
    # summaries
    "no axis of draws": (lambda: l2m.classification(jnp.ones(3)), ValueError, "logit_samples"),
    "no axis of pairs": (
        lambda: l2m.predict.heteroscedastic_regression(jnp.ones(2)),
        ValueError,
        "samples: expected shape (S, ..., 2), got (2,)",
    ),
    "one draw": (lambda: l2m.regression(jnp.ones((1, 3)), 1.0), ValueError, "at least 2 draws"),
    "noise 0": (lambda: l2m.regression(jnp.ones((2, 3)), 0.0), ValueError, "noise_variance"),
    # fits
    "groups of another tree": (
        lambda: l2m.fit_prior_precision(POSTERIOR, groups={"tail": 0}),
        ValueError,
        "groups: expected a prefix of params",
    ),
    "no targets": (
        lambda: l2m.fit_noise_variance(network, POSTERIOR, INPUTS, jnp.ones(0)),
        ValueError,
        "targets: expected at least one",
    ),
    "labels of another length": (
        lambda: l2m.tune(network, POSTERIOR, INPUTS, jnp.zeros(5, int)),
        ValueError,
        "targets: expected",
    ),
    "labels out of range": (
        lambda: l2m.tune(network, POSTERIOR, INPUTS, jnp.full(6, 3)),
        ValueError,
        "targets: expected classes from 0 to 2, got 3 to 3",
    ),
    "bounds upside down": (
        lambda: l2m.tune(network, POSTERIOR, INPUTS, jnp.zeros(6, int), bounds=(1.0, 0.1)),
        ValueError,
        "bounds: expected 0 < low < high",
    ),
}


class _Unhashable:
    __hash__ = None

    def __call__(self, params, x):
        return network(params, x)


@pytest.mark.filterwarnings("ignore:.*cannot show whether they were clipped")
@pytest.mark.parametrize("case", REFUSALS)
def test_refused_with_a_reason_and_a_remedy(case):
    call, error, message = REFUSALS[case]
    with pytest.raises(error, match=re.escape(message)) as caught:
        call()
    assert re.search(r": expected .+, got .+; .+", str(caught.value)), caught.value
