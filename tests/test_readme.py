"""What README.md says is true: its Python runs, and the commands it names exist."""

import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parents[1]
PYTHON_BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
MAKE_COMMAND = re.compile(r"(?:^|`|&& )make ([a-z][a-z-]*)", re.MULTILINE)
MAKE_TARGET = re.compile(r"^([a-z][a-z-]*):", re.MULTILINE)


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def run_blocks(name: str) -> dict:
    """The namespace that a page's Python leaves behind, run from top to bottom."""
    text = read(name)
    blocks = list(PYTHON_BLOCK.finditer(text))
    assert blocks, f"{name}: expected at least one ```python block"
    namespace = {"__name__": "page"}
    with jax.default_device(jax.devices("cpu")[0]):
        for block in blocks:
            above = "\n" * text.count("\n", 0, block.start(1))  # tracebacks name the page's lines
            exec(compile(above + block[1], name, "exec"), namespace)
    return namespace


def test_the_python_blocks_run_in_a_process_of_their_own(tmp_path):
    code = "\n".join(PYTHON_BLOCK.findall(read("README.md")))
    assert code
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)


@pytest.mark.parametrize("command", ["demo", "test"])
def test_the_readme_names_the_main_commands(command):
    assert command in MAKE_COMMAND.findall(read("README.md"))


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_the_commands_are_targets(document):
    assert set(MAKE_COMMAND.findall(read(document))) <= set(MAKE_TARGET.findall(read("Makefile")))
