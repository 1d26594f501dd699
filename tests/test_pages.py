"""Every page of docs/ that shows Python is run, and what the page says of the result is true."""

import jax.numpy as jnp
import numpy as np
import pytest
from test_readme import PYTHON_BLOCK, ROOT, read, run_blocks

ELSEWHERE = {"decisions", "frameworks", "index", "scale", "serving", "weight_decay"}
"""Pages whose results a test beside their subject looks at; the first page has README's code."""
PAGES = {
    page.stem
    for page in (ROOT / "docs").glob("*.md")
    if PYTHON_BLOCK.search(page.read_text(encoding="utf-8"))
}


def probabilities(page):
    return np.allclose(page["p"].probs.sum(axis=-1), 1.0, atol=1e-5)


CLAIMS = {
    "batchnorm": probabilities,
    "batches": lambda page: (
        page["one"].scale.ratio > 3 > 1.5 > page["all_sizes"].scale.ratio > 1 / 1.5
    ),
    "choosing": probabilities,
    "regression": lambda page: (
        page["report"].chosen == "all layers" and 0.9 < page["covered"] < 0.98
    ),
    "temperature": lambda page: (
        page["cold"] < 1e-3 and jnp.isclose(page["info"].value, 10.0, rtol=1e-3)
    ),
    "tokens": lambda page: page["p"].probs.shape == (4, 12, 8) and probabilities(page),
}


@pytest.mark.parametrize("page", CLAIMS)
@pytest.mark.filterwarnings("error")
def test_the_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert CLAIMS[page](run_blocks(f"docs/{page}.md"))


def test_no_page_is_forgotten():
    assert set(CLAIMS) | ELSEWHERE == PAGES


def test_the_landing_page_shows_what_the_readme_shows():
    shown = PYTHON_BLOCK.findall(read("README.md"))
    assert shown == PYTHON_BLOCK.findall(read("docs/index.md"))
