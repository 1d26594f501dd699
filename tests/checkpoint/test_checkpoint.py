"""Posteriors on disk come back bit for bit, or not at all."""

import functools
import random
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from helpers import moment_of, network, network_params, rotated_moment, run_script

import l2m_optax as l2m
from l2m_optax import checkpoint
from l2m_optax.checkpoint import _record as record

FORMATS = {
    "orbax": (checkpoint.save, checkpoint.restore),
    "safetensors": (checkpoint.save_safetensors, checkpoint.load_safetensors),
}


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert jnp.result_type(a) == jnp.result_type(b)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def plain(dtype=jnp.float32):
    params = network_params(jax.random.key(0), dtype)
    return l2m.laplace(params, moment_of(params), num_data=50, batch_size=5)


def rotated():
    params = network_params(jax.random.key(0))
    return l2m.laplace(params, rotated_moment(params), num_data=50, batch_size=5, training_loss=0.2)


def fitted_by_groups():
    groups = {"body": "body", "head": "head"}
    return l2m.fit_prior_precision(plain(), groups=groups).posterior


def centred():
    params, tx = network_params(jax.random.key(0)), optax.adam(1e-3)
    _, state = tx.update(params, tx.init(params), params)
    moment = l2m.second_moment(state, params, tx=tx)
    return l2m.laplace(params, moment, num_data=50, batch_size=5, centered=True, prior_mean=params)


# Made when a test asks, and once: every worker imports this file, and so do the scripts below.
POSTERIORS = {
    "plain": plain,
    "restricted": lambda: l2m.restrict(plain(), "head"),
    "in bases": rotated,
    "restricted, in bases": lambda: l2m.restrict(rotated(), "head"),
    "fitted by groups": fitted_by_groups,
    "centred, prior mean": centred,
    "bfloat16": lambda: plain(jnp.bfloat16),
    "float16": lambda: plain(jnp.float16),
}


@functools.cache
def made(name):
    return POSTERIORS[name]()


@pytest.mark.parametrize("name", POSTERIORS)
@pytest.mark.parametrize("form", FORMATS)
def test_what_is_saved_is_restored(name, form, tmp_path):
    save, load = FORMATS[form]
    save(tmp_path / "posterior", made(name))
    assert_same(load(tmp_path / "posterior", like=made(name).mean), made(name))


@pytest.mark.parametrize("form", FORMATS)
def test_shapes_alone_are_like_enough(form, tmp_path):
    save, load = FORMATS[form]
    save(tmp_path / "posterior", made("plain"))
    like = jax.eval_shape(lambda: network_params(jax.random.key(0)))
    assert_same(load(tmp_path / "posterior", like=like), made("plain"))


@pytest.mark.parametrize("form", FORMATS)
def test_names_are_data_and_not_paths(form, tmp_path):
    save, load = FORMATS[form]
    params = {"../../up": jnp.ones(2), "/etc/passwd": jnp.ones(3), "a.b/c ' \n": jnp.ones(1)}
    posterior = l2m.laplace(params, moment_of(params), num_data=50, batch_size=5)
    (tmp_path / "inner").mkdir()
    save(tmp_path / "inner" / "posterior", posterior)
    assert [child.name for child in tmp_path.iterdir()] == ["inner"]
    assert_same(load(tmp_path / "inner" / "posterior", like=params), posterior)


@pytest.mark.parametrize("form", FORMATS)
def test_nothing_is_overwritten(form, tmp_path):
    save, load = FORMATS[form]
    save(tmp_path / "posterior", made("plain"))
    with pytest.raises(ValueError, match="does not exist"):
        save(tmp_path / "posterior", made("bfloat16"))
    assert_same(load(tmp_path / "posterior", like=made("plain").mean), made("plain"))


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    ("like", "message"),
    [
        ({"body": jnp.ones(3)}, r"mean\['body'\].*no such leaf"),
        (network_params(jax.random.key(0)) | {"more": jnp.ones(1)}, r"mean\['more'\]"),
        ({"head": network_params(jax.random.key(0))["head"]}, r"\['body'\].*a leaf of like"),
        (
            jax.tree.map(lambda x: jnp.ones((*x.shape, 1)), network_params(jax.random.key(0))),
            "shape",
        ),
    ],
    ids=["missing", "more", "fewer", "shapes"],
)
def test_other_parameters_are_refused(form, like, message, tmp_path):
    save, load = FORMATS[form]
    save(tmp_path / "posterior", made("plain"))
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "posterior", like=like)


