"""The notebook runs from its first cell to its last, and shows what it showed when it was committed."""

import nbclient
import nbformat
import pytest

from bench.report.readme import ROOT

pytestmark = pytest.mark.cpu


def said(notebook):
    """What each cell of code prints."""
    return [
        "".join(output.text for output in cell.outputs if output.get("name") == "stdout")
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def test_the_notebook_runs_and_says_the_same(tmp_path):
    committed = nbformat.read(ROOT / "docs" / "quickstart.ipynb", as_version=4)
    notebook = nbformat.read(ROOT / "docs" / "quickstart.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert said(notebook) == said(committed)
    assert "identical: True\n" in "".join(said(notebook))
    shown = [output for cell in notebook.cells for output in cell.get("outputs", []) if "data" in output]
    assert sum("image/png" in output.data for output in shown) == 2
