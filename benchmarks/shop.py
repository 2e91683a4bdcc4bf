"""The built-in shop through all stages in one `dvc repro`, from a small size to the whole 20.7 million events."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd
from gnn_ecommerce.core import STAGES, GnnEcommerceError
from gnn_ecommerce.run.pipeline import apply_overlay, run_pipeline, stage_costs

from benchmarks.common import ROOT, machine, row, write

SIZES = {"shop of 0.2 M events": 200_000, "shop of 2 M events": 2_000_000, "shop of 20.7 M events": 20_692_840}
EVENTS_TO_GRAPH = ("data_prep", "graph_build")


def clone(folder):
    "This commit in a folder of its own, so that a run disturbs no project and finds nothing that is up to date."
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    return Path(folder)


def costs_of(events, folder, last=None):
    """Seconds and peak memory of each stage at one size, up to stage `last`.

    Catalogue and customers are sized likewise; the other settings are those of params.yaml.
    """
    project = clone(folder)
    apply_overlay(dict(sample_data=dict(events=events, items=None)), project / "params.yaml")
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(project)  # the clone's package, whichever one is installed
    try:
        run_pipeline(project, *([last] if last else []))
    finally:
        os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)
    costs, stages = stage_costs(project), list(STAGES)[: list(STAGES).index(last) + 1] if last else list(STAGES)
    if list(costs.stage) != stages:
        raise GnnEcommerceError(f"expected the costs of {', '.join(stages)}, found {', '.join(costs.stage)}")
    return costs


def rows_of(dataset, costs):
    "A row a stage and measure, and one of all together."
    total = pd.DataFrame([dict(stage="total", seconds=costs.seconds.sum(), peak_gb=costs.peak_gb.max())])
    return [
        row(c.stage, dataset, metric, getattr(c, metric), unit)
        for c in pd.concat([costs, total]).itertuples()
        for metric, unit in (("seconds", "s"), ("peak_gb", "GB"))
    ]


def sizes_named(only, full):
    "All sizes (`full`), the first one alone, or those of `only`, in millions of events, such as `0.2`."
    chosen = (
        [d for d in SIZES if d.split()[2] in [o.split()[0] for o in only]]
        if only
        else list(SIZES)
        if full
        else list(SIZES)[:1]
    )
    if not chosen:
        sizes = ", ".join(d.removeprefix("shop of ").removesuffix(" events") for d in SIZES)
        raise SystemExit(f"expected sizes among {sizes}, found {', '.join(only)}")
    return chosen


def run_sizes(sizes, last=None):
    """Measure some sizes, up to stage `last`.

    The suites `whole_shop` (all stages) and `preparation` (events to graph) are written as soon as a size is done.
    """
    for dataset in sizes:
        on = machine()
        with tempfile.TemporaryDirectory(dir=os.environ.get("GNN_ECOMMERCE_WORK")) as folder:
            costs = costs_of(SIZES[dataset], Path(folder) / "shop", last)
        if last is None:
            write("whole_shop", rows_of(dataset, costs), on=on)
        write("preparation", rows_of(dataset, costs[costs.stage.isin(EVENTS_TO_GRAPH)]), on=on)
        print(f"{dataset}: {costs.seconds.sum():.0f} s, {costs.peak_gb.max():.2f} GB", flush=True)
        sys.stdout.flush()