@pytest.mark.parametrize("form", FORMATS)
def test_nothing_there_is_said(form, tmp_path):
    with pytest.raises(FileNotFoundError):
        FORMATS[form][1](tmp_path / "posterior", like={})


def test_what_is_no_posterior_is_refused(tmp_path):
    file, folder = tmp_path / "file", tmp_path / "folder"
    file.write_bytes(b"\x80\x04\x95 not a posterior")
    folder.mkdir()
    for path, load in ((file, checkpoint.load_safetensors), (folder, checkpoint.restore)):
        with pytest.raises(ValueError, match=str(path)):
            load(path, like={})
    assert list(folder.iterdir()) == []


def test_a_later_version_is_refused():
    _, header = record.write(made("plain"))
    with pytest.raises(ValueError, match="expected version 1, got 2"):
        record.check_header(header | {"version": 2}, "path")
    with pytest.raises(ValueError, match="damaged"):
        record.check_header(header | {"values": {"temperature": 2.0}}, "path")


def test_digests_see_every_bit_and_every_place():
    x = np.arange(24, dtype=np.float32).reshape(4, 6)
    seen = {tuple(np.asarray(record.digests([jnp.asarray(x)])[0]))}
    for place in range(24):
        for bit in range(32):
            words = x.view(np.uint32).copy()
            words.ravel()[place] ^= np.uint32(1 << bit)
            seen.add(tuple(np.asarray(record.digests([jnp.asarray(words.view(np.float32))])[0])))
    assert len(seen) == 1 + 24 * 32
    swapped = x.copy()
    swapped[[0, 1]] = swapped[[1, 0]]
    assert tuple(np.asarray(record.digests([jnp.asarray(swapped)])[0])) not in seen


def damaged(data: bytes, random: random.Random) -> bytes:
    kind = random.randrange(3)
    at = random.randrange(len(data))
    if kind == 0:
        return data[:at]
    flipped = bytearray(data)
    for _ in range(1 if kind == 1 else 8):
        flipped[random.randrange(len(data))] ^= 1 << random.randrange(8)
    return bytes(flipped)


def test_damaged_files_give_an_error_or_the_truth(tmp_path):
    """300 files, flipped or cut: never another posterior."""
    path, posterior = tmp_path / "posterior.safetensors", made("restricted")
    checkpoint.save_safetensors(path, posterior)
    whole, chance, refused = path.read_bytes(), random.Random(0), 0
    for _ in range(300):
        path.write_bytes(damaged(whole, chance))
        try:
            assert_same(checkpoint.load_safetensors(path, like=posterior.mean), posterior)
        except ValueError as error:
            assert "posterior.safetensors" in str(error)
            refused += 1
    assert refused > 250


FUZZ = """
import random, sys
from pathlib import Path
from test_checkpoint import assert_same, checkpoint, damaged, made

path, posterior = Path(sys.argv[1]), made("restricted")
files = sorted(f for f in path.rglob("*") if f.is_file() and f.stat().st_size)
chance, refused = random.Random(0), 0
for _ in range(200):  # orbax names files at random, and some hold nothing that is restored
    file = chance.choice(files)
    whole = file.read_bytes()
    file.write_bytes(damaged(whole, chance))
    try:
        assert_same(checkpoint.restore(path, like=posterior.mean), posterior)
    except ValueError as error:
        assert str(path) in str(error)
        refused += 1
    file.write_bytes(whole)
print("refused", refused)
"""


def test_damaged_directories_give_an_error_or_the_truth(tmp_path):
    """200 times one file of the directory, flipped or cut.

    In a process of its own: what orbax leaves unfinished when it fails is complained of later.
    """
    path, posterior = tmp_path / "posterior", made("restricted")
    checkpoint.save(path, posterior)
    done = run_script(FUZZ, path, folder=Path(__file__).parent)
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout.split()[-1]) > 30
    assert_same(checkpoint.restore(path, like=posterior.mean), posterior)


