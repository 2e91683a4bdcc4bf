"""Each metric against a library's value, on random cases with ties, short lists and users of one or many targets."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from gnn_ecommerce.core import rng
from gnn_ecommerce.ranking.evaluation import METRICS, ranking_metrics
from gnn_ecommerce.ranking.topk import topk

KS = (1, 3, 10, 25)


def case(seed, n=40, m=60):
    "Scores with many ties (seed 0: nearly all of them), 1 to 30 targets a user, and the resolved ranking of 25."
    draw = rng(seed, "metrics")
    scores = draw.integers(0, (3, 8, 1000)[seed % 3], (n, m)).astype(np.float32)
    targets = np.zeros((n, m), bool)
    for row in targets:
        row[draw.choice(m, draw.integers(1, 31), replace=False)] = True
    ranked, _ = topk(scores, max(KS))
    return ranked, targets


def resolved(ranked, m):
    "Scores without ties that give exactly this ranking: a library need not know how a tie was broken."
    scores = np.full((len(ranked), m), -1.0)
    np.put_along_axis(scores, ranked, np.arange(ranked.shape[1], 0, -1.0)[None].repeat(len(ranked), 0), 1)
    return scores


@pytest.fixture(params=[0, 1, 2, 3, 4, 5])
def random_case(request):
    ranked, targets = case(request.param)
    return ranked, targets, ranking_metrics(ranked, sp.csr_array(targets), KS)


def test_ties_go_to_the_lower_item():
    scores = np.array([[1, 2, 2, 2, 0]], np.float32)
    assert topk(scores, 4)[0].tolist() == [[1, 2, 3, 0]]
    ours = ranking_metrics(topk(scores, 2)[0], sp.csr_array(np.array([[0, 0, 0, 1, 0]], bool)), [2])
    assert ours["recall@2"].item() == 0


@pytest.mark.parametrize(
    "name, function",
    [
        ("recall", "retrieval_recall"),
        ("precision", "retrieval_precision"),
        ("ndcg", "retrieval_normalized_dcg"),
        ("hit_rate", "retrieval_hit_rate"),
        ("mrr", "retrieval_reciprocal_rank"),
    ],
)
def test_torchmetrics(random_case, name, function):
    function = getattr(pytest.importorskip("torchmetrics.functional.retrieval"), function)
    ranked, targets, ours = random_case
    scores = torch.from_numpy(resolved(ranked, targets.shape[1]))
    for k in KS:
        theirs = [function(s, torch.from_numpy(t), top_k=k).item() for s, t in zip(scores, targets)]
        np.testing.assert_allclose(ours[f"{name}@{k}"], theirs, atol=1e-6)


def test_sklearn_ndcg(random_case):
    metrics = pytest.importorskip("sklearn.metrics")
    ranked, targets, ours = random_case
    scores = resolved(ranked, targets.shape[1])
    for k in KS:
        theirs = [metrics.ndcg_score(t[None], s[None], k=k) for s, t in zip(scores, targets.astype(float))]
        np.testing.assert_allclose(ours[f"ndcg@{k}"], theirs, atol=1e-9)


def test_map_is_implicits(random_case):
    "implicit's mean average precision divides by min(|R|, k) as well."
    evaluation = pytest.importorskip("implicit.evaluation")
    ranked, targets, ours = random_case

    class Fixed:
        def recommend(self, userids, *args, N, **kwargs):
            return ranked[userids, :N], np.zeros((len(userids), N))

    nothing = sp.csr_matrix(targets.shape, dtype=np.float32)
    for k in KS:
        theirs = evaluation.ranking_metrics_at_k(
            Fixed(), nothing, sp.csr_matrix(targets.astype(np.float32)), K=k, show_progress=False, num_threads=1
        )
        np.testing.assert_allclose(ours[f"map@{k}"].mean(), theirs["map"], atol=1e-6)
        np.testing.assert_allclose(ours[f"ndcg@{k}"].mean(), theirs["ndcg"], atol=1e-6)


@pytest.fixture(scope="module")
def ranx_metrics():
    "ranx's formulas as plain Python: compiling them takes half a minute, running them a second."
    import numba.typed  # noqa: F401  while numba still compiles

    compiles, numba.config.DISABLE_JIT = numba.config.DISABLE_JIT, True
    try:
        return pytest.importorskip("ranx.metrics")
    finally:
        numba.config.DISABLE_JIT = compiles


RANX = {
    "mark": "average_precision",
    "hit_rate": "hit_rate",
    "ndcg": "ndcg",
    "precision": "precision",
    "recall": "recall",
    "mrr": "reciprocal_rank",
}


@pytest.mark.parametrize("name", RANX)
def test_ranx(ranx_metrics, random_case, name):
    "ranx divides average precision by |R|: that is MARK."
    ranked, targets, ours = random_case
    qrels = [np.array([[i, 1.0] for i in np.flatnonzero(t)]) for t in targets]
    run = [np.array([[i, 100.0 - p] for p, i in enumerate(r)]) for r in ranked]
    for k in KS:
        theirs = getattr(ranx_metrics, RANX[name])(qrels, run, k, 1)
        np.testing.assert_allclose(ours[f"{name}@{k}"], theirs, atol=1e-9, err_msg=f"{name}@{k}")


def test_mark_as_it_is_written(random_case):
    "The definition in words, as plain loops: mean over users of 1/|R| * sum of precision@i * rel(i)."
    ranked, targets, ours = random_case
    for k in KS:
        for u, (r, t) in enumerate(zip(ranked, targets)):
            total = sum(sum(t[r[: i + 1]]) / (i + 1) for i in range(k) if t[r[i]])
            assert ours[f"mark@{k}"][u] == pytest.approx(total / t.sum())
            assert ours[f"map@{k}"][u] == pytest.approx(total / min(t.sum(), k))


def test_short_lists_are_padded():
    "If nothing is left to recommend the list ends in -1, which counts for nothing but precision's k."
    ours = ranking_metrics(np.array([[2, -1, -1]]), sp.csr_array(np.array([[0, 0, 1, 1]], bool)), [3]).iloc[0]
    assert (ours["recall@3"], ours["precision@3"], ours["mrr@3"], ours["map@3"]) == (0.5, pytest.approx(1 / 3), 1, 0.5)
    assert set(ours.index) == {f"{m}@3" for m in METRICS}
