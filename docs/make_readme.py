"""Write the recorded results into README.md and docs/index.md, after a `make bench`."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from drawing import summary  # noqa: E402

PAGES = HERE.parent / "README.md", HERE / "index.md"


def main() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        page.write_text(summary.replaced(text), encoding="utf-8")


if __name__ == "__main__":
    main()
