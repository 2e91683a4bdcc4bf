"""Let numba's compiler work once, after the installation, so that no stage and no first request waits for it."""

import contextlib
import io
import os

import scipy.sparse as sp

os.environ["GNN_ECOMMERCE_PROGRESS"] = "none"

from gnn_ecommerce.graph.interactions import random_graph
from gnn_ecommerce.graph.kernels import HAS_NUMBA
from gnn_ecommerce.models.baselines import BASELINES
from gnn_ecommerce.ranking.evaluation import evaluate
from gnn_ecommerce.training import TrainingSettings, fit


def compile_kernels():
    "Train and evaluate with the default settings on a random graph: what is compiled lies beside the modules then."
    graph = random_graph(300, 80, 2400, seed=1)
    pairs = sp.random_array((graph.n_users, graph.n_items), density=0.01, format="csr", rng=0).astype(bool)
    models = fit(graph, TrainingSettings(epochs=2), pairs).recommender, BASELINES["graph_filter"]().fit(graph)
    for model in models:
        evaluate(model, pairs, (20,), "bought")


if __name__ == "__main__" and HAS_NUMBA:
    with contextlib.redirect_stdout(io.StringIO()):
        compile_kernels()
