"""A save that fails says why, leaves nothing and lets the process end; bad files are refused."""

import contextlib
import errno
import gc
import json
import os
import stat
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from helpers import moment_of, run_script

import l2m_optax as l2m
from l2m_optax import checkpoint
from l2m_optax.checkpoint._place import SUFFIX, clear

FORMATS = {
    "orbax": (checkpoint.save, checkpoint.restore),
    "safetensors": (checkpoint.save_safetensors, checkpoint.load_safetensors),
}
PARAMS = {"w": jnp.arange(300.0)}
POSTERIOR = l2m.laplace(PARAMS, moment_of(PARAMS), num_data=50, batch_size=5)

FAILING = """
import resource, sys
from pathlib import Path
from test_failures import POSTERIOR, checkpoint

folder = Path(sys.argv[1])
(folder / "file").write_text("no directory")
for name in ("file", "file/posterior", "n" * 250, "n" * 300):
    try:
        checkpoint.save(folder / name, POSTERIOR)
    except ValueError as error:
        assert str(error).startswith(str(folder / name)), error
        print("refused", flush=True)
checkpoint.save(folder / "small", POSTERIOR)  # compiles: what is compiled is a file as well
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    checkpoint.save(folder / "large", POSTERIOR)
except OSError as error:
    assert str(error).startswith(str(folder / "large")), error
    print("refused", flush=True)
"""


def test_a_process_ends_after_saves_that_failed(tmp_path):
    """Threads of orbax would wait for a directory that nobody could make.

    The last save fails while it writes: files may not grow beyond 1000 bytes.
    """
    done = run_script(FAILING, tmp_path, folder=Path(__file__).parent, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["refused"] * 5
    assert [child.name for child in tmp_path.iterdir() if child.name != "small"] == ["file"]


def test_what_a_thread_still_writes_is_removed_as_well(tmp_path):
    begun = tmp_path / ("posterior" + SUFFIX)

    def write_on():
        for i in range(60):
            begun.mkdir(exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                (begun / str(i)).touch()
            time.sleep(0.005)

    begun.mkdir()
    straggler = threading.Thread(target=write_on)
    straggler.start()
    clear(tmp_path / "posterior")
    straggler.join()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", ["file/posterior", "n" * 300], ids=["below a file", "long"])
def test_places_where_nothing_can_be_saved(form, name, tmp_path):
    (tmp_path / "file").write_text("no directory")
    with pytest.raises(ValueError, match=f"^{tmp_path / name}: expected a place to write"):
        FORMATS[form][0](tmp_path / name, POSTERIOR)


@pytest.mark.parametrize("form", FORMATS)
def test_a_place_without_permission_is_refused(form, tmp_path, monkeypatch):
    def refuse(path, *_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    for call in ("mkdir", "open"):
        monkeypatch.setattr(os, call, refuse)
    with pytest.raises(ValueError, match=r"posterior: expected a place to write.*denied"):
        FORMATS[form][0](tmp_path / "posterior", POSTERIOR)


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"posterior.*No space left"):
        checkpoint.save_safetensors(tmp_path / "posterior", POSTERIOR)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_a_file_has_the_mode_that_the_process_asks_for(mask, tmp_path):
    before = os.umask(mask)
    try:
        checkpoint.save_safetensors(tmp_path / "posterior", POSTERIOR)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "posterior").stat().st_mode) == 0o666 & ~mask


@pytest.mark.parametrize("form", FORMATS)
def test_of_two_writers_the_second_is_told(form, tmp_path, monkeypatch):
    """Another writer is done at the last moment: just before the file gets its name."""
    target = tmp_path / "posterior"

    def beaten(original):
        def call(source, destination, *args, **kwargs):
            if Path(destination) == target:
                target.mkdir()
                (target / "theirs").touch()
            return original(source, destination, *args, **kwargs)

        return call

    monkeypatch.setattr(os, "rename", beaten(os.rename))
    monkeypatch.setattr(os, "link", beaten(os.link))
    with pytest.raises(ValueError, match=f"^{target}: expected a path that does not exist"):
        FORMATS[form][0](target, POSTERIOR)
    assert list(tmp_path.iterdir()) == [target]
    assert [child.name for child in target.iterdir()] == ["theirs"]


