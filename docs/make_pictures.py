"""Pictures and tables of results, from benchmarks/results into docs/made: part of `make docs`."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from drawing import choosing, cost, curvature, plots, quality, regression, style, tables, tasks  # noqa: E402

MADE = HERE / "made"
DRAWN = (quality, regression, cost, curvature, tasks, plots)


def main() -> None:
    for subject in DRAWN:
        for name, picture in subject.pictures().items():
            style.save(picture, MADE / f"{name}.png")
    for name, picture in choosing.pictures().items():
        style.save(picture, MADE / f"{name}.svg")
    for name, text in tables.pages().items():
        (MADE / f"{name}.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
