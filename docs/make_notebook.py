"""A script in notebooks/ into the notebook beside it, with outputs: `make notebooks`."""

import sys
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def main(script: Path) -> None:
    notebook = jupytext.read(script)
    notebook.metadata = nbformat.NotebookNode(kernelspec=KERNEL)
    NotebookClient(
        notebook,
        timeout=600,
        coalesce_streams=True,  # what a cell prints is one output
        resources={"metadata": {"path": script.parent}},
    ).execute()
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"  # by chance otherwise, so that nothing changed would be a change
        cell.metadata = nbformat.NotebookNode()
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]  # progress bars
    nbformat.write(notebook, script.with_suffix(".ipynb"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
