"""Fixtures, and eight CPU devices for all tests; plain helpers are in `helpers.py`."""

import os
from pathlib import Path

# Before jax is imported: eight devices, for the tests of sharding; the others use the first. Most
# of the tests' time is compilation. LLVM need not optimise what runs once. XLA's older emitters,
# the default in jaxlib 0.6, and one module for all functions of a program compile more than twice
# as fast. Workers, subprocesses and later runs share what was compiled.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 "
    "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1",
)
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import Regression, moment_of, network_params

import l2m_optax as l2m

MOST_REGIONS = 30_000
"""Linux lets a process map 65,530 regions of memory. Each compiled program takes one or two."""


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    """Forget compiled programs before there are too many to load another one."""
    yield
    regions = Path("/proc/self/maps")
    if regions.exists() and regions.read_bytes().count(b"\n") > MOST_REGIONS:
        jax.clear_caches()


@pytest.fixture(scope="session")
def regression():
    rng = np.random.default_rng(0)
    x = rng.uniform(-1.0, 1.0, (2000, 10)) * np.linspace(0.5, 3.0, 10)
    y = x @ rng.normal(size=10) + 0.5 * rng.normal(size=2000)
    return Regression(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32), 0.25)


@pytest.fixture
def params():
    return network_params(jax.random.key(0))


@pytest.fixture
def posterior(params):
    return l2m.laplace(
        params, moment_of(params), num_data=50, batch_size=5, prior_precision=2.0, temperature=0.5
    )


@pytest.fixture
def inputs():
    return jax.random.normal(jax.random.key(1), (6, 4))
