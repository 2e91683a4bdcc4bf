"""Every notebook is a test: nbdev's own runner executes it, in a process of its own."""

import os
from pathlib import Path

import pytest
from conftest import ROOT
from forked import run_forked
from notebooks import notebooks


def execute(path, flags, data=""):
    "Run one notebook with nbdev's test runner; the exit code says whether it passed."
    from nbdev.config import get_config
    from nbdev.test import test_nb

    os.environ["GNN_ECOMMERCE_DATA"] = data  # without data a guide makes up its own
    config = get_config(path=ROOT)
    passed, _ = test_nb(
        Path(path), skip_flags=set(config.tst_flags.split()), force_flags=flags.split(), basepath=config.config_path
    )
    raise SystemExit(not passed)


def some(files):
    return [pytest.param(f, id=f.relative_to(ROOT / "nbs").with_suffix("").as_posix()) for f in files]


@pytest.mark.slow
@pytest.mark.parametrize("path", some(notebooks()))
def test_notebook(path, request, tmp_path):
    flags, public = map(request.config.getoption, ("flags", "public_data"))
    data = os.environ.get("GNN_ECOMMERCE_DATA", "") if public else ""
    outcome = run_forked(execute, str(path), flags, data, log=tmp_path / "printed.txt")
    assert outcome.code == 0, f"{path.name} ended with {outcome.code}\n{outcome.printed[-8000:]}"


CELLS = {"bad": "assert 1 == 2, 'told you'", "flagged": "#| slow\nassert False", "good": "assert True"}


@pytest.mark.parametrize(
    ("name", "flags", "passed"),
    [("bad", "", False), ("flagged", "", True), ("flagged", "slow", False), ("good", "", True)],
)
def test_the_runner_sees_a_failing_cell_and_skips_flagged_ones(tmp_path, name, flags, passed):
    from execnb.nbio import new_nb, write_nb

    write_nb(new_nb(["# a comment", CELLS[name]]), tmp_path / f"{name}.ipynb")
    outcome = run_forked(execute, str(tmp_path / f"{name}.ipynb"), flags, log=tmp_path / "printed.txt")
    assert (outcome.code == 0, "told you" in outcome.printed) == (passed, name == "bad")
