"""Several processes, joined over loopback by `jax.distributed`, give what one process gives."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from worker import main

import l2m_optax as l2m

WORKER = Path(__file__).with_name("worker.py")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def run(folder, number):
    """Run the worker in `number` processes; none of them outlives this function."""
    # One device each.
    flags = [f for f in os.environ["XLA_FLAGS"].split() if "device_count" not in f]
    environment = os.environ | {"XLA_FLAGS": " ".join(flags), "JAX_PLATFORMS": "cpu"}
    port, workers, logs = free_port(), [], []
    try:
        for index in range(number):
            log = (folder / f"{number}-{index}.log").open("w+")
            logs.append(log)
            arguments = [str(folder), str(number), str(index), str(port)]
            workers.append(
                subprocess.Popen(
                    [sys.executable, str(WORKER), *arguments],
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=environment,
                )
            )
        for worker, log in zip(workers, logs, strict=True):
            code = worker.wait(timeout=300)
            log.seek(0)
            assert code == 0, log.read()[-3000:]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
        for log in logs:
            log.close()
    return dict(np.load(folder / f"{number}.npz"))


def test_processes_give_what_one_gives(tmp_path):
    main(tmp_path, 1, 0, 0)
    found = run(tmp_path, 4)
    for name, value in np.load(tmp_path / "1.npz").items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
    # What they saved together is restored here, in one process without a mesh.
    like = {"w": jnp.zeros((4, 8)), "v": jnp.zeros((8, 3))}
    one, several = (l2m.checkpoint.restore(tmp_path / f"posterior{n}", like=like) for n in (1, 4))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), several, one)
