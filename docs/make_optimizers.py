"""Write docs/optimizers.md from the table that the tests hold true: `make docs-optimizers`."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests"))

from optimizers import CORRECTED, READ, REFUSED  # noqa: E402

INTRODUCTION = """\
# What each optimizer of optax holds

Made by `make docs-optimizers` from `tests/optimizers.py`, whose every row is a test. The verdicts
are those of `identify`, which runs the optimizer and goes by no name; both
`second_moment(opt_state, params, tx=tx)` and `expose_second_moment(tx)` follow them. Without `tx`
only types that say what they hold are read: adamax, yogi and adopt keep their states in Adam's own
type, so that it is refused until `tx` is passed, or `decay`, which vouches for a mean of squares.

An optimizer that is refused gains a second moment from
`optax.chain(l2m.track_second_moment(0.999), tx)`.

| optimizer | verdict | what its state holds |
|---|---|---|
"""


def table() -> str:
    """The page."""
    rows = {name: ("read", f"a mean of squares with decay {d:g}") for name, d in READ.items()}
    rows |= {name: ("corrected", text) for name, text in CORRECTED.items()}
    rows |= {name: ("refused", text) for name, text in REFUSED.items()}
    lines = [f"| {name} | {verdict} | {text} |" for name, (verdict, text) in sorted(rows.items())]
    return INTRODUCTION + "\n".join(lines) + "\n"


if __name__ == "__main__":
    (ROOT / "docs" / "optimizers.md").write_text(table(), encoding="utf-8")
