"""Where a posterior is to be written: checked before, and told of and cleared after a failure."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path

from l2m_optax._support.checks import complaint

SUFFIX = ".orbax-checkpoint-tmp"
"""What orbax appends to the name of a directory as long as it writes there."""
_PATIENCE = 10.0
"""Seconds after which what threads bring back is left."""


def check_place(where: Path) -> None:
    """Refuse a path that is taken, and one where nothing of this name can be made.

    Raises:
      ValueError: naming the path.
    """
    if os.path.lexists(where):
        raise _taken(where)
    try:
        where.parent.mkdir(parents=True, exist_ok=True)
        os.rmdir(tempfile.mkdtemp(prefix=where.name + SUFFIX, dir=where.parent))
    except OSError as error:
        remedy = "save into a directory that you may write to, under a shorter name"
        got = f"{error.strerror}: {str(error.filename)[:100]}"
        raise ValueError(complaint(str(where), "a place to write", got, remedy)) from error


def failure(where: Path, error: Exception) -> Exception:
    """What to raise when a save ended with `error`."""
    if os.path.lexists(where):  # it was free at first, so that somebody else was faster
        return _taken(where)
    got = f"{type(error).__name__}: {error}"[:300]
    remedy = "make room, if the disk is full, and save again"
    return OSError(complaint(str(where), "a posterior written whole", got, remedy))


def clear(where: Path) -> None:
    """Remove the directories that orbax began for this path and did not finish.

    Orbax reports the first item that fails; its threads may still write the others, and bring back
    what was just removed. So look again until nothing came back.
    """
    end = time.monotonic() + _PATIENCE
    while _remove_begun(where) and time.monotonic() < end:
        time.sleep(0.1)


def _remove_begun(where: Path) -> bool:
    """Remove what is there now; was there anything?"""
    begun = [path for path in where.parent.iterdir() if path.name.startswith(where.name + SUFFIX)]
    for folder in begun:
        shutil.rmtree(folder, ignore_errors=True)
    return bool(begun)


def _taken(where: Path) -> ValueError:
    remedy = "save under another name, such as that of the step; nothing is overwritten"
    return ValueError(complaint(str(where), "a path that does not exist", "one that does", remedy))
