"""Posteriors out of training checkpoints: which step, which optimizer, and what is said of it."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from helpers import network_params
from jax.sharding import NamedSharding, PartitionSpec

import l2m_optax as l2m
from l2m_optax import checkpoint

NUMBERS = {"num_data": 100, "batch_size": 8}
OPTIMIZERS = {
    "adam": optax.adam(1e-2, b2=0.95),
    "chained and clipped": optax.chain(optax.clip_by_global_norm(1e9), optax.adamw(1e-2)),
    "accumulated": optax.MultiSteps(optax.adam(1e-2), 2).gradient_transformation(),
    "rmsprop": optax.rmsprop(1e-2, decay=0.9, bias_correction=True),
    "amsgrad": optax.amsgrad(1e-2),
}


def trained(tx, steps=4):
    params = network_params(jax.random.key(0))
    state = tx.init(params)
    for seed in range(steps):
        grads = network_params(jax.random.key(seed + 1))
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def write(path, params, state, **more):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, {"params": params, "opt_state": state, **more})
    return path


def write_steps(path, steps):
    """A checkpoint a step; the parameters say which step it is."""
    tx = OPTIMIZERS["adam"]
    params, state = trained(tx)
    with ocp.CheckpointManager(path) as manager:
        for step in steps:
            held = {"params": jax.tree.map(lambda x, n=step: x * 0 + n, params), "opt_state": state}
            manager.save(step, args=ocp.args.StandardSave(held))
    return params


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("shapes", [False, True], ids=["arrays", "shapes"])
def test_the_optimizer_reads_its_own_state(name, shapes, tmp_path):
    tx = OPTIMIZERS[name]
    params, state = trained(tx)
    path = write(tmp_path / "run", params, state)
    like = jax.eval_shape(lambda: params) if shapes else params
    found = checkpoint.from_training_state(path, like=like, tx=tx, **NUMBERS)
    expected = l2m.laplace(params, l2m.second_moment(state, params, tx=tx), **NUMBERS)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_the_optimizer_reads_its_state_out_of_nnx(tmp_path):
    from flax import nnx

    model, tx = nnx.Linear(4, 3, rngs=nnx.Rngs(0)), optax.adam(1e-2, b2=0.9)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    x = jax.random.normal(jax.random.key(0), (8, 4))
    optimizer.update(model, nnx.grad(lambda m: jnp.mean(jnp.square(m(x))))(model))
    with ocp.StandardCheckpointer() as checkpointer:
        both = {"model": nnx.state(model), "optimizer": nnx.state(optimizer)}
        checkpointer.save(tmp_path / "run", both)
    _, params = nnx.split(model, nnx.Param)
    arguments = {"like": params, "params": "model", **NUMBERS}
    one, other = (
        checkpoint.from_training_state(tmp_path / "run", **how, **arguments)
        for how in ({"tx": tx}, {"decay": 0.9})
    )
    for a, b in zip(map(l2m.variance, (one,)), map(l2m.variance, (other,)), strict=True):
        jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("how", [{"decay": 0.95}, {"tx": OPTIMIZERS["adam"]}], ids=["decay", "tx"])
def test_a_sharded_posterior_can_be_used(how, tmp_path):
    """What is no parameter is copied to every device, so that one program takes all of it."""
    mesh = jax.make_mesh((2,), ("data",), devices=jax.devices()[:2])
    halves = NamedSharding(mesh, PartitionSpec("data"))
    params = {"w": jnp.ones(4), "v": jnp.ones((4, 3))}
    grads = {"w": jnp.arange(4.0), "v": jnp.ones((4, 3))}
    _, state = OPTIMIZERS["adam"].update(grads, OPTIMIZERS["adam"].init(params), params)
    path = write(tmp_path / "run", params, state)
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=halves), params)
    found = checkpoint.from_training_state(path, like=like, **how, **NUMBERS)
    for leaf in jax.tree.leaves((found.mean, found.second_moment.nu)):
        assert leaf.sharding == halves
    expected = l2m.laplace(params, l2m.second_moment(state, tx=OPTIMIZERS["adam"]), **NUMBERS)
    jax.tree.map(np.testing.assert_array_equal, l2m.variance(found), l2m.variance(expected))


@pytest.mark.parametrize(("step", "expected"), [(None, 12), (3, 3), (12, 12)])
def test_the_step_is_chosen(step, expected, tmp_path):
    like = write_steps(tmp_path / "run", (1, 3, 12))
    found = checkpoint.from_training_state(
        tmp_path / "run", like=like, decay=0.95, step=step, **NUMBERS
    )
    assert all(np.all(np.asarray(x) == expected) for x in jax.tree.leaves(found.mean))


@pytest.mark.parametrize("root", [True, False], ids=["root", "one checkpoint"])
def test_a_step_that_is_not_there_is_named(root, tmp_path):
    path = tmp_path / "run"
    like = write_steps(path, range(8))
    message = "expected step 9, got 8 steps, the last of them 3, 4, 5, 6, 7;"
    if not root:
        path, message = path / "3", "expected step 9, got no steps;"
    with pytest.raises(ValueError, match=message):
        checkpoint.from_training_state(path, like=like, decay=0.95, step=9, **NUMBERS)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"decay": 0.9, "steps": 3}, TypeError, r"^from_training_state\(\): .*got steps;"),
        ({"decay": 0.9, "opt_state": 3}, TypeError, r"^from_training_state\(\): .*got opt_state;"),
        ({}, ValueError, r"^from_training_state\(\): expected tx= or decay=, got neither"),
        ({"tx": optax.lion(1e-2)}, ValueError, "one optimizer state of tx, got none"),
        ({"tx": optax.sgd(1e-2)}, TypeError, "mean of squared gradients"),
        ({"decay": 0.9, "prior_precision": -1.0}, ValueError, "prior_precision"),
    ],
    ids=["unknown", "not for the caller", "neither", "another optimizer", "no state", "laplace's"],
)
def test_arguments_that_do_not_fit_are_refused(arguments, error, message, tmp_path):
    params, state = trained(OPTIMIZERS["rmsprop"])
    path = write(tmp_path / "run", params, state)
    with pytest.raises(error, match=message):
        checkpoint.from_training_state(path, like=params, **arguments, **NUMBERS)


@pytest.mark.parametrize("how", [{"decay": 0.95}, {"tx": OPTIMIZERS["adam"]}], ids=["decay", "tx"])
def test_nothing_is_logged(how, tmp_path, caplog):
    like = write_steps(tmp_path / "run", (1,))
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        checkpoint.from_training_state(tmp_path / "run", like=like, **how, **NUMBERS)
    assert [record.getMessage() for record in caplog.records] == []


def test_batch_statistics_are_restored_as_the_documentation_says(tmp_path):
    params, state = trained(OPTIMIZERS["adam"])
    statistics = {"BatchNorm_0": {"mean": jnp.arange(3.0), "var": jnp.ones(3)}}
    path = write(tmp_path / "run", params, state, batch_stats=statistics)
    batch_stats = ocp.StandardCheckpointer().restore(path)["batch_stats"]
    jax.tree.map(np.testing.assert_array_equal, batch_stats, statistics)
    found = checkpoint.from_training_state(path, like=params, tx=OPTIMIZERS["adam"], **NUMBERS)
    assert jax.tree.structure(found.mean) == jax.tree.structure(params)
