"""Train two networks; draw method.png, band.gif and quickstart.png here: `make docs-method`."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from drawing import band, method, reliability, style, training  # noqa: E402


def main() -> None:
    run = training.run(band.SHOWN)
    style.save(method.picture(run), HERE / "method.png")
    band.save(run, HERE / "band.gif")
    style.save(reliability.picture(), HERE / "quickstart.png")


if __name__ == "__main__":
    main()
