"""Every notebook is a test: nbdev's own runner executes it, in a process of its own.

The processes are forked from one that has loaded the large libraries, which saves five seconds a notebook."""

import multiprocessing
import os
import sys
import warnings
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import ROOT
from notebooks import notebooks

LIBRARIES = ["nbdev.test", "torch", "pandas", "scipy.sparse", "numba", "pyarrow.parquet", "matplotlib.pyplot", "ibis"]
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(LIBRARIES)


class Outcome(NamedTuple):
    passed: bool
    printed: str


def execute(path, flags, log):
    "Run one notebook with nbdev's test runner; what it prints goes to `log`, the exit code says whether it passed."
    from nbdev.config import get_config
    from nbdev.test import test_nb

    out = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.environ.update(MPLBACKEND="agg", GNN_ECOMMERCE_PROGRESS="none")
    warnings.simplefilter("default")
    config = get_config(path=ROOT)
    passed, _ = test_nb(
        Path(path), skip_flags=set(config.tst_flags.split()), force_flags=flags.split(), basepath=config.config_path
    )
    sys.stdout.flush()
    os._exit(not passed)


def run_notebook(path, folder, flags="", timeout=600):
    "Execute a notebook in a process of its own; what it prints passes through a file in `folder`."
    log = folder / "printed.txt"
    process = FORKS.Process(target=execute, args=(str(path), flags, str(log)))
    process.start()
    process.join(timeout)
    if process.is_alive():
        process.kill()
    return Outcome(process.exitcode == 0, log.read_text(encoding="utf8", errors="replace") if log.is_file() else "")


def some(files):
    return [pytest.param(f, id=f.relative_to(ROOT / "nbs").with_suffix("").as_posix()) for f in files]


@pytest.mark.slow
@pytest.mark.parametrize("path", some(notebooks()))
def test_notebook(path, request, tmp_path):
    outcome = run_notebook(path, tmp_path, request.config.getoption("flags"))
    assert outcome.passed, f"{path.name} failed\n{outcome.printed[-8000:]}"


CELLS = {"bad": "assert 1 == 2, 'told you'", "flagged": "#| slow\nassert False", "good": "assert True"}


@pytest.mark.parametrize(
    ("name", "flags", "passed"),
    [("bad", "", False), ("flagged", "", True), ("flagged", "slow", False), ("good", "", True)],
)
def test_the_runner_sees_a_failing_cell_and_skips_flagged_ones(tmp_path, name, flags, passed):
    from execnb.nbio import new_nb, write_nb

    write_nb(new_nb(["# a comment", CELLS[name]]), tmp_path / f"{name}.ipynb")
    outcome = run_notebook(tmp_path / f"{name}.ipynb", tmp_path, flags)
    assert (outcome.passed, "told you" in outcome.printed) == (passed, name == "bad")
