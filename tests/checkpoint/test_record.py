"""What is saved is derived from the posterior: fields that do not exist yet come back too."""

import re
import sys
from collections import namedtuple
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import moment_of, network_params
from jax.sharding import NamedSharding, PartitionSpec

import l2m_optax as l2m
from l2m_optax import checkpoint

FORMATS = {
    "orbax": (checkpoint.save, checkpoint.restore),
    "safetensors": (checkpoint.save_safetensors, checkpoint.load_safetensors),
}


class Basis(NamedTuple):
    left: Any
    right: Any


class Rotated(NamedTuple):
    """A second moment of some later version: every field of the present one, and more."""

    nu: Any
    weight: Any
    basis: Any
    rank: Any
    note: Any = None


class Wider(NamedTuple):
    """A posterior of some later version."""

    mean: Any
    second_moment: Any
    shift: Any
    flags: Any


class Pair(NamedTuple):
    """A NamedTuple among the parameters, of which this package knows nothing."""

    kernel: Any
    bias: Any


@pytest.fixture
def later(monkeypatch):
    """The later types are where the present ones are defined."""
    module = sys.modules[l2m.posterior.Posterior.__module__]
    monkeypatch.setattr(module, "Rotated", Rotated, raising=False)
    monkeypatch.setattr(module, "Wider", Wider, raising=False)


def wider(params, kernel_basis):
    nothing = Basis(None, None)
    basis = {
        "body": {"kernel": kernel_basis, "bias": nothing},
        "head": {"kernel": Basis(jnp.eye(5), None), "bias": nothing},
    }
    weight = {"body": jnp.asarray(0.5), "head": {"kernel": 0.25, "bias": 1}}
    moment = Rotated(params, weight, basis, 3, "as trained")
    flags = jax.tree.map(lambda x: x > 0, params)
    return Wider(params, moment, {"body": 1.5, "head": None}, flags)


