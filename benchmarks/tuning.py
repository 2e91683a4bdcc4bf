"""A search for settings on two shops, and its gain on the test split. Time for each: GNN_ECOMMERCE_BUDGET, or 10m."""

import os
import tempfile
from pathlib import Path

import pandas as pd
from gnn_ecommerce.core import atomic_path, dump_yaml, load_yaml, merge_params, project_root, read_params, run_stage
from gnn_ecommerce.graph.datasets import data_folder
from gnn_ecommerce.run.tuning import gain_on_test, run_tuning

from benchmarks.common import FIELDS, RESULTS, Clock, machine, named_parts, row, write

# one kind of filter, so that a trial takes seconds: if a shop is small, `auto` tries kind `chebyshev` too
QUICK = {"training": {"filter": "paths"}, "tuning": {"space": {"training.filter": ["paths", "none"]}}}


def retailrocket():
    "Real events. Pairs are drawn at random: of the customers who buy in the last weeks, four in five are new."
    overlay = load_yaml((project_root() / "nbs" / "guides" / "retailrocket.yaml").read_text(encoding="utf8"))
    source = dict(events=str(data_folder("retailrocket")), pattern="train_events.csv", split="random_pairs")
    return merge_params(overlay, {"data_prep": source}), ["data_prep"]


def shop():
    "The built-in shop."
    return {"sample_data": {"events": 200_000, "users": None, "items": 2000}}, ["sample_data", "data_prep"]


PARTS = {"retailrocket": (retailrocket, "retailrocket, random pairs"), "shop": (shop, "built-in shop")}


def measure(part, budget, folder):
    "Search, then both settings on test."
    make, dataset = PARTS[part]
    values, stages = make()
    params = Path(folder) / "params.yaml"
    settings = merge_params(merge_params(read_params(project_root() / "params.yaml"), values), QUICK)
    params.write_text(dump_yaml(settings), encoding="utf8")
    for stage in stages:
        run_stage(stage, params)
    clock = Clock()
    result = run_tuning(params, budget)
    rows = [row("search", dataset, "seconds", clock.wall, "s"), row("search", dataset, "cpu_seconds", clock.cpu, "s")]
    rows += [
        row("search", dataset, f"{k} trials", float(result.metrics[f"{k}_trials"]))
        for k in ("complete", "pruned", "fail")
    ]
    rows += [
        row(name, dataset, result.monitor, value, "", "validation", chosen_on="validation")
        for name, value in (("settings as they were", result.defaults), ("tuned", result.best))
    ]
    rows += [row(f"importance of {k}", dataset, "share", v) for k, v in result.shares.items()]
    with atomic_path(RESULTS / f"trials_{part}.csv") as tmp:
        result.table.to_csv(tmp, index=False)
    with atomic_path(RESULTS / f"tuned_{part}.yaml") as tmp:
        tmp.write_text((params.parent / "reports" / "tuning" / "best.yaml").read_text(encoding="utf8"), encoding="utf8")
    return rows + gain(gain_on_test(params, result.overlay), dataset)


def gain(table: pd.DataFrame, dataset):
    "Rows of a paired comparison: min and max of the difference are its 95 % bootstrap interval, runs the draws."
    rows = []
    for metric, r in table.iterrows():
        if metric.split("@")[0] not in ("recall", "ndcg", "hit_rate"):
            continue
        rows += [
            row(name, dataset, metric, r[column], "", "test", chosen_on="validation")
            for name, column in (("settings as they were", "as it was"), ("tuned", "tuned"))
        ]
        digits = {
            k: float(f"{v:.5g}")
            for k, v in dict(value=r.difference, min=min(r.low, r.difference), max=max(r.high, r.difference)).items()
        }
        about = dict(name="tuned", dataset=dataset, metric=f"{metric} minus settings as they were", split="test")
        filled = about | dict(unit="", runs=1000, peer=None, ratio=None, chosen_on="validation") | digits
        rows.append({k: filled[k] for k in FIELDS})
    return rows


def run(full=False, only=()):
    "Measure each part and write its rows as soon as they are there."
    on, budget = machine(), os.environ.get("GNN_ECOMMERCE_BUDGET", "10m")
    for part in named_parts("tuning", PARTS, only):
        print(f"-- {part}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            write("tuning", measure(part, budget, folder), on=on)
