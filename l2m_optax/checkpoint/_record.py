"""A posterior as named leaves and a header in JSON, and back, with a digest of every array.

A name is the path of a leaf, ``mean['body']['kernel']`` or ``second_moment.nu['body']['kernel']``.
Names are data: no file is called by one. No field of a posterior is listed here. The NamedTuples
say which fields there are, and the parameters say what is below them.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from l2m_optax._support.checks import check_alive, complaint, path_name
from l2m_optax._support.types import Array, PyTree
from l2m_optax.checkpoint._digest import digests
from l2m_optax.posterior._posterior import Posterior

FORMAT, VERSION = "l2m_optax.posterior", 1
_ANOTHER = "pass like=, the parameters this posterior was made for, or their shapes"
_DAMAGED = "the file was changed or damaged; restore an earlier one"


def write(posterior: Posterior) -> tuple[dict[str, Array], dict[str, Any]]:
    """The arrays of a posterior by name, and the header: all the rest.

    Raises:
      ValueError: if an array was donated.
    """
    check_alive(posterior, "posterior")
    nodes = dict(_walk("", posterior))
    leaves = {name: node for name, node in nodes.items() if _is_leaf(node)}
    values = {name: leaf for name, leaf in leaves.items() if _is_plain(leaf)}
    arrays = {name: jnp.asarray(leaf) for name, leaf in leaves.items() if name not in values}
    found = jax.device_get(digests(list(arrays.values())))
    header = {
        "format": FORMAT,
        "version": VERSION,
        "types": {name: type(x).__name__ for name, x in nodes.items() if hasattr(x, "_make")},
        "values": values,
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
        remedy, got = "install the version of l2m_optax that saved it", str(header.get("version"))
        raise ValueError(complaint(where, f"version {VERSION}", got[:20], remedy))
    parts = {name: header.get(name) for name in ("format", "version", "types", "values", "arrays")}
    if not _is_well_formed(parts) or header.get("digest") != _of_header(parts):
        raise ValueError(complaint(where, "the header that was saved", "another", _DAMAGED))
    return parts


def targets(header: dict[str, Any], like: PyTree, where: str) -> dict[str, jax.ShapeDtypeStruct]:
    """What each array is to become: the saved shape and dtype, in the sharding of `like`.

    Raises:
      ValueError: if the saved mean does not have the leaves and shapes of `like`.
    """
    copies = everywhere(like)

    def target(name: str, place: PyTree) -> Any:
        entry = header["arrays"].get(name)
        return header["values"].get(name) if entry is None else _target(entry, place, copies)

    posterior = _build(header, like, target, where)
    _check_mean(posterior.mean, like, where)
    found = dict(_walk("", posterior))
    for name in [*header["arrays"], *header["values"]]:
        if name not in found:
            raise ValueError(complaint(f"{where}: {name}", "a leaf of like", "none", _ANOTHER))
    return {name: found[name] for name in header["arrays"]}


def read(header: dict[str, Any], arrays: dict[str, Array], like: PyTree, where: str) -> Posterior:
    """The posterior in the structure of `like`, once every array is what was saved.

    Raises:
      ValueError: naming the array that is missing or another.
    """
    _check_arrays(header, arrays, where)
    leaves = header["values"] | arrays
    return _build(header, like, lambda name, _: leaves[name], where)


# --- trees and names -----------------------------------------------------------------------------


def _walk(name: str, node: PyTree) -> Iterator[tuple[str, PyTree]]:
    """Every node of a tree with its name, the tree itself first."""
    yield name, node
    if not _is_leaf(node):
        for key, child in _children(node)[0]:
            yield from _walk((name + key).removeprefix("."), child)


def _build(
    header: dict[str, Any], like: PyTree, leaf: Callable[[str, PyTree], Any], where: str
) -> Posterior:
    """The tree that `_walk` named, with ``leaf(name, place)`` for each leaf.

    The place of a leaf is the part of `like` that it belongs to: a parameter, or, for a prefix
    tree, all parameters that one number stands for. A field that did not exist when the posterior
    was saved has its default.

    Raises:
      ValueError: if a leaf is missing.
    """
    names = header["arrays"].keys() | header["values"].keys()
    saved = {part for name in [*names, *header["types"]] for part in _fields_above(name)}

    def build(name: str, place: PyTree, holder: type) -> Any:
        if name in names:
            return leaf(name, place)
        cls = _named_tuples(holder).get(header["types"].get(name))
        if cls is not None:
            return cls._make(of_field(name, field, place, cls) for field in cls._fields)
        if _is_leaf(place):
            wanted = f"shape {np.shape(place)}"
            raise ValueError(complaint(f"{where}: {name}", wanted, "no such leaf", _ANOTHER))
        children, treedef = _children(place)
        return treedef.unflatten([build(name + key, child, holder) for key, child in children])

    def of_field(name: str, field: str, place: PyTree, cls: Any) -> Any:
        path = f"{name}.{field}".removeprefix(".")
        # Of an empty tree of parameters no field has a leaf, whether or not it was saved.
        if path not in saved and field in cls._field_defaults and jax.tree.leaves(place):
            return cls._field_defaults[field]
        return build(path, place, cls)

    try:
        return build("", like, Posterior)
    except RecursionError as error:
        raise ValueError(
            complaint(where, "the types that were saved", "others", _DAMAGED)
        ) from error


def _fields_above(name: str) -> Iterator[str]:
    """The name of a leaf, and all that it is below of: each a name up to a dot or a bracket."""
    ends = [i for i, character in enumerate(name) if character in ".["]
    yield from (name[:end] for end in [*ends, len(name)])


def _named_tuples(holder: type) -> dict[str, Any]:
    """The types that a NamedTuple may hold: those that its module defines or imports.

    A file names types, and nothing is imported on its word.
    """
    names = vars(sys.modules[holder.__module__])
    return {name: x for name, x in names.items() if isinstance(x, type) and hasattr(x, "_make")}


def _children(node: PyTree) -> tuple[list[tuple[str, PyTree]], Any]:
    """What lies one level below a node, each with its key, and what puts it together again."""
    pairs, treedef = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda x: x is not node)
    return [(path_name(path, ""), child) for path, child in pairs], treedef


def _is_leaf(node: Any) -> bool:
    """Whether a node has a name of its own in the file; `None` has one."""
    return node is None or jax.tree_util.all_leaves([node])


def _is_plain(leaf: Any) -> bool:
    """Whether JSON holds a leaf as it is."""
    return leaf is None or isinstance(leaf, int | float | str)


# --- checks --------------------------------------------------------------------------------------


def _is_well_formed(parts: dict[str, Any]) -> bool:
    """Whether each part of a header has the type that `write` gave it."""
    types, values, arrays = (parts[name] for name in ("types", "values", "arrays"))
    return (
        all(isinstance(part, dict) for part in (types, values, arrays))
        and all(isinstance(name, str) for name in types.values())
        and all(map(_is_plain, values.values()))
        and all(map(_is_entry, arrays.values()))
    )


def _is_entry(entry: Any) -> bool:
    """Whether this can be the shape, dtype and digest of an array."""
    if not isinstance(entry, dict) or entry.keys() != {"shape", "dtype", "digest"}:
        return False
    shape, dtype = entry["shape"], entry["dtype"]
    sizes = isinstance(shape, list) and all(isinstance(n, int) and n >= 0 for n in shape)
    return sizes and isinstance(dtype, str) and _is_dtype(dtype)


def _is_dtype(name: str) -> bool:
    """Whether this names a dtype of arrays; other strings are a small language of numpy's."""
    if not name.isidentifier():
        return False
    try:
        dtype = jnp.dtype(name)
    except TypeError:
        return False
    return jnp.issubdtype(dtype, jnp.number) or jnp.issubdtype(dtype, jnp.bool_)


