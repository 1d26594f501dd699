"""Shardings that are part of an array's type: those of meshes with axes of `AxisType.Explicit`.

On such a mesh JAX refuses a product that sums over a sharded axis, because its result could be
sharded in several ways.
"""

from __future__ import annotations

from typing import Any

import jax

from l2m_optax._support.types import Array


def explicit_sharding(like: Any) -> Any:
    """The sharding in the type of an array, or `None`."""
    sharding = getattr(jax.typeof(like), "sharding", None)
    kinds = getattr(getattr(sharding, "mesh", None), "axis_types", None) or ()
    return sharding if jax.sharding.AxisType.Explicit in kinds else None


def everywhere(x: Array) -> Array:
    """The array, whole on each device if its type has a sharding; otherwise as it is."""
    sharding = explicit_sharding(x)
    if sharding is None:
        return x
    whole = jax.sharding.PartitionSpec(*(None,) * x.ndim)  # type: ignore[no-untyped-call]
    return moved_to(x, jax.sharding.NamedSharding(sharding.mesh, whole))


def moved_to(x: Array, sharding: Any) -> Array:
    """The array with another sharding in its type; itself where that is `None`."""
    if sharding is None:
        return x
    resharded: Array = jax.sharding.reshard(x, sharding)  # type: ignore[no-untyped-call]
    return resharded
