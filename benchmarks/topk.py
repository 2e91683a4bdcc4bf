"""The 20 best of 54,571 items for each of some users.

From embeddings of 64 dimensions, beside implicit, PyTorch and NumPy;
and from the sum with a graph filter, beside scores held in memory.
"""

import numpy as np
import torch
from gnn_ecommerce.graph.interactions import InteractionGraph
from gnn_ecommerce.filter.graph_filter import GraphFilter
from gnn_ecommerce.filter.hybrid import HybridRecommender
from gnn_ecommerce.filter.item_table import ItemTable
from gnn_ecommerce.ranking.recommender import EmbeddingRecommender, Recommender
from implicit.cpu.topk import topk as implicit_topk
from threadpoolctl import threadpool_limits

from benchmarks.common import in_turn, machine, row, write

OURS, ITEMS, DIM, K, CHUNK = "gnn_ecommerce", 54_571, 64, 20, 512
SUM, HELD, BASKET, ROW = (
    "gnn_ecommerce, with graph filter",
    "the same, scores held in memory",
    6,
    200,
)  # products of a customer, entries of an item's row


def contenders(users, items):
    "Callables that return (n, k) item indices, best first."
    n = len(users)
    graph = InteractionGraph.from_arrays([0], [0], n_users=n, n_items=len(items))
    model, who, u, v = (
        EmbeddingRecommender(users, items, graph),
        np.arange(n),
        torch.from_numpy(users),
        torch.from_numpy(items),
    )

    def with_torch():
        return torch.cat([torch.topk(u[a : a + CHUNK] @ v.T, K).indices for a in range(0, n, CHUNK)]).numpy()

    def with_numpy():
        found = np.empty((n, K), np.int64)
        for a in range(0, n, CHUNK):
            scores = users[a : a + CHUNK] @ items.T
            some = np.argpartition(scores, -K, axis=1)[:, -K:]
            found[a : a + CHUNK] = np.take_along_axis(some, np.argsort(-np.take_along_axis(scores, some, 1), axis=1), 1)
        return found

    def with_implicit():
        with threadpool_limits(1, "blas"):
            return implicit_topk(items, users, K, num_threads=torch.get_num_threads())[0]

    return {
        OURS: lambda: model.recommend(who, K, exclude="none")[0],
        "implicit.cpu.topk": with_implicit,
        "PyTorch, topk of blocks": with_torch,
        "NumPy, argpartition of blocks": with_numpy,
    }


def with_filter(users, items, draw):
    "The sum of the model and a filter whose table is full: ranked while it is computed, and from its scores."
    n = len(users)
    graph = InteractionGraph.from_arrays(
        np.repeat(np.arange(n), BASKET),
        np.concatenate([draw.choice(len(items), BASKET, False) for _ in range(n)]),
        n_users=n,
        n_items=len(items),
    )
    indices = np.sort(
        draw.integers(0, len(items) // ROW, (len(items), ROW)) + np.arange(ROW) * (len(items) // ROW), axis=1
    ).astype(np.uint16)
    part = GraphFilter(n=ROW)
    part.table = ItemTable(
        np.arange(len(items) + 1) * ROW, indices.ravel(), draw.random(indices.size, np.float32).astype(np.float16)
    )
    part.set_history(graph)
    hybrid = HybridRecommender(EmbeddingRecommender(users, items, graph), part, 10.0)
    who, columns, step = np.arange(n), np.arange(len(items), dtype=np.int32), Recommender.chunk(hybrid, len(items))

    def held():
        return np.concatenate(
            [Recommender._best(hybrid, who[a : a + step], K, None, columns)[0] for a in range(0, n, step)]
        )

    return {SUM: lambda: hybrid.recommend(who, K, exclude="none")[0], HELD: held}


def agreeing(runs):
    "The same callables, each run once. Raises where one of them finds other lists than the first."
    first = next(iter(runs.values()))()
    for name, run in runs.items():
        same = float((np.asarray(run()) == first).mean())
        if same < 0.999:
            raise AssertionError(
                f"{name}: expected the lists that {next(iter(runs))} gives, found {same:.2%} of the places equal"
            )
    return runs


def run(full=False):
    "Time all contenders in turn and write the rows, as users a second."
    draw, on, n = np.random.default_rng(0), machine(), 8192 if full else 2048
    users, items = (draw.standard_normal((m, DIM)).astype(np.float32) for m in (n, ITEMS))
    rows, where = [], dict(dataset=f"{ITEMS:,} items, d {DIM}", metric="users_per_second", unit="users/s")
    for runs in (contenders(users, items), with_filter(users, items, draw)):
        speed = {name: [n / s for s in seconds] for name, seconds in in_turn(agreeing(runs), 7 if full else 5).items()}
        (ours, mine), *peers = speed.items()
        rows += [row(name, values=values, **where) for name, values in peers]
        rows += [row(ours, values=mine, peer=name, peer_values=values, **where) for name, values in peers]
    write("topk", rows, on=on)