def _check_mean(mean: PyTree, like: PyTree, where: str) -> None:
    structures: list[Any] = [jax.tree.structure(mean), jax.tree.structure(like)]
    if structures[0] != structures[1]:
        got = "another structure"
        raise ValueError(complaint(f"{where}: mean", "the structure of like", got, _ANOTHER))
    wanted = jax.tree_util.tree_leaves_with_path(like)
    for (path, leaf), held in zip(wanted, jax.tree.leaves(mean), strict=True):
        if np.shape(held) != np.shape(leaf):
            name, got = path_name(path, f"{where}: mean"), f"shape {np.shape(held)}"
            raise ValueError(complaint(name, f"shape {np.shape(leaf)}", got[:100], _ANOTHER))


def _check_arrays(header: dict[str, Any], arrays: dict[str, Array], where: str) -> None:
    found = jax.device_get(digests(list(arrays.values())))
    actual = dict(zip(arrays, found, strict=True))
    for name, entry in header["arrays"].items():
        if name not in actual:
            raise ValueError(complaint(f"{where}: {name}", "an array", "none", _DAMAGED))
        if actual[name].tolist() != entry["digest"]:
            expected = "the bytes that were saved"
            raise ValueError(complaint(f"{where}: {name}", expected, "others", _DAMAGED))


def _of_header(header: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()


# --- shardings -----------------------------------------------------------------------------------


def _target(entry: dict[str, Any], place: PyTree, copies: Any) -> jax.ShapeDtypeStruct:
    """An array that is shaped like its parameter is sharded like it; others are everywhere."""
    shape = tuple(entry["shape"])
    fits = _is_leaf(place) and np.shape(place) == shape
    sharding = getattr(place, "sharding", None) if fits else None
    return jax.ShapeDtypeStruct(shape, jnp.dtype(entry["dtype"]), sharding=sharding or copies)  # type: ignore[no-untyped-call]


def everywhere(like: PyTree) -> Any:
    """The sharding of all other arrays: copies on all devices of the mesh, or the first device."""
    for leaf in jax.tree.leaves(like):
        sharding = getattr(leaf, "sharding", None)
        if isinstance(sharding, jax.sharding.NamedSharding):
            copies = jax.sharding.PartitionSpec()  # type: ignore[no-untyped-call]
            return jax.sharding.NamedSharding(sharding.mesh, copies)
    return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