def assert_same(found, expected):
    """Bit for bit, and each number of the type that it was."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert isinstance(b, jax.Array) or type(a) is type(b)
        assert jnp.result_type(a) == jnp.result_type(b) if isinstance(b, jax.Array) else a == b
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.parametrize("form", FORMATS)
def test_fields_of_a_later_version_come_back(form, later, tmp_path):
    save, load = FORMATS[form]
    params = network_params(jax.random.key(0))
    posterior = wider(params, Basis(jnp.ones((4, 4)), jnp.ones((2, 5), jnp.bfloat16)))
    save(tmp_path / "posterior", posterior)
    assert_same(load(tmp_path / "posterior", like=params), posterior)


def earlier(x, *without):
    """A NamedTuple as a version saved it in which some fields did not exist."""
    kept = [field for field in x._fields if field not in without]
    return namedtuple(type(x).__name__, kept)(*(getattr(x, field) for field in kept))


@pytest.mark.parametrize("form", FORMATS)
def test_fields_that_did_not_exist_have_their_defaults(form, tmp_path):
    save, load = FORMATS[form]
    params = network_params(jax.random.key(0))
    posterior = l2m.laplace(params, moment_of(params), num_data=50, batch_size=5)
    later = [f for f in l2m.SecondMoment._field_defaults if f != "weight"]
    assert "basis" in later
    old = earlier(posterior, "num_data")._replace(
        second_moment=earlier(posterior.second_moment, *later)
    )
    save(tmp_path / "posterior", old)
    expected = posterior._replace(
        num_data=None,
        second_moment=l2m.SecondMoment(
            posterior.second_moment.nu, weight=posterior.second_moment.weight
        ),
    )
    assert_same(load(tmp_path / "posterior", like=params), expected)


@pytest.mark.parametrize("field", ["temperature", "second_moment.nu"])
def test_a_field_without_a_default_is_asked_for(field, tmp_path):
    params = network_params(jax.random.key(0))
    posterior = l2m.laplace(params, moment_of(params), num_data=50, batch_size=5)
    *inside, last = field.split(".")
    old = (
        posterior._replace(second_moment=earlier(posterior.second_moment, last))
        if inside
        else earlier(posterior, last)
    )
    checkpoint.save_safetensors(tmp_path / "posterior", old)
    with pytest.raises(ValueError, match=re.escape(field) + ".*no such leaf"):
        checkpoint.load_safetensors(tmp_path / "posterior", like=params)


@pytest.mark.parametrize("form", FORMATS)
def test_later_fields_keep_their_shardings(form, later, tmp_path):
    """An array shaped like its parameter is sharded like it; the others are copied."""
    save, load = FORMATS[form]
    mesh = jax.make_mesh((2,), ("data",), devices=jax.devices()[:2])
    halves, copies = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ([None, "data"], []))
    params = {"w": jax.device_put(jnp.ones((3, 4)), halves)}
    basis = {"w": Basis(jnp.ones((3, 3)), params["w"] + 1)}
    posterior = Wider(params, Rotated(params, 1.0, basis, 3), None, None)
    save(tmp_path / "posterior", posterior)
    found = load(tmp_path / "posterior", like=params)
    assert_same(found, posterior)
    left, right = found.second_moment.basis["w"]
    assert (left.sharding, right.sharding) == (copies, halves)
    assert found.second_moment.nu["w"].sharding == halves


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    "moment",
    [
        {"micro_steps": 4, "count": 7, "decay": 0.1 + 0.2},
        {"micro_steps": jnp.asarray(4), "count": None},
        {"weight": {"body": 0.5, "head": {"kernel": jnp.asarray(0.25), "bias": 1.0}}},
    ],
    ids=["python numbers", "arrays", "prefix tree"],
)
def test_numbers_come_back_as_what_they_were(form, moment, tmp_path):
    save, load = FORMATS[form]
    params = network_params(jax.random.key(0))
    posterior = l2m.laplace(params, moment_of(params), num_data=50, batch_size=5)
    held = posterior.second_moment._replace(**moment)
    posterior = posterior._replace(second_moment=held)
    save(tmp_path / "posterior", posterior)
    assert_same(load(tmp_path / "posterior", like=params), posterior)


@pytest.mark.parametrize("form", FORMATS)
def test_any_container_of_parameters_will_do(form, tmp_path):
    save, load = FORMATS[form]
    params = [Pair(jnp.ones((2, 3)), jnp.ones(3)), (jnp.ones(2), {"a": jnp.ones(1)}), None, {}]
    posterior = l2m.laplace(params, moment_of(params), num_data=50, batch_size=5)
    save(tmp_path / "posterior", posterior)
    assert_same(load(tmp_path / "posterior", like=params), posterior)


def test_saved_names_are_paths(tmp_path):
    from safetensors import safe_open

    params = network_params(jax.random.key(0))
    posterior = l2m.laplace(params, moment_of(params), num_data=50, batch_size=5)
    checkpoint.save_safetensors(tmp_path / "posterior", posterior)
    with safe_open(tmp_path / "posterior", framework="numpy") as file:
        names = set(file.keys())
    assert {"mean['body']['kernel']", "second_moment.nu['body']['kernel']"} <= names


@pytest.mark.parametrize("form", FORMATS)
def test_every_donated_array_is_refused_before_anything_is_written(form, tmp_path):
    save, _ = FORMATS[form]
    params = {"w": jnp.ones(3)}
    moment = moment_of(params)._replace(mu={"w": jnp.ones(3)}, mu_decay=jnp.asarray(0.9))
    whole = l2m.laplace(
        params, moment, num_data=50, batch_size=5, prior_mean={"w": jnp.zeros(3)}, centered=True
    )
    paths = [path for path, x in jax.tree_util.tree_leaves_with_path(whole) if hasattr(x, "delete")]
    assert len(paths) >= 8
    for path in paths:
        copied = jax.tree.map(lambda x: jnp.array(x) if hasattr(x, "delete") else x, whole)
        dict(jax.tree_util.tree_leaves_with_path(copied))[path].delete()
        name = f"posterior{jax.tree_util.keystr(path)}: expected a live array"
        with pytest.raises(ValueError) as refusal:
            save(tmp_path / "posterior", copied)
        assert str(refusal.value).startswith(name)
        assert list(tmp_path.iterdir()) == []
