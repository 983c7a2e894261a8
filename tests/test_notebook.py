"""The notebook of demo/ holds no outputs, its commands exist, and it runs from its first cell to its last."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest

from nuclass import cli

NOTEBOOK = Path(__file__).parent.parent / "demo" / "nuclass_demo.ipynb"


@pytest.fixture
def notebook() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def test_it_holds_no_outputs(notebook: Any) -> None:
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert len(notebook.cells) < 20
    assert NOTEBOOK.stat().st_size < 12_000


def test_its_commands_parse(notebook: Any) -> None:
    text = "\n".join(cell.source for cell in notebook.cells if cell.source.startswith("%%bash"))
    lines = re.findall(r"^(?:\w+=\S+ )*nuclass (.*)$", text.replace("\\\n", " "), re.MULTILINE)
    assert len(lines) >= 8
    for line in lines:
        options = cli._parser().parse_args(line.split())
        assert callable(options.run)


@pytest.mark.long
def test_it_runs(notebook: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    client = nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    said = "".join(
        output.get("text", "") for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
    )
    share, cells = re.findall(r"(\d+)% of (\d+) typed cells have their true class", said)[0]
    assert int(cells) > 300
    assert int(share) > 20, "no better than chance"
    for name in ("predictions.csv", "predictions.geojson", "summary.html", "run.json"):
        assert (tmp_path / "nuclass_demo" / "typed" / name).is_file()
