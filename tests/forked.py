"""Functions in processes of their own, forked from one that has loaded the large libraries: each starts at once."""

import multiprocessing
import os
import sys
import traceback
import warnings
from typing import NamedTuple

LIBRARIES = [
    "nbdev.test",
    "torch",
    "torch_geometric",
    "pandas",
    "scipy.sparse.linalg",
    "numba",
    "pyarrow.parquet",
    "matplotlib.pyplot",
    "ibis.backends.duckdb",
    "networkx",
    "plotly.graph_objects",
    "ipywidgets",
    "papermill",
]
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["conftest", *LIBRARIES])


class Outcome(NamedTuple):
    code: int | None  # of the exit; negative: the signal; None: it was still running and has been killed
    printed: str


def _work(function, args, log):
    out = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.environ.update(MPLBACKEND="agg", GNN_ECOMMERCE_PROGRESS="none")
    warnings.simplefilter("default")
    code = 1
    try:
        function(*args)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(bool(end.code))
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def start_forked(function, *args, log):
    "Begin to call a function of a module; what it prints goes to the file `log`."
    process = FORKS.Process(target=_work, args=(function, args, str(log)))
    process.start()
    return process


def run_forked(function, *args, log, timeout=600):
    "Call a function of a module in a process of its own and wait for its end."
    log.unlink(missing_ok=True)
    process = start_forked(function, *args, log=log)
    process.join(timeout)
    if process.is_alive():
        process.kill()
    printed = log.read_text(encoding="utf8", errors="replace") if log.is_file() else ""
    return Outcome(process.exitcode, printed)
