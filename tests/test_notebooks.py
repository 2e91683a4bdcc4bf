"""Every notebook is a test: nbdev's own runner executes it, in a process of its own."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT
from notebooks import notebooks

RUN = """
import sys
from pathlib import Path
from nbdev.test import test_nb
from nbdev.config import get_config
skip = set(get_config().tst_flags.split())
passed, seconds = test_nb(Path(sys.argv[1]), skip_flags=skip, force_flags=sys.argv[2].split(), basepath=get_config().config_path)
sys.exit(not passed)
"""


def run_notebook(path, flags="", cwd=ROOT, timeout=600):
    "Execute one notebook through nbdev's test runner; returns the finished process."
    env = {**os.environ, "MPLBACKEND": "agg", "GNN_ECOMMERCE_PROGRESS": "none", "PYTHONWARNINGS": "default"}
    return subprocess.run(
        [sys.executable, "-c", RUN, str(path), flags], cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout
    )


@pytest.mark.parametrize(
    "path", [pytest.param(f, id=str(f.relative_to(ROOT / "nbs").with_suffix(""))) for f in notebooks()]
)
def test_notebook(path, request):
    done = run_notebook(path, request.config.getoption("flags"))
    assert done.returncode == 0, f"{path.name} failed\n{done.stdout[-2000:]}\n{done.stderr[-6000:]}"


def test_the_runner_sees_a_failing_cell_and_skips_flagged_ones(tmp_path):
    "Guards the runner itself: a notebook that fails must fail, and `tst_flags` must be respected."
    from execnb.nbio import new_nb, write_nb

    for name, source in dict(
        bad="assert 1 == 2, 'told you'", flagged="#| slow\nassert False", good="assert True"
    ).items():
        write_nb(new_nb(["# Title", source]), tmp_path / f"{name}.ipynb")
    bad = run_notebook(tmp_path / "bad.ipynb")
    # new_nb makes code cells of all texts; "# Title" is a comment there
    assert bad.returncode == 1 and "told you" in bad.stderr
    assert run_notebook(tmp_path / "flagged.ipynb").returncode == 0
    assert run_notebook(tmp_path / "flagged.ipynb", "slow").returncode == 1
    assert run_notebook(tmp_path / "good.ipynb").returncode == 0
