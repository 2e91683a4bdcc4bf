"""How a final model is made where a data set has no validation part: choose on the last tenth of each user's line, train again on all of it."""
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from gnn_ecommerce.core import DataError
from gnn_ecommerce.datasets import temporal_holdout
from gnn_ecommerce.graph_filter import GraphFilter, HybridRecommender
from gnn_ecommerce.lightgcn import LightGCNRecommender
from gnn_ecommerce.recommender import Recommender
from gnn_ecommerce.training import Trainer, TrainingSettings, fit

from benchmarks.common import Clock


@dataclass
class Final:
    "A model trained on the whole graph with what validation chose."
    recommender: Recommender
    best_epoch: int       # of `settings.epochs`, chosen
    b: float              # weight of the graph filter, chosen
    filter: dict | None   # the graph filter's parameters, chosen
    validation: float     # the monitored metric of what was chosen
    seconds: dict = field(default_factory=dict)  # of choosing and of training again: wall and processor seconds
    history: pd.DataFrame | None = None          # of the run that chose, with wall seconds since its start


def retrain(graph, settings, epochs):
    "LightGCN after so many epochs on a graph, on the learning-rate schedule of `settings.epochs`."
    trainer = Trainer(graph, settings.model_copy(update=dict(filter="none")))
    state = trainer.start()
    trainer.keep_precision(state)
    for _ in range(epochs):
        if not np.isfinite(trainer.run_epoch(state)): raise DataError(f"expected a finite loss, found none in epoch {state.epoch + 1}: try a smaller learning rate")
        state.epoch += 1
    z = trainer.propagation.forward(state.embedding).numpy()
    return LightGCNRecommender(z[:graph.n_users], z[graph.n_users:], graph, settings.cosine)


def fit_final(graph, settings: TrainingSettings, fraction=.1, holdout=None):
    "Choose epoch, filter exponents and b on the last `fraction` of each user's edges, or on `holdout` (graph, targets); then train and build the filter on all of `graph`."
    clock, times = Clock(), []
    part, valid = holdout or temporal_holdout(graph, fraction)
    chosen = fit(part, settings, valid, on_epoch=lambda r: times.append(clock.wall))
    seconds = dict(choose=clock.wall, choose_cpu=clock.cpu)
    again = Clock()
    model, params, b = retrain(graph, settings, chosen.best_epoch), chosen.scoring["filter"], chosen.scoring["b"]
    if b: model = HybridRecommender(model, GraphFilter(**params).fit(graph), b)
    seconds |= dict(retrain=again.wall, retrain_cpu=again.cpu)
    return Final(model, chosen.best_epoch, b, params, chosen.best_value, seconds, chosen.history.assign(seconds=times))

