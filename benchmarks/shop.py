"""The built-in shop through all stages, in one `dvc repro`, from a small size to the whole shop's 20.7 million events."""
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd
from gnn_ecommerce.core import STAGES, GnnEcommerceError
from gnn_ecommerce.pipeline import apply_overlay, run_pipeline, stage_costs

from benchmarks.common import ROOT, machine, row, write

SIZES = {"shop of 0.2 M events": 200_000, "shop of 2 M events": 2_000_000, "shop of 20.7 M events": 20_692_840}
EVENTS_TO_GRAPH = ("data_prep", "graph_build")


def clone(folder):
    "This commit in a folder of its own, so that a run disturbs no project and finds nothing that is up to date."
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    return Path(folder)


def costs_of(events, folder):
    "Seconds and peak memory of each stage at one size, catalogue and customers sized likewise; the other settings are those of params.yaml."
    project = clone(folder)
    apply_overlay(dict(sample_data=dict(events=events, items=None)), project / "params.yaml")
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(project)  # the clone's package, whichever one is installed
    try: run_pipeline(project)
    finally: os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)
    costs = stage_costs(project)
    if list(costs.stage) != list(STAGES): raise GnnEcommerceError(f"expected the costs of {', '.join(STAGES)}, found {', '.join(costs.stage)}")
    return costs


def rows_of(dataset, costs):
    "A row a stage and measure, and one of all together."
    total = pd.DataFrame([dict(stage="total", seconds=costs.seconds.sum(), peak_gb=costs.peak_gb.max())])
    return [row(c.stage, dataset, metric, getattr(c, metric), unit) for c in pd.concat([costs, total]).itertuples() for metric, unit in (("seconds", "s"), ("peak_gb", "GB"))]


def run_sizes(sizes):
    "Measure some sizes, and write the suites `whole_shop` (all stages) and `preparation` (events to graph) as soon as a size is done."
    for dataset in sizes:
        on = machine()
        with tempfile.TemporaryDirectory(dir=os.environ.get("GNN_ECOMMERCE_WORK")) as folder: costs = costs_of(SIZES[dataset], Path(folder) / "shop")
        write("whole_shop", rows_of(dataset, costs), on=on)
        write("preparation", rows_of(dataset, costs[costs.stage.isin(EVENTS_TO_GRAPH)]), on=on)
        print(f"{dataset}: {costs.seconds.sum():.0f} s, {costs.peak_gb.max():.2f} GB", flush=True)
        sys.stdout.flush()
