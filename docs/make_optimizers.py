"""Write docs/optimizers.md from the table that the tests hold true: `make docs-optimizers`."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests"))

from optimizers import CORRECTED, READ, REFUSED  # noqa: E402

INTRODUCTION = """\
# What each optimizer of optax holds

`make docs-optimizers` makes this page from `tests/optimizers.py`; every row is a test. The verdicts
are those of `identify`. It runs the optimizer on known gradients and does not look at names.
`laplace(..., tx=tx)`, `second_moment(opt_state, params, tx=tx)` and `expose_second_moment(tx)`
follow these verdicts. "Corrected" means that the state does not hold a plain mean of squares of
every leaf, and that the library corrects for this.

Without `tx`, only states whose type says what they hold are read. adamax, yogi and adopt keep their
states in Adam's own type. So this type is refused until you pass `tx`, or pass `decay`, with which
you state that the array is a mean of squares.

For an optimizer that is refused, track the second moment beside it:
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
