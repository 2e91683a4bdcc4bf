"""What the suites share: rows of a result file, the machine that measured them, runs of several contenders in turn."""

import json
import os
import platform
import statistics
import time
from importlib import metadata
from pathlib import Path

import psutil
from gnn_ecommerce.models.checkpoint import git_commit
from gnn_ecommerce.core import atomic_path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results"
FIELDS = ("name", "dataset", "metric", "split", "value", "unit", "runs", "min", "max", "peer", "ratio", "chosen_on")
LIBRARIES = ("torch", "torch-geometric", "numpy", "scipy", "pandas", "numba", "implicit")


def row(
    name,
    dataset,
    metric,
    values,
    unit=None,
    split=None,
    peer=None,
    peer_values=None,
    chosen_on=None,
    higher_is_better=None,
):
    "One measurement: the median of `values`; its ratio to a peer's median in the same run, above 1 if ours is better."
    values = [values] if isinstance(values, (int, float)) else list(values)
    value, ratio = statistics.median(values), None
    if peer_values is not None:
        other = statistics.median([peer_values] if isinstance(peer_values, (int, float)) else peer_values)
        better = (
            higher_is_better if higher_is_better is not None else metric not in ("seconds", "cpu_seconds", "peak_gb")
        )
        ratio = float(f"{value / other if better else other / value:.4g}")
    digits = {k: float(f"{v:.5g}") for k, v in dict(value=value, min=min(values), max=max(values)).items()}
    filled = dict(
        name=name,
        dataset=dataset,
        metric=metric,
        split=split,
        unit=unit,
        runs=len(values),
        peer=peer,
        ratio=ratio,
        chosen_on=chosen_on,
        **digits,
    )
    return {k: filled[k] for k in FIELDS}


def named_parts(suite, parts, only):
    "The parts of a suite to run: those that are named, or all. Ends the program for a name that is none."
    if unknown := [name for name in only if name not in parts]:
        raise SystemExit(f"{suite}: expected parts among {', '.join(parts)}, found {', '.join(unknown)}")
    return list(only or parts)


def machine():
    "The processor, cores and memory of this machine, and its load in the last minute before the run."
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.is_file()
        else []
    )
    usable = min(
        int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count()),
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    )
    threads = dict(threads=usable) if usable < os.cpu_count() else {}
    load = round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None
    return dict(
        cpu=names[0] if names else platform.processor(),
        cores=os.cpu_count(),
        **threads,
        memory_gb=round(psutil.virtual_memory().total / 1e9, 1),
        load_before=load,
    )


def versions():
    "Versions of Python and of the libraries that decide the figures."
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            pass
    return found


def result_file(suite, folder=RESULTS):
    "Where a suite's figures are: SUITE.json, or SUITE-NAME.json of the machine that GNN_ECOMMERCE_MACHINE names."
    name = os.environ.get("GNN_ECOMMERCE_MACHINE")
    return Path(folder) / f"{suite}{f'-{name}' if name else ''}.json"


def read(suite, folder=RESULTS):
    "A result file, or None where there is none yet."
    path = result_file(suite, folder)
    return json.loads(path.read_text(encoding="utf8")) if path.is_file() else None


def write(suite, rows, folder=RESULTS, extra_versions=None, on=None):
    "Write a result file atomically. Rows measured again replace those of an earlier file, the others stay."

    def key(r):
        return tuple(r[k] for k in ("name", "dataset", "metric", "split", "peer"))

    old, new = read(suite, folder), {key(r) for r in rows}
    kept = [r for r in old["rows"] if key(r) not in new] if old else []
    known = {**(old["versions"] if old else {}), **versions(), **(extra_versions or {})}
    content = dict(
        suite=result_file(suite).stem,
        commit=git_commit(ROOT),
        machine=on or machine(),
        versions=known,
        rows=kept + rows,
    )
    save(content, result_file(suite, folder))
    return content


def save(content, path):
    "JSON with one entry of a list on each line, so that two versions can be compared; atomic."
    text = json.dumps(content, indent=1, allow_nan=False)
    for key in ("rows", "curves"):
        if key in content:
            lines = ",\n".join("  " + json.dumps(r, allow_nan=False) for r in content[key])
            text = json.dumps({**content, key: "@"}, indent=1, allow_nan=False).replace('"@"', f"[\n{lines}\n ]")
    with atomic_path(path) as tmp:
        tmp.write_text(text + "\n", encoding="utf8")


def in_turn(contenders, repeats):
    "Seconds of each contender, all of them in turn, `repeats` times, after one call each to warm up."
    for run in contenders.values():
        run()
    seconds = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds


class Clock:
    "Wall and processor seconds since it was made."

    def __init__(self):
        self.start = time.perf_counter(), time.process_time()

    @property
    def wall(self):
        return time.perf_counter() - self.start[0]

    @property
    def cpu(self):
        return time.process_time() - self.start[1]
