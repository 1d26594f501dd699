"""A posterior as named arrays and a header in JSON, and back, with a digest of every array.

Names are paths, ``mean['body']['kernel']``; they are data, and never part of a file's name. The
digest of an array is the same however it is sharded, and is made where its shards live.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from l2m_optax._support.checks import check_alive, complaint, path_name
from l2m_optax._support.trees import broadcast
from l2m_optax._support.types import Array, PyTree
from l2m_optax.moments._moment import SecondMoment
from l2m_optax.posterior._posterior import Posterior

FORMAT, VERSION = "l2m_optax.posterior", 1
_POSTERIOR = ("data_scale", "temperature", "noise_variance")
_MOMENT = ("mu_weight", "count", "decay", "mu_decay", "micro_steps")
_PREFIXES = {"prior_precision": "mean", "weight": "nu", "offset": "nu"}
"""Fields that are a number or a tree of numbers, and the tree that they are a prefix of."""


def named(posterior: Posterior) -> dict[str, Any]:
    """The leaves of a posterior by name, where they are."""
    moment = posterior.second_moment
    fields = {name: getattr(posterior, name) for name in ("mean", "prior_mean", *_POSTERIOR)}
    fields |= {name: getattr(moment, name) for name in ("nu", "mu", *_MOMENT)}
    for name, like in _PREFIXES.items():
        value = getattr(posterior if name == "prior_precision" else moment, name)
        fields[name] = value if _is_number(value) else broadcast(value, fields[like])
    leaves = {
        path_name(path, name): leaf
        for name, tree in fields.items()
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    check_alive(leaves, "posterior")
    return leaves


def write(posterior: Posterior) -> tuple[dict[str, Array], dict[str, Any]]:
    """The arrays of a posterior, and the header that describes them."""
    leaves = named(posterior)
    numbers = {name: leaf for name, leaf in leaves.items() if isinstance(leaf, int | float)}
    arrays = {name: jnp.asarray(leaf) for name, leaf in leaves.items() if name not in numbers}
    found = jax.device_get(digests(list(arrays.values())))
    header = {
        "format": FORMAT,
        "version": VERSION,
        "numbers": numbers,
        "arrays": {
            name: {"shape": list(x.shape), "dtype": x.dtype.name, "digest": digest.tolist()}
            for (name, x), digest in zip(arrays.items(), found, strict=True)
        },
    }
    return arrays, header | {"digest": _of_header(header)}


def check_header(header: Any, where: str) -> dict[str, Any]:
    """The header, once it is known to be whole and of this version.

    Raises:
      ValueError: if it is not.
    """
    remedy = "pass the path of a posterior that l2m_optax.checkpoint saved"
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ValueError(complaint(where, f"a header of {FORMAT}", "none", remedy))
    if header.get("version") != VERSION:
        remedy = "install the version of l2m_optax that saved it"
        raise ValueError(complaint(where, f"version {VERSION}", str(header.get("version")), remedy))
    rest = {name: value for name, value in header.items() if name != "digest"}
    if header.get("digest") != _of_header(rest):
        remedy = "the file was changed or damaged; restore an earlier one"
        raise ValueError(complaint(where, "the header that was saved", "another", remedy))
    return header


def targets(header: dict[str, Any], like: PyTree, where: str) -> dict[str, jax.ShapeDtypeStruct]:
    """What each array is to become: the saved shape and dtype, in the sharding of `like`.

    Raises:
      ValueError: if the saved mean does not have the leaves and shapes of `like`.
    """
    leaves = {path_name(p, ""): x for p, x in jax.tree_util.tree_leaves_with_path(like)}
    saved = {name: tuple(entry["shape"]) for name, entry in header["arrays"].items()}
    remedy = "pass like=, the parameters this posterior was made for, or their shapes"
    for path, leaf in leaves.items():
        shape = saved.get(f"mean{path}")
        if shape != jnp.shape(leaf):
            got = "no such leaf" if shape is None else f"shape {shape}"
            raise ValueError(
                complaint(f"{where}: mean{path}", f"shape {jnp.shape(leaf)}", got, remedy)
            )
    everywhere = _everywhere(like)

    def target(name: str, entry: dict[str, Any]) -> jax.ShapeDtypeStruct:
        field, path = _split(name)
        if field in ("mean", "nu", "mu", "prior_mean") and path not in leaves:
            raise ValueError(complaint(f"{where}: {name}", "a leaf of like", "none", remedy))
        owner = leaves.get(path)
        shape = tuple(entry["shape"])
        fits = owner is not None and shape == jnp.shape(owner)
        sharding = getattr(owner, "sharding", None) if fits else everywhere
        dtype = jnp.dtype(entry["dtype"])
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding or everywhere)  # type: ignore[no-untyped-call]

    return {name: target(name, entry) for name, entry in header["arrays"].items()}


def read(header: dict[str, Any], arrays: dict[str, Array], like: PyTree, where: str) -> Posterior:
    """The posterior in the structure of `like`, once every array is what was saved.

    Raises:
      ValueError: naming the array that is missing or another.
    """
    _check_arrays(header, arrays, where)
    leaves = dict(header["numbers"]) | arrays
    paths = [path_name(path, "") for path, _ in jax.tree_util.tree_leaves_with_path(like)]
    treedef = jax.tree.structure(like)

    def field(name: str) -> Any:
        if name in leaves:
            return leaves[name]
        found = [leaves.get(name + path) for path in paths]
        return None if all(x is None for x in found) else jax.tree.unflatten(treedef, found)

    moment = SecondMoment(**{name: field(name) for name in SecondMoment._fields})
    rest = {name: field(name) for name in Posterior._fields if name != "second_moment"}
    return Posterior(second_moment=moment, **rest)


@jax.jit
def digests(arrays: list[Array]) -> list[Array]:
    """Two words of 32 bits an array: sums, modulo 2^32, of its words mixed with their places."""
    return [_digest(x) for x in arrays]


def _digest(x: Array) -> Array:
    words = _words(x)
    place = jnp.zeros((), jnp.uint32)
    for axis, size in enumerate(words.shape):
        place = place * np.uint32(size % 2**32) + jax.lax.broadcasted_iota(
            jnp.uint32, words.shape, axis
        )

    def mixed(seed: int) -> Array:
        # The finaliser of MurmurHash3: each bit of the word and of its place reaches all others.
        h = words ^ ((place + np.uint32(seed)) * np.uint32(0x9E3779B9))
        h = (h ^ (h >> 16)) * np.uint32(0x85EBCA6B)
        h = (h ^ (h >> 13)) * np.uint32(0xC2B2AE35)
        return jnp.sum(h ^ (h >> 16), dtype=jnp.uint32)

    return jnp.stack([mixed(1), mixed(0x51ED270B)])


def _words(x: Array) -> Array:
    """The bits of an array as whole numbers of 32 bits; 64 make a last axis of two."""
    size = x.dtype.itemsize
    if size >= 4:
        return jax.lax.bitcast_convert_type(x, jnp.uint32)
    narrow = jax.lax.bitcast_convert_type(x, {1: jnp.uint8, 2: jnp.uint16}[size])
    return narrow.astype(jnp.uint32)


def _check_arrays(header: dict[str, Any], arrays: dict[str, Array], where: str) -> None:
    found = jax.device_get(digests(list(arrays.values())))
    actual = dict(zip(arrays, found, strict=True))
    for name, entry in header["arrays"].items():
        if name not in actual:
            remedy = "the file was changed or damaged; restore an earlier one"
            raise ValueError(complaint(f"{where}: {name}", "an array", "none", remedy))
        if actual[name].tolist() != entry["digest"]:
            remedy = "the file was changed or damaged; restore an earlier one"
            raise ValueError(
                complaint(f"{where}: {name}", "the bytes that were saved", "others", remedy)
            )


def _of_header(header: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()


def _everywhere(like: PyTree) -> Any:
    """Where numbers go: on all devices of the mesh, or on the first."""
    for leaf in jax.tree.leaves(like):
        sharding = getattr(leaf, "sharding", None)
        if isinstance(sharding, jax.sharding.NamedSharding):
            nowhere = jax.sharding.PartitionSpec()  # type: ignore[no-untyped-call]
            return jax.sharding.NamedSharding(sharding.mesh, nowhere)
    return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])


def _split(name: str) -> tuple[str, str]:
    """``mean['body']`` to ``mean`` and ``['body']``."""
    ends = [i for i in (name.find("["), name.find(".")) if i >= 0]
    at = min(ends, default=len(name))
    return name[:at], name[at:]


def _is_number(value: Any) -> bool:
    return jax.tree_util.treedef_is_leaf(jax.tree.structure(value))
