"""The 20 best of 54,571 items for each of some users from embeddings of 64 dimensions: this package beside implicit, PyTorch and NumPy."""
import numpy as np
import torch
from gnn_ecommerce.graph import InteractionGraph
from gnn_ecommerce.recommender import EmbeddingRecommender
from implicit.cpu.topk import topk as implicit_topk
from threadpoolctl import threadpool_limits

from benchmarks.common import in_turn, machine, row, write

OURS, ITEMS, DIM, K, CHUNK = "gnn_ecommerce", 54_571, 64, 20, 512


def contenders(users, items):
    "Callables that return (n, k) item indices, best first."
    n = len(users)
    graph = InteractionGraph.from_arrays([0], [0], n_users=n, n_items=len(items))
    model, who, u, v = EmbeddingRecommender(users, items, graph), np.arange(n), torch.from_numpy(users), torch.from_numpy(items)

    def with_torch(): return torch.cat([torch.topk(u[a:a + CHUNK] @ v.T, K).indices for a in range(0, n, CHUNK)]).numpy()

    def with_numpy():
        found = np.empty((n, K), np.int64)
        for a in range(0, n, CHUNK):
            scores = users[a:a + CHUNK] @ items.T
            some = np.argpartition(scores, -K, axis=1)[:, -K:]
            found[a:a + CHUNK] = np.take_along_axis(some, np.argsort(-np.take_along_axis(scores, some, 1), axis=1), 1)
        return found

    def with_implicit():
        with threadpool_limits(1, "blas"): return implicit_topk(items, users, K, num_threads=torch.get_num_threads())[0]

    return {OURS: lambda: model.recommend(who, K, exclude="none")[0], "implicit.cpu.topk": with_implicit, "PyTorch, topk of blocks": with_torch, "NumPy, argpartition of blocks": with_numpy}


def run(full=False):
    "Time all contenders in turn and write the rows, as users a second."
    draw, on, n = np.random.default_rng(0), machine(), 8192 if full else 2048
    users, items = (draw.standard_normal((m, DIM)).astype(np.float32) for m in (n, ITEMS))
    runs = contenders(users, items)
    first = runs[OURS]()
    for name, run in runs.items():
        same = float((np.asarray(run()) == first).mean())
        if same < .999: raise AssertionError(f"{name}: expected the lists that {OURS} gives, found {same:.2%} of the places equal")
    speed = {name: [n / s for s in seconds] for name, seconds in in_turn(runs, 7 if full else 5).items()}
    where = dict(dataset=f"{ITEMS:,} items, d {DIM}", metric="users_per_second", unit="users/s")
    rows = [row(name, values=values, **where) for name, values in speed.items() if name != OURS]
    rows += [row(OURS, values=speed[OURS], peer=name, peer_values=values, **where) for name, values in speed.items() if name != OURS]
    write("topk", rows, on=on)
