"""How to make a final model if a data set has no validation part.

Choose on the last tenth of each user's line, then train again on all of it.
"""

from dataclasses import dataclass, field

import ibis
import numpy as np
import pandas as pd
from gnn_ecommerce.core import DataError
from gnn_ecommerce.graph.datasets import data_folder
from gnn_ecommerce.graph.datasets import holdout as hold_out
from gnn_ecommerce.graph.interactions import InteractionGraph, pairs_csr
from gnn_ecommerce.graph_build import GraphBuildSettings, build_graph
from gnn_ecommerce.filter.graph_filter import GraphFilter
from gnn_ecommerce.filter.parts import added_parts
from gnn_ecommerce.models.checkpoint import build_recommender
from gnn_ecommerce.ranking.recommender import Recommender
from gnn_ecommerce.training import Run, TrainingSettings, add_parts, checkpoint_of, fit, resolve
from gnn_ecommerce.run.tuning import on_nodes

from benchmarks.common import Clock


@dataclass
class Final:
    "A model trained on the whole graph with what validation chose."

    recommender: Recommender
    best_epoch: int  # of `settings.epochs`, chosen
    b: float  # weight of the graph filter, chosen
    filter: dict | None  # the graph filter's parameters, chosen
    validation: float  # the monitored metric of what was chosen
    seconds: dict = field(default_factory=dict)  # of choosing and of training again: wall and processor seconds
    history: pd.DataFrame | None = None  # of the run that chose, with wall seconds since its start


def retrain(graph, settings, epochs):
    "Train for so many epochs on a graph, on the learning-rate schedule of `settings.epochs`."
    run = Run(graph, resolve(settings, graph))
    state = run.initial_state()
    for _ in range(epochs):
        if not np.isfinite(run.run_epoch(state)):
            raise DataError(
                f"expected a finite loss, found none in epoch {state.epoch + 1}: try a smaller learning rate"
            )
        state.epoch += 1
    return run, state.embedding


def lightgcn_of(recommender):
    "The trained LightGCN in a model that may be a sum."
    model = getattr(recommender, "embedding_part", recommender)
    return getattr(model, "parts", [model])[0]


def fit_final(graph, settings: TrainingSettings, fraction=0.1, holdout=None):
    """Choose on a part of the edges, then train and build the filter on all of `graph`.

    Chosen are epoch, temperature, layer weights, filter exponents, b and further parts of the score; on `holdout`
    (graph, targets), or else on the last `fraction` of each user's edges (random ones if their order is unknown).
    """
    clock, times = Clock(), []
    part, valid = holdout or hold_out(graph, fraction)
    chosen = fit(part, settings, valid, on_epoch=lambda r: times.append(clock.wall))
    seconds = dict(choose=clock.wall, choose_cpu=clock.cpu)
    again = Clock()
    params, b = chosen.scoring["filter"], chosen.scoring["b"]
    same = dict(temperature=chosen.temperature, alpha=chosen.tensors["alpha"].tolist())
    run, embedding = retrain(graph, settings.model_copy(update=same), chosen.best_epoch)
    filters = [GraphFilter.from_params(params).fit(graph)] if b else []
    made = checkpoint_of(run, embedding, b, filters)
    model = build_recommender(graph, *add_parts(graph, *made, added_parts(chosen.scoring), settings.seed))
    seconds |= dict(retrain=again.wall, retrain_cpu=again.cpu)
    return Final(model, chosen.best_epoch, b, params, chosen.best_value, seconds, chosen.history.assign(seconds=times))


RETAILROCKET_CHOSEN = "validation: last purchase of each user's training events, with all events of that pair"


class Retailrocket:
    "Events; one purchase of each user for the test; to choose on, the last one of the rest with its pair's events."

    def __init__(self):
        folder = data_folder("retailrocket")
        events, held = pd.read_csv(folder / "train_events.csv"), pd.read_csv(folder / "test_buy.csv")
        self.n_users, self.n_items = (int(max(events[c].max(), held[c].max())) + 1 for c in ("user", "item"))
        self.events = pd.DataFrame(
            dict(
                user_id=events.user,
                product_id=events["item"],
                event_type=events.behavior.replace({"buy": "purchase"}),
                event_time=pd.to_datetime(events.timestamp, unit="s", utc=True),
                price=np.nan,
            )
        )
        self.test = pairs_csr(held.user.to_numpy(), held["item"].to_numpy(), (self.n_users, self.n_items))
        buys = self.events[self.events.event_type == "purchase"].sort_values(
            ["user_id", "event_time", "product_id"], kind="stable"
        )
        first = buys.drop_duplicates(["user_id", "product_id"])
        last = first.drop_duplicates("user_id", keep="last")[["user_id", "product_id"]]
        gone = self.events.merge(last, how="left", indicator=True)._merge.eq("both").to_numpy()
        self.part, self.valid = (
            self.events[~gone],
            pairs_csr(last.user_id.to_numpy(), last.product_id.to_numpy(), (self.n_users, self.n_items)),
        )
        self.nodes = InteractionGraph.from_arrays([], [], n_users=self.n_users, n_items=self.n_items)
        self.products = pd.DataFrame(dict(product_id=np.arange(self.n_items)))

    def graph(self, events, **settings):
        "The graph that stage graph_build makes of some events, on all users and items."
        graph = build_graph(ibis.memtable(events), self.products, GraphBuildSettings(**settings))[0]
        return on_nodes(graph, self.nodes)
