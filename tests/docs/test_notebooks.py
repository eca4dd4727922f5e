"""The notebooks run from top to bottom in Jupyter's own runner and are stored without outputs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import REPOSITORY

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_stored_without_outputs_and_compiles(path: Path) -> None:
    cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert cells
    for cell in cells:
        assert cell["outputs"] == []
        assert cell["execution_count"] is None
        compile("".join(cell["source"]), str(path), "exec")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_they_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The notebooks run one after the other in one folder: the later ones use the model that the first one trains."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    for path in sorted(NOTEBOOKS, key=lambda path: path.stem != "demonstration"):
        notebook = nbformat.read(path, as_version=4)
        nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
        pictures = [
            output for cell in notebook.cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})
        ]
        assert len(pictures) >= 2, path
