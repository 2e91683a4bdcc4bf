"""Lists without numba, for concurrent callers and under every mask; what a ranking refuses."""

import inspect
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import scipy.sparse as sp

from gnn_ecommerce.core import GnnEcommerceError, rng
from gnn_ecommerce.graph.interactions import random_graph, toy_graph
from gnn_ecommerce.ranking.recommender import EmbeddingRecommender, Popular, Random, Recommender
from gnn_ecommerce.ranking.topk import topk


def lists():
    "Lists of three recommenders, with ties everywhere; the function brings its imports along into another process."
    import numpy as np

    from gnn_ecommerce.core import rng
    from gnn_ecommerce.graph.interactions import random_graph
    from gnn_ecommerce.ranking.recommender import EmbeddingRecommender, Popular, Random

    draw, graph = rng(0, "without numba"), random_graph(120, 300, 900, seed=4)
    tables = draw.integers(-2, 3, (120, 6)), draw.integers(-2, 3, (300, 6))
    rankers = EmbeddingRecommender(*tables, graph), Popular().fit(graph), Random().fit(graph)
    return np.stack([r.recommend(np.arange(120), 25, items=np.arange(0, 300, 2))[0] for r in rankers])


def test_the_same_lists_without_numba(root):
    pytest.importorskip("numba")
    code = "import sys\nsys.modules['numba'] = None\n" + inspect.getsource(lists)
    code += "from gnn_ecommerce.graph.kernels import HAS_NUMBA\nassert not HAS_NUMBA\n"
    code += "sys.stdout.buffer.write(lists().tobytes())"
    env = {"PATH": "", "HOME": "/nowhere"}
    there = subprocess.run([sys.executable, "-c", code], cwd=root, env=env, check=True, capture_output=True).stdout
    assert there == lists().tobytes()


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


SCORES = np.array([[0.1, 0.9, 0.9, 0.5], [0.0, 0.0, 0.0, -0.0]], np.float32)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_scores_that_cannot_be_ranked_are_refused(bad, backend):
    with pytest.raises(GnnEcommerceError, match="found 1 that are NaN or infinite"):
        topk(np.array([[0, bad]]), 1, backend=backend)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((SCORES[0], 1), r"scores: expected a matrix \(n, m\), found shape \(4,\)"),
        ((SCORES[None], 1), r"scores: expected a matrix"),
        ((SCORES, 1, sp.csr_array((2, 3))), r"exclude: expected shape \(2, 4\), found \(2, 3\)"),
        ((SCORES, True), "k: expected a whole number >= 1, found True"),
        ((SCORES, 2.0), "k: expected a whole number >= 1, found 2.0"),
        ((SCORES, 1, None, "gpu"), "backend: expected 'auto', 'numba' or 'torch', found 'gpu'"),
    ],
)
def test_bad_arguments_of_topk(arguments, message):
    with pytest.raises(GnnEcommerceError, match=message):
        topk(*arguments)


class Table(Recommender):
    "Scores that stand in a table."

    def __init__(self, scores):
        self.scores = scores

    def score(self, users):
        return self.scores[users]


def best_by_sorting(scores, k, banned):
    items = np.full((len(scores), k), -1)
    for user, row in enumerate(scores):
        order = [i for i in np.lexsort((np.arange(len(row)), -row)) if not banned[user, i]][:k]
        items[user, : len(order)] = order
    return items


@pytest.mark.parametrize("backend", ["numba", "torch"])
@pytest.mark.parametrize("allowed", [None, np.array([3, 60, 7, 8, 9, 11])])
@pytest.mark.parametrize("also", [False, True])
@pytest.mark.parametrize("exclude", ["bought", "seen", "none"])
def test_masks_and_chunks(exclude, also, allowed, backend):
    "Every kind of mask, with scores held for one user at a time, for some and for all."
    graph, draw = random_graph(40, 70, 600, seed=2), rng(0, "table")
    model, users = Table(draw.integers(0, 6, (40, 70)).astype(np.float32)).fit(graph), draw.integers(0, 40, 25)
    extra = sp.csr_array(draw.random((40, 70)) < 0.2) if also else None
    banned = np.zeros((40, 70), bool) if exclude == "none" else graph.csr(exclude).toarray().astype(bool)
    if also:
        banned |= extra.toarray()
    if allowed is not None:
        banned |= ~np.isin(np.arange(70), allowed)
    want, model.backend = best_by_sorting(model.scores[users], 8, banned[users]), backend
    for model.budget in (1, 70 * 4 * 7, 1 << 30):
        np.testing.assert_array_equal(model.recommend(users, 8, exclude, extra, allowed)[0], want)


def test_a_mask_of_another_shape_is_refused():
    with pytest.raises(GnnEcommerceError, match=r"also_exclude: expected shape \(4, 5\), found \(3, 5\)"):
        Popular().fit(toy_graph()).recommend([0], also_exclude=sp.csr_array((3, 5)))


def test_popularity_has_no_similar_items():
    with pytest.raises(GnnEcommerceError, match="expected a model with an item embedding"):
        Popular().fit(toy_graph()).similar_items([0])


def test_random_lists_do_not_depend_on_the_others():
    ranker = Random(seed=1).fit(random_graph(500, 200, 2000, seed=0))
    lists = ranker.recommend(np.arange(500), 10)[0]
    np.testing.assert_array_equal(lists[[7, 400]], ranker.recommend([7, 400], 10)[0])
    count = np.bincount(lists.ravel(), minlength=200)
    assert abs(count - 25).max() < 25, "every item comes about as often"
