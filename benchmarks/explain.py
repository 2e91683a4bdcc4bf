"""How long twenty recommendations of one customer take to explain: shares, event types, effects, sentences, paths.

Speed depends on the graph and the width of the embeddings, not on what was learned,
so the embeddings are random here; the graph filter is real.
"""

import time

import numpy as np
from gnn_ecommerce.core import rng
from gnn_ecommerce.graph.datasets import load_benchmark
from gnn_ecommerce.lightgcn import LightGCNRecommender, init_embedding
from gnn_ecommerce.explain.shares import Explainer
from gnn_ecommerce.graph.interactions import random_graph
from gnn_ecommerce.filter.graph_filter import GraphFilter
from gnn_ecommerce.filter.hybrid import HybridRecommender
from gnn_ecommerce.explain.paths import connection, shortest_paths
from gnn_ecommerce.graph.propagation import Adjacency, Propagation

from benchmarks.common import machine, row, write

CUSTOMERS, K, DIM, LAYERS = 100, 20, 64, 2


def page(explainer, user, items):
    "What a page about twenty recommendations needs: shares, by kind of event, effects, and a sentence each."
    s = explainer.shares(user, items)
    effects = explainer.effects(s)
    return s.by_event_type(), [explainer.sentence(s, int(i), effects) for i in items]


WAYS = {
    "exact shares of 20 products": lambda e, u, items: e.shares(u, items),
    "shares, kinds of events, effects and sentences of 20 products": page,
    "shares by the people in between, 20 products": lambda e, u, items: e.people(u, items),
    "ten heaviest paths of one product": lambda e, u, items: e.walks(u, int(items[0])),
    "shortest paths of one product (networkx)": lambda e, u, items: shortest_paths(
        connection(e.graph, u, int(items[0]), adjacency=e.adjacency), u, int(items[0])
    ),
}


def seconds_of(graph, dataset):
    "Rows for one graph: the median customer, and the slowest in `max`."
    e, alpha, known = (
        init_embedding(graph, DIM, "normal", rng(0, "explain")),
        [1 / (LAYERS + 1)] * (LAYERS + 1),
        np.flatnonzero(np.diff(graph.user_ptr)),
    )
    z = Propagation(Adjacency.from_graph(graph), alpha).forward(e)
    filter = GraphFilter("paths").fit(graph)
    model = HybridRecommender(LightGCNRecommender(z[: graph.n_users], z[graph.n_users :], graph), filter, 10.0)
    start = time.perf_counter()
    explainer = Explainer(graph, e, alpha, filter=filter, b=10.0)
    rows = [row("building the explainer", dataset, "seconds", time.perf_counter() - start, "s")]
    users = rng(0, "customers").choice(known, CUSTOMERS, replace=False)
    items, _ = model.recommend(users, K)
    for name, way in WAYS.items():
        way(explainer, int(users[0]), items[0])
        taken = []
        for user, mine in zip(users, items):
            start = time.perf_counter()
            way(explainer, int(user), mine)
            taken.append(time.perf_counter() - start)
        rows.append(row(name, dataset, "seconds", taken, "s"))
    return rows


def run(full=False):
    "Gowalla; with `full` also a random graph of a whole shop's size."
    on = machine()
    write("explain", seconds_of(load_benchmark("gowalla").graph, "gowalla"), on=on)
    if full:
        write("explain", seconds_of(random_graph(1_639_358, 54_571, 10_157_408, seed=0), "whole shop (random)"), on=on)
