"""Where in a directory that orbax wrote the tree lies: at its root, in a step, or in an item."""

from __future__ import annotations

from pathlib import Path

from l2m_optax._support.checks import complaint


def find_item(where: Path, name: str, step: int | None) -> Path:
    """The directory of the pytree: `where`, one of its steps, or the one item of a step.

    Raises:
      FileNotFoundError: if there is nothing.
      ValueError: if it is no checkpoint, holds several, or has no such step.
    """
    if not where.is_dir():
        remedy = "pass the directory of a checkpoint, or the root of a CheckpointManager"
        raise FileNotFoundError(complaint(name, "a directory", "nothing", remedy))
    folders = [folder for folder in where.iterdir() if folder.is_dir()]
    is_checkpoint = (where / "_METADATA").is_file()
    steps = {} if is_checkpoint else {int(f.name): f for f in folders if f.name.isdigit()}
    if steps or step is not None:
        return find_item(_step(steps, name, step), name, None)
    if is_checkpoint:
        return where
    items = [folder for folder in folders if (folder / "_METADATA").is_file()]
    if len(items) != 1:
        got = ", ".join(sorted(folder.name for folder in items))[:200] or "none"
        remedy = "pass the directory of the item that holds params and opt_state"
        raise ValueError(complaint(name, "a checkpoint that orbax wrote", got, remedy))
    return items[0]


def _step(steps: dict[int, Path], name: str, step: int | None) -> Path:
    """The directory of a step, the last by default.

    Raises:
      ValueError: naming some of the steps, if this one is not among them.
    """
    chosen = max(steps) if step is None else step
    if chosen not in steps:
        last = ", ".join(map(str, sorted(steps)[-5:]))
        got = f"{len(steps)} steps, the last of them {last}" if steps else "no steps"
        remedy = "pass one of them, or leave step= out"
        raise ValueError(complaint(name, f"step {step}", got, remedy))
    return steps[chosen]