WRITER = """
import sys
import jax.numpy as jnp
import l2m_optax as l2m

params = {str(i): jnp.full((64, 1024), float(i)) for i in range(8)}
moment = l2m.SecondMoment(nu=params | {"0": jnp.ones((64, 1024))})
posterior = l2m.laplace(params, moment, num_data=100, batch_size=10)
for step in range(int(sys.argv[2]), 10_000):
    print(step, flush=True)
    l2m.checkpoint.save(f"{sys.argv[1]}/{step}", posterior)
"""


def test_a_killed_writer_leaves_whole_checkpoints_only(tmp_path):
    """Four writers are killed; each has written and been cut off at some random moment."""
    like = {str(i): jnp.full((64, 1024), float(i)) for i in range(8)}
    chance, step = random.Random(0), 0
    for _ in range(4):
        command = [sys.executable, "-c", WRITER, str(tmp_path), str(step)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            try:
                for _ in range(chance.randrange(1, 4)):
                    started = int(writer.stdout.readline())
                time.sleep(chance.random() * 0.3)
            finally:
                writer.kill()
        whole = [int(f.name) for f in tmp_path.iterdir() if f.name.isdigit()]
        assert set(range(started)) <= set(whole), "a finished checkpoint was lost"
        for name in whole[-2:]:
            restored = checkpoint.restore(tmp_path / str(name), like=like)
            np.testing.assert_array_equal(restored.mean["7"], like["7"])
        step = max(whole, default=-1) + 1


def test_saving_in_the_background_keeps_what_was_there(tmp_path):
    posterior = made("plain")
    copied = jax.tree.map(lambda x: jnp.array(x, copy=True), posterior)
    pending = checkpoint.save_async(tmp_path / "posterior", copied)
    for leaf in jax.tree.leaves(copied.mean):
        leaf.delete()
    pending.wait()
    assert_same(
        checkpoint.restore(tmp_path / "posterior", like=posterior.mean).mean, posterior.mean
    )


def test_a_donated_posterior_is_refused(tmp_path):
    params = {"w": jnp.ones(3)}
    posterior = l2m.laplace(params, moment_of(params), num_data=50, batch_size=5)
    params["w"].delete()
    with pytest.raises(ValueError, match="donated"):
        checkpoint.save(tmp_path / "posterior", posterior)


# Training states


@functools.cache
def trained():
    tx = optax.chain(optax.identity(), optax.adamw(1e-2))
    params = network_params(jax.random.key(0))
    state = tx.init(params)

    @jax.jit
    def step(params, state, x):
        grads = jax.grad(lambda p: jnp.mean(jnp.square(network(p, x))))(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for seed in range(5):
        params, state = step(params, state, jax.random.normal(jax.random.key(seed), (8, 4)))
    return tx, params, state


def write_plain(path, params, state):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, {"params": params, "opt_state": state, "step": 5})
    return path


def write_train_state(path, params, state):
    from flax.training.train_state import TrainState

    whole = TrainState(5, None, params, optax.identity(), state)
    with ocp.CheckpointManager(path) as manager:
        for step in (1, 12):
            manager.save(step, args=ocp.args.StandardSave(whole))
    return path


def write_items(path, params, state):
    items = {
        "state": ocp.args.StandardSave({"params": params, "opt_state": state}),
        "notes": ocp.args.JsonSave({"a": 1}),
    }
    with ocp.CheckpointManager(path) as manager:
        manager.save(3, args=ocp.args.Composite(**items))
    return path


LAYOUTS = {"plain": write_plain, "TrainState": write_train_state, "items": write_items}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_posterior_out_of_a_training_checkpoint(layout, tmp_path):
    tx, params, state = trained()
    path = LAYOUTS[layout](tmp_path / "run", params, state)
    numbers = {"num_data": 100, "batch_size": 8}
    found = checkpoint.from_training_state(path, like=params, decay=0.999, **numbers)
    expected = l2m.laplace(params, l2m.second_moment(state, params, tx=tx), **numbers)
    assert_same(found.mean, expected.mean)
    assert_same(found.second_moment.nu, expected.second_moment.nu)
    assert_same(l2m.posterior.precision(found), l2m.posterior.precision(expected))


def test_a_posterior_out_of_an_nnx_checkpoint(tmp_path):
    from flax import nnx

    model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
    x = jax.random.normal(jax.random.key(0), (8, 4))
    optimizer.update(model, nnx.grad(lambda m: jnp.mean(jnp.square(m(x))))(model))
    with ocp.StandardCheckpointer() as checkpointer:
        both = {"model": nnx.state(model), "optimizer": nnx.state(optimizer)}
        checkpointer.save(tmp_path / "run", both)
    _, params = nnx.split(model, nnx.Param)
    posterior = checkpoint.from_training_state(
        tmp_path / "run", like=params, decay=0.999, num_data=100, batch_size=8, params="model"
    )
    assert_same(posterior.mean, params)
    nu = jax.tree.leaves(posterior.second_moment.nu)
    held = jax.tree.leaves(nnx.state(optimizer)["opt_state"][0]["nu"])
    assert all(np.array_equal(a, b) for a, b in zip(nu, held, strict=True))


def test_only_what_is_needed_is_read(tmp_path):
    """The files of the first moment may be gone: orbax is never asked for it."""
    _, params, state = trained()
    path = write_plain(tmp_path / "run", params, state)
    asked = []
    original = ocp.PyTreeCheckpointer.restore

    def watched(self, where, *, args):
        leaves = jax.tree_util.tree_leaves_with_path(args.item, is_leaf=lambda x: x is ...)
        asked.append([jax.tree_util.keystr(p) for p, leaf in leaves if leaf is not ...])
        return original(self, where, args=args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ocp.PyTreeCheckpointer, "restore", watched)
        checkpoint.from_training_state(path, like=params, decay=0.999, num_data=100, batch_size=8)
    assert all(len(names) == 1 for names in asked), "one leaf at a time"
    assert not any("'mu'" in name for names in asked for name in names)
    assert len(asked) == 2 * len(jax.tree.leaves(params)) + 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"params": "weights"}, "weights.*no such leaf"),
        ({"like": {"body": jnp.ones(3)}}, "no such leaf"),
        ({"decay": 1.5}, "decay"),
    ],
)
def test_training_states_that_do_not_fit_are_refused(change, message, tmp_path):
    _, params, state = trained()
    path = write_plain(tmp_path / "run", params, state)
    arguments = {"like": params, "decay": 0.999, "num_data": 100, "batch_size": 8} | change
    with pytest.raises(ValueError, match=message):
        checkpoint.from_training_state(path, **arguments)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"momentum": {"w": jnp.ones(3)}}, "got none"),
        ({str(i): {"count": 3, "mu": {"w": 1.0}, "nu": {"w": 1.0}} for i in (0, 1)}, "0, .*1"),
        ({"nu": {"w": jnp.ones(3)}}, "count"),
    ],
    ids=["no second moment", "two of them", "no count"],
)
def test_states_without_one_second_moment_are_refused(state, message, tmp_path):
    path = write_plain(tmp_path / "run", {"w": jnp.ones(3)}, state)
    with pytest.raises(ValueError, match=message):
        checkpoint.from_training_state(
            path, like={"w": jnp.ones(3)}, decay=0.9, num_data=100, batch_size=8
        )


def test_interrupted_training_gives_the_same_posterior(tmp_path):
    """Ten steps, or five, a checkpoint, and five more: bit for bit."""
    tx = optax.adam(1e-2)
    start = network_params(jax.random.key(0))

    @jax.jit
    def step(params, state, seed):
        x = jax.random.normal(jax.random.key(seed), (8, 4))
        grads = jax.grad(lambda p: jnp.mean(jnp.square(network(p, x))))(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    def run(params, state, seeds):
        for seed in seeds:
            params, state = step(params, state, seed)
        return params, state

    def posterior(params, state):
        moment = l2m.second_moment(state, params, tx=tx)
        return l2m.laplace(params, moment, num_data=100, batch_size=8)

    whole = posterior(*run(start, tx.init(start), range(10)))
    half = run(start, tx.init(start), range(5))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "half", half)
    resumed = ocp.StandardCheckpointer().restore(tmp_path / "half", half)
    assert_same(posterior(*run(*resumed, range(5, 10))), whole)