# Headers that no save wrote. Whoever can write them can also give them a valid digest.


def deep(_):
    return "[" * 100_000


def change(**parts):
    """A header with other parts and a valid digest."""

    def changed(header):
        from l2m_optax.checkpoint._record import _of_header

        header = {k: v for k, v in header.items() if k != "digest"} | parts
        header = {k: v for k, v in header.items() if v is not ...}
        return json.dumps(header | {"digest": _of_header(header)})

    return changed


def entry(**parts):
    def changed(header):
        arrays = dict(header["arrays"])
        name = "second_moment.nu['w']"
        arrays[name] = {k: v for k, v in (arrays[name] | parts).items() if v is not ...}
        return change(arrays=arrays)(header)

    return changed


HEADERS = {
    "deep": deep,
    "no JSON": lambda _: "{",
    "a list": lambda _: "[1]",
    "a long number": lambda _: "9" * 5000,
    "no arrays": change(arrays=...),
    "arrays in a list": change(arrays=["mean['w']"]),
    "arrays of numbers": change(arrays={"mean['w']": 3}),
    "no values": change(values=...),
    "values in a string": change(values="none"),
    "a value that is a list": change(values={"temperature": [1.0]}),
    "no types": change(types=...),
    "types of numbers": change(types={"": 3}),
    "another type at the root": change(types={"": "SecondMoment"}),
    "no type at the root": change(types={}),
    "a type that holds itself": change(
        types={"mean" + ".mean" * n: "Posterior" for n in range(2000)} | {"": "Posterior"},
        arrays={},
    ),
    "no shape": entry(shape=...),
    "a shape of words": entry(shape=["3"]),
    "a negative shape": entry(shape=[-3]),
    "a huge shape": entry(shape=[10**15]),
    "a shape beyond 64 bits": entry(shape=[10**30]),
    "another dtype": entry(dtype="float16"),
    "a dtype of objects": entry(dtype="object"),
    "a dtype that is a program": entry(dtype="(1000000,)f4,{'a'"),
    "a dtype in a list": entry(dtype=["float32"]),
    "no digest of an array": entry(digest=...),
    "a version in a list": change(version=[1]),
}


def rewrite_orbax(path, change):
    file = path / "header" / "metadata"
    file.write_text(change(json.loads(file.read_text())))


def rewrite_safetensors(path, change):
    whole = path.read_bytes()
    size = int.from_bytes(whole[:8], "little")
    outer = json.loads(whole[8 : 8 + size])
    outer["__metadata__"]["l2m_optax"] = change(json.loads(outer["__metadata__"]["l2m_optax"]))
    text = json.dumps(outer).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + whole[8 + size :])


REWRITE = {"orbax": rewrite_orbax, "safetensors": rewrite_safetensors}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", HEADERS)
def test_headers_that_nobody_saved_are_refused(form, name, tmp_path):
    save, load = FORMATS[form]
    path = tmp_path / "posterior"
    save(path, POSTERIOR)
    REWRITE[form](path, HEADERS[name])
    with pytest.raises(ValueError, match=str(path)) as refusal:
        load(path, like=PARAMS)
    assert len(str(refusal.value)) < 1000
    del refusal
    gc.collect()  # orbax leaves coroutines unfinished when it fails: let that be told of here


def test_the_rewritten_headers_are_read_at_all(tmp_path):
    """A header rewritten without a change is one that was saved."""
    for form, (save, load) in FORMATS.items():
        save(tmp_path / form, POSTERIOR)
        REWRITE[form](tmp_path / form, change())
        assert jax.tree.structure(load(tmp_path / form, like=PARAMS)).num_leaves > 2
