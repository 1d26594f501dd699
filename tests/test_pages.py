"""Every page of docs/ that shows Python is run from top to bottom, here or where it is named."""

import pytest
from test_readme import PYTHON_BLOCK, ROOT, read, run_blocks

ELSEWHERE = {"decisions", "frameworks", "index", "scale", "serving"}
"""Pages whose results a test beside their subject looks at; the first page has README's code."""
PAGES = sorted(
    page.stem
    for page in (ROOT / "docs").glob("*.md")
    if PYTHON_BLOCK.search(page.read_text(encoding="utf-8")) and page.stem not in ELSEWHERE
)


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.filterwarnings("error")
def test_the_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_blocks(f"docs/{page}.md")


def test_the_landing_page_shows_what_the_readme_shows():
    shown = PYTHON_BLOCK.findall(read("README.md"))
    assert shown == PYTHON_BLOCK.findall(read("docs/index.md"))
