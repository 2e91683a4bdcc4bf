"""JupyterLab as `make lab` opens it: slow cells wait, and a notebook that was only opened stays as Git has it."""

import asyncio
import json
import re
import sys

import nbformat
import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "tools"))


@pytest.mark.slow
@pytest.mark.parametrize("asked, printed", [("", "Left out, it takes long."), ("%env GNN_ECOMMERCE_SLOW=1", "ran")])
def test_a_slow_cell_runs_if_somebody_asks_for_it(monkeypatch, tmp_path, asked, printed):
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONSTARTUP", str(ROOT / "tools/lab_startup.py"))
    monkeypatch.delenv("GNN_ECOMMERCE_SLOW", raising=False)
    cells = [asked, "#| slow\nprint('ran')", "# not | slow\nprint('quick')"]
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    NotebookClient(nb, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert nb.cells[1].outputs[0].text.startswith(printed)
    assert nb.cells[2].outputs[0].text == "quick\n"


def test_opening_and_saving_a_notebook_changes_nothing(tmp_path):
    from lab_config import Contents

    source = ROOT / "nbs/graph/02_kernels.ipynb"
    (tmp_path / "a.ipynb").write_bytes(source.read_bytes())
    files = Contents(root_dir=str(tmp_path))
    model = asyncio.run(files.get("a.ipynb"))
    metadata = model["content"]["metadata"]
    assert metadata["language_info"]["name"] == "python" and metadata["kernelspec"]["display_name"] != "python3"
    asyncio.run(files.save(model, "a.ipynb"))
    assert json.loads((tmp_path / "a.ipynb").read_text(encoding="utf8")) == json.loads(
        source.read_text(encoding="utf8")
    )


def test_lab_opens_the_index_with_its_own_settings():
    line = re.search(r"^lab:.*\n\t@(.*)", (ROOT / "Makefile").read_text(encoding="utf8"), re.M)[1]
    assert "tools/lab_startup.py" in line and "--config=tools/lab_config.py" in line
    assert (ROOT / "nbs/index.ipynb").is_file()
