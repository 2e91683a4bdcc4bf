"""What the recommender's notebook cannot test: a machine without numba, concurrent callers, a read-only installation."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from gnn_ecommerce.core import rng
from gnn_ecommerce.graph.interactions import random_graph
from gnn_ecommerce.ranking.recommender import EmbeddingRecommender

SETUP = """
import sys
import numpy as np
if {without}: sys.modules["numba"] = None
from gnn_ecommerce.core import rng
from gnn_ecommerce.graph.interactions import random_graph
from gnn_ecommerce.graph.kernels import HAS_NUMBA
from gnn_ecommerce.ranking.recommender import EmbeddingRecommender, Popular, Random
g, graph = rng(0, "without numba"), random_graph(120, 300, 900, seed=4)
model = EmbeddingRecommender(g.integers(-2, 3, (120, 6)), g.integers(-2, 3, (300, 6)), graph)
lists = [r.recommend(np.arange(120), 25, items=np.arange(0, 300, 2))[0] for r in (model, Popular().fit(graph), Random().fit(graph))]
print(HAS_NUMBA, hash(np.stack(lists).tobytes()))
"""


def test_the_same_lists_without_numba(root):
    env = {"PYTHONHASHSEED": "0", "PATH": "", "NUMBA_DISABLE_JIT": "0", "HOME": "/nowhere"}
    out = [
        subprocess.run(
            [sys.executable, "-c", SETUP.format(without=w)],
            cwd=root,
            env=env,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.split()
        for w in (True, False)
    ]
    assert [o[0] for o in out] == ["False", "True"]
    assert out[0][1] == out[1][1]


def test_many_callers_at_once():
    "Threads of a server share one recommender: each gets the answer that it would get alone."
    draw = rng(0, "callers")
    model = EmbeddingRecommender(
        draw.normal(size=(400, 8)), draw.normal(size=(900, 8)), random_graph(400, 900, 3000, seed=1)
    )
    alone = model.recommend(np.arange(400), 10)[0]
    fresh = EmbeddingRecommender(model.user_embedding, model.item_embedding, model.graph)
    with ThreadPoolExecutor(8) as pool:
        for user, items in zip(range(400), pool.map(lambda u: fresh.recommend([u], 10)[0][0], range(400))):
            np.testing.assert_array_equal(items, alone[user])
        small = [np.arange(a, 900, 7) for a in range(7)]
        for allowed, items in zip(small, pool.map(lambda a: fresh.recommend(np.arange(400), 10, items=a)[0], small)):
            assert np.isin(items, allowed).all()
