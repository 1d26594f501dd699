"""Each notebook is in step with the script beside it, opens in Colab, is small, and runs."""

import os
import subprocess
import sys
from pathlib import Path

import jupytext
import pytest

SCRIPTS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.py"))
NAMES = [script.stem for script in SCRIPTS]
COLAB = "https://colab.research.google.com/github/l2m-optax/l2m-optax/blob/main/notebooks"


def cells(path: Path) -> list[tuple[str, str]]:
    return [(cell.cell_type, cell.source) for cell in jupytext.read(path).cells]


def test_there_are_scripts():
    assert SCRIPTS


@pytest.mark.parametrize("script", SCRIPTS, ids=NAMES)
def test_the_notebook_is_in_step(script):
    notebook = script.with_suffix(".ipynb")
    assert notebook.exists(), f"{notebook.name} is missing: run make notebooks"
    assert cells(notebook) == cells(script), f"{notebook.name} is out of step: run make notebooks"


@pytest.mark.parametrize("script", SCRIPTS, ids=NAMES)
def test_the_badge_opens_this_notebook(script):
    assert f"({COLAB}/{script.stem}.ipynb)" in cells(script)[0][1]


@pytest.mark.parametrize("script", SCRIPTS, ids=NAMES)
def test_outputs_are_kept_small(script):
    assert script.with_suffix(".ipynb").stat().st_size < 500_000


@pytest.mark.parametrize("script", SCRIPTS[1:], ids=NAMES[1:])  # the first is `make demo`
def test_the_notebook_runs(script, tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {"MPLBACKEND": "agg"}
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
