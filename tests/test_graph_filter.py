"""The graph filter against its formulas on many random graphs, without numba, in threads, at the edges of its table."""

import dataclasses
import inspect
import itertools
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

from gnn_ecommerce.core import GnnEcommerceError, UnknownIdError, rng
from gnn_ecommerce.graph.interactions import InteractionGraph, pairs_csr, random_graph, toy_graph
from gnn_ecommerce.filter.graph_filter import GraphFilter, fit_filters
from gnn_ecommerce.filter.hybrid import HybridRecommender, choose_b
from gnn_ecommerce.filter.item_table import TablePacker
from gnn_ecommerce.filter.choose import choose_filter, estimate_cost
from gnn_ecommerce.filter.methods import history_matrix, method_settings
from gnn_ecommerce.ranking.evaluation import evaluate
from gnn_ecommerce.ranking.recommender import EmbeddingRecommender, Recommender
from gnn_ecommerce.graph.spectral import normalized, truncated_svd


def power(degree, exponent):
    return np.array([d**exponent if d > 0 else 0.0 for d in degree])


def full_table(graph, f):
    "W by its formula in float64, nothing cut, nothing dropped."
    r = graph.csr("weight" if f.weighted else "seen").toarray().astype(float)
    du, di, s = r.sum(1), r.sum(0), f.settings
    if f.method == "paths":
        return (
            power(di, -s.alpha)[:, None]
            * sum(du[v] ** -s.gamma * np.outer(r[v], r[v]) for v in np.flatnonzero(du))
            * power(di, -s.beta)
        )
    if f.method == "regression":
        gram, ridge = r.T @ r, np.diag(s.l2 + s.dropout / (1 - s.dropout) * (r * r).sum(0))
        if f.diagonal:
            return np.linalg.solve(gram + ridge, gram)
        w = np.zeros_like(gram)
        for j in range(len(di)):
            others = np.arange(len(di)) != j
            w[others, j] = np.linalg.solve((gram + ridge)[others][:, others], gram[others, j])
        return w
    rn = power(du, -0.5)[:, None] * r * power(di, -0.5)
    values, vectors = np.linalg.eigh(rn.T @ rn)
    nodes, x = (
        np.cos(np.pi * (np.arange(s.degree + 1) + 0.5) / (s.degree + 1)),
        np.cos(np.pi * np.arange(s.degree + 1) / s.degree),
    )
    q = np.poly1d(
        np.polyfit(
            nodes, np.where(x >= 0, 0.5 - 0.5 * np.abs(x) ** s.flatness, 0.5 + 0.5 * np.abs(x) ** s.flatness), s.degree
        )
    )(1 - 2 * values)
    leading = vectors[:, ::-1][:, : min(s.rank, np.linalg.matrix_rank(rn))]
    return power(di, -s.beta)[:, None] * (vectors * q @ vectors.T + s.alpha * leading @ leading.T) * power(di, s.beta)


def largest(w, n, diagonal):
    "The n largest of each row, and the n-th of them."
    w = w.copy()
    if not diagonal:
        np.fill_diagonal(w, np.nan)
    floor = np.full(len(w), -np.inf)
    for i, row in enumerate(w):
        entries = np.sort(row[np.isfinite(row)])[::-1]
        if len(entries) > n:
            floor[i] = entries[n - 1]
    return np.where(np.isfinite(w), w, 0.0), floor


CASES = [
    (method, weighted, n, diagonal, backend, seed)
    for seed, (method, weighted, n, diagonal) in enumerate(
        (method, weighted, n, diagonal)
        for method in ("paths", "chebyshev", "regression")
        for weighted in (False, True)
        for n in (1, 6, 500)
        for diagonal in (False, True)
    )
    for backend in ("auto", "torch")
]


@pytest.mark.parametrize("method,weighted,n,diagonal,backend,seed", CASES)
def test_formula(method, weighted, n, diagonal, backend, seed):
    "Every entry has the formula's value, and the entries are the n largest of their row (of equal values, any)."
    draw = rng(seed, "formula")
    graph = random_graph(*draw.integers(20, 90, 2), int(draw.integers(60, 400)), seed=seed)
    settings = (
        {"l2": draw.uniform(0.1, 9), "dropout": draw.uniform(0, 0.9)}
        if method == "regression"
        else (
            {"alpha": draw.uniform(0, 1), "beta": draw.uniform(0, 0.6)}
            | ({"gamma": draw.uniform(0, 1)} if method == "paths" else {"rank": int(draw.integers(1, 12))})
        )
    )
    f = GraphFilter(method, n, weighted, diagonal, "float32", **settings)
    f.backend = backend
    got = f.fit(graph).table.to_csr()
    exact = full_table(graph, f)
    size, floor = largest(
        np.abs(exact) if method == "regression" else exact, n, diagonal
    )  # signs count for nothing there
    if not diagonal:
        np.fill_diagonal(exact, 0)
    tolerance = 2e-5 * np.abs(exact).max()
    dense, stored = got.toarray(), got.toarray() != 0
    np.testing.assert_allclose(dense[stored], exact[stored], atol=tolerance)
    assert (np.diff(got.indptr) <= n).all()
    assert (size[stored] >= np.broadcast_to(floor[:, None], exact.shape)[stored] - tolerance).all()
    missed = ~stored & (size > floor[:, None] + tolerance) & (np.abs(exact) > tolerance)
    assert not missed.any()
    if n >= graph.n_items:
        np.testing.assert_allclose(dense, exact, atol=tolerance)
    if method != "paths" and n > 100:
        assert (dense < -tolerance).any(), "signed entries are kept"
    scores = f.score(np.arange(graph.n_users))
    np.testing.assert_allclose(
        scores, f.history.toarray().astype(float) @ dense, atol=1e-5 * max(1, np.abs(scores).max())
    )


@pytest.mark.parametrize("method", ["paths", "chebyshev", "regression"])
def test_isolated_and_empty(method):
    "Products and customers without an edge, a single edge, no edge at all."
    graph = InteractionGraph.from_arrays([1, 1, 3, 4], [2, 4, 2, 6], n_users=6, n_items=8)
    f = GraphFilter(method).fit(graph)
    w, s = f.table.to_csr().toarray(), f.score(np.arange(6))
    assert np.isfinite(w).all() and np.isfinite(s).all()
    assert not w[[0, 1, 3, 5, 7]].any() and not w[:, [0, 1, 3, 5, 7]].any() and not s[[0, 2, 5]].any()
    assert np.abs(w[6]).max() < 1e-6 and w[2, 4] > 0
    assert f.recommend([0], 3)[0].tolist() == [[0, 1, 2]], "a stranger gets ties by item index"
    for one in (InteractionGraph.from_arrays([0], [0]), InteractionGraph.from_arrays([], [], n_users=3, n_items=2)):
        assert not GraphFilter(method).fit(one).score(np.arange(one.n_users)).any()


@pytest.mark.parametrize("method", ["paths", "chebyshev", "regression"])
@pytest.mark.parametrize("weighted", [False, True])
def test_shares_sum_to_the_score(method, weighted):
    graph = random_graph(40, 120, 900, seed=3)
    f = GraphFilter(method, 15, weighted, **({"rank": 9} if method == "chebyshev" else {}))
    scores = f.fit(graph).score(np.arange(40))
    for user in range(40):
        products, shares = f.contributions(user, np.arange(120))
        assert products.tolist() == graph.item[graph.user_ptr[user] : graph.user_ptr[user + 1]].tolist()
        np.testing.assert_allclose(shares.sum(0), scores[user], atol=2e-6 * max(1e-3, np.abs(shares).sum(0).max()))
        assert f.contributions(user, 7)[1].tolist() == shares[:, 7].tolist()
        w = graph.weight[graph.user_ptr[user] : graph.user_ptr[user + 1]] if weighted else np.ones(len(products))
        np.testing.assert_allclose(f.fold_in([products], [w])[0], scores[user], atol=1e-6)


def test_half_precision_is_bounded_and_costs_nothing():
    "float16 entries are within 2^-11 of the exact ones over nine orders of magnitude; lists hardly change."
    graph = random_graph(300, 400, 6000, seed=5)
    full, half = GraphFilter(n=50, dtype="float32").fit(graph), GraphFilter(n=50).fit(graph)
    a, b = full.table.to_csr(), half.table.to_csr()
    assert (a.indices == b.indices).all() and (np.abs(a.data - b.data) <= 2.0**-11 * np.abs(a.data)).all()
    assert half.table.nbytes < 0.7 * full.table.nbytes and half.table.indices.dtype == np.uint16
    same = (full.recommend(np.arange(300), 20)[0] == half.recommend(np.arange(300), 20)[0]).mean()
    assert same > 0.97
    for factor in (1e-20, 1e20):
        value = np.array([[1.0, 2.0**-28, -0.3]], np.float32) * np.float32(factor)
        t = TablePacker(3).add(np.array([[0, 1, 2]]), value, np.array([3])).table()
        np.testing.assert_allclose(t.row(0)[1], value[0], rtol=2.0**-11)


def test_many_items_take_wider_ids():
    n = 2**16 + 5
    graph = InteractionGraph.from_arrays([0, 0, 1, 1], [0, n - 1, n - 1, 70], n_users=2, n_items=n)
    f = GraphFilter().fit(graph)
    assert f.table.indices.dtype == np.int32
    assert np.flatnonzero(f.score([0])[0]).tolist() == [0, 70, n - 1]
    assert GraphFilter.from_arrays(f.to_arrays(), f.params, graph).score([0]).tobytes() == f.score([0]).tobytes()


def test_long_histories_are_capped():
    "Of a customer beyond the cap only `cap` products make paths; their own score uses them all."
    item = np.concatenate([np.arange(30), [3, 4], [3, 9]])
    user = np.concatenate([np.zeros(30, int), [1, 1], [2, 2]])
    weight = np.where(user == 0, 1 + np.arange(34) % 5, 1).astype(np.float32)
    graph = InteractionGraph.from_arrays(user, item, weight)
    f = GraphFilter(cap=10, dtype="float32").fit(graph)
    kept = sorted(np.lexsort((np.arange(30), np.bincount(item)[:30], -weight[:30]))[:10])
    w = f.table.to_csr().toarray()
    others = {frozenset((3, 4)), frozenset((3, 9))}
    for i in range(30):
        for j in range(30):
            if i != j:
                assert (w[i, j] > 0) == ((i in kept and j in kept) or frozenset((i, j)) in others), (i, j)
    assert len(f.contributions(0, 1)[0]) == 30
    reference = GraphFilter(dtype="float32").fit(graph).table.to_csr().toarray()
    i, j = [k for k in kept if k not in (3, 4, 9)][:2]
    assert w[i, j] == pytest.approx(reference[i, j], rel=1e-5), "the degree is that of the whole history"


def test_same_bits_whatever_the_threads():
    graph = random_graph(200, 300, 4000, seed=6)
    threads, found = torch.get_num_threads(), []
    try:
        for n in (1, 2, 5):
            torch.set_num_threads(n)
            f = [GraphFilter(n=20).fit(graph), GraphFilter("chebyshev", 20, rank=10).fit(graph)]
            found.append([a.tobytes() for x in f for a in (*x.to_arrays().values(), x.score(np.arange(200)))])
    finally:
        torch.set_num_threads(threads)
    assert found[0] == found[1] == found[2]


def test_many_callers_at_once():
    graph = random_graph(200, 300, 4000, seed=6)
    f = GraphFilter(n=20).fit(graph)
    alone = f.score(np.arange(200))
    with ThreadPoolExecutor(8) as pool:
        for user, row in enumerate(pool.map(lambda u: f.score([u])[0], range(200))):
            assert row.tobytes() == alone[user].tobytes()


def parts(seed=0, users=150, items=90, edges=1500, biased=False):
    graph, draw = random_graph(users, items, edges, seed=seed), rng(seed, "parts")
    z = draw.standard_normal((users + items, 12)).astype(np.float32)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    bias = draw.standard_normal(items) if biased else None
    return graph, EmbeddingRecommender(z[:users], z[users:], graph, bias), GraphFilter(n=30).fit(graph)


def test_hybrid_without_filter_is_the_model_to_the_bit():
    graph, model, f = parts()
    hybrid = HybridRecommender(model, f, 0.0)
    for kw in ({}, {"exclude": "seen"}, {"items": np.arange(0, 90, 3)}):
        for a, b in zip(hybrid.recommend(np.arange(150), 10, **kw), model.recommend(np.arange(150), 10, **kw)):
            assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_hybrid_adds_its_parts(backend):
    graph, model, f = parts(1)
    f.backend = model.backend = backend
    hybrid = HybridRecommender(model, f, 4.0)
    expected = model.score(np.arange(150)) + 4 * power(f.history.sum(1), -0.5)[:, None] * f.score(np.arange(150))
    np.testing.assert_allclose(hybrid.score(np.arange(150)), expected, atol=1e-5)
    few = hybrid.recommend(np.arange(150), 7, "seen", items=np.arange(10, 60))[0]
    allowed = np.where(graph.csr("seen").toarray(), -np.inf, expected)[:, 10:60]
    assert (few == 10 + np.argsort(-allowed, kind="stable")[:, :7]).mean() > 0.99


def test_choose_b_finds_the_better_part():
    "If the model is noise, b goes up; if the filter has nothing to say, it is 0."
    graph, model, f = parts(2)
    known = graph.csr("seen")
    assert choose_b(HybridRecommender(model, f), known, exclude="none")[0] == 30
    z = np.concatenate([known.toarray(), np.eye(90)]).astype(np.float32)
    perfect = EmbeddingRecommender(z[:150], z[150:], graph)
    best, table = choose_b(HybridRecommender(perfect, f), known, exclude="none")
    assert best == 0 and table["ndcg@20"][0] == 1
    again = choose_b(HybridRecommender(perfect, f), known, grid=[30, 0, 0, 1], exclude="none")
    assert again[0] == 0 and again[1].b.tolist() == [0, 1, 30]


def in_order(graph, seed):
    "The graph with times on its edges, some of them equal."
    return dataclasses.replace(
        graph,
        edges=pd.DataFrame({"last_time": pd.to_datetime(rng(seed, "times").integers(0, 40, graph.n_edges), unit="h")}),
    )


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_order_in_table_and_history(backend, seed):
    "closeness and recency as they are written, edge by edge in float64; with a cap that leaves edges out."
    draw = rng(seed, "order")
    graph = in_order(random_graph(*draw.integers(20, 60, 2), int(draw.integers(100, 400)), seed=seed), seed)
    c, r, cap = draw.uniform(0.1, 1.5), draw.uniform(0.1, 1.5), (4, 2000)[seed % 2]
    f = GraphFilter("paths", 500, alpha=0.4, beta=0.1, gamma=0.6, closeness=c, cap=cap, recency=r, dtype="float32")
    f.backend = backend
    f.fit(graph)
    when, weight = graph.edges.last_time.to_numpy(), graph.weight.astype(float)
    age = np.array(
        [
            sum(when[g] > when[e] for g in range(graph.n_edges) if graph.user[g] == graph.user[e])
            for e in range(graph.n_edges)
        ]
    )
    assert (age == graph.ages).all()
    du, di = np.bincount(graph.user, weight, graph.n_users), np.bincount(graph.item, weight, graph.n_items)
    rare, counted = np.bincount(graph.item, minlength=graph.n_items), np.zeros(graph.n_edges, bool)
    for v in range(graph.n_users):
        mine = np.flatnonzero(graph.user == v)
        counted[sorted(mine, key=lambda e: (-graph.weight[e], rare[graph.item[e]], graph.item[e]))[:cap]] = True
    w = np.zeros((graph.n_items,) * 2)
    for v in range(graph.n_users):
        mine = np.flatnonzero((graph.user == v) & counted)
        for e, h in itertools.permutations(mine, 2):
            i, j = graph.item[e], graph.item[h]
            w[i, j] += (
                weight[e]
                * weight[h]
                * du[v] ** -0.6
                * (1 + abs(int(age[e]) - int(age[h]))) ** -c
                * di[i] ** -0.4
                * di[j] ** -0.1
            )
    np.testing.assert_allclose(f.table.to_csr().toarray(), w, rtol=1e-5, atol=1e-7)
    own = np.zeros((graph.n_users, graph.n_items))
    own[graph.user, graph.item] = weight * (1.0 + age) ** -r
    np.testing.assert_allclose(f.score(np.arange(graph.n_users)), own @ w, rtol=1e-4, atol=1e-6)


def test_the_order_is_found_where_it_matters():
    "If the next product follows from the last one, recency is chosen, and raises the score; it needs an order."
    draw = rng(0, "next")
    user, item, at, held = [], [], [], []
    for u in range(400):
        walk = [int(draw.integers(60))]
        while len(walk) < 9:
            walk.append((walk[-1] + int(draw.integers(1, 4))) % 60 if draw.random() < 0.8 else int(draw.integers(60)))
        walk = list(dict.fromkeys(walk))
        user += [u] * (len(walk) - 1)
        item += walk[:-1]
        at += range(len(walk) - 1)
        held.append(walk[-1])
    graph = InteractionGraph.from_arrays(
        np.array(user), np.array(item), n_users=400, n_items=60, edges=pd.DataFrame({"position": at})
    )
    targets = pairs_csr(np.arange(400), np.array(held), (400, 60))
    f, table = choose_filter(graph, targets, metric="ndcg@10", exclude="seen")
    assert f.recency > 0 and table["ndcg@10"].max() > 1.2 * table["ndcg@10"][0]
    blind, table = choose_filter(dataclasses.replace(graph, edges=None), targets, metric="ndcg@10", exclude="seen")
    assert blind.recency == 0 and "recency" not in table


def test_choose_filter_is_repeatable_and_as_served():
    graph = random_graph(300, 120, 4000, seed=8)
    held = random_graph(300, 120, 900, seed=9).csr("seen")
    one, two = (choose_filter(graph, held, max_users=100, n=25) for _ in range(2))
    assert one[0].params == two[0].params and one[1].equals(two[1])
    named = {name: one[0].params[name] for name in ("gamma", "beta", "alpha", "diagonal")}
    assert (
        list(one[1].columns[:4]) == list(named)
        and one[1]["ndcg@20"].max()
        == one[1]["ndcg@20"][(one[1][list(named)] == list(named.values())).all(axis=1)].iloc[0]
    )


def test_shared_pass_gives_the_same_tables():
    graph = random_graph(90, 200, 1500, seed=10)
    filters = [GraphFilter("chebyshev", 20, alpha=a, beta=b, rank=15) for a in (0.1, 0.4) for b in (0.2, 0.4)] + [
        GraphFilter(n=20)
    ]
    fit_filters(filters, graph)
    for f in filters:
        alone = GraphFilter(**f.params).fit(graph)
        assert all(a.tobytes() == b.tobytes() for a, b in zip(f.to_arrays().values(), alone.to_arrays().values()))


def test_cost_grows_with_the_shop():
    small, large = random_graph(500, 400, 3000), random_graph(5000, 4000, 90000)
    for method in ("paths", "chebyshev", "regression"):
        assert estimate_cost(small, method).seconds < estimate_cost(large, method).seconds
    assert estimate_cost(large, "chebyshev", tables=9).seconds > estimate_cost(large, "chebyshev").seconds


@pytest.mark.parametrize(
    "shape,edges,rank", [((900, 1200), 20000, 30), ((2500, 800), 9000, 60), ((60, 900), 700, 80), ((700, 700), 720, 16)]
)
def test_truncated_svd(shape, edges, rank):
    "Singular values and the space of the vectors are LAPACK's, also if many values are equal."
    m = normalized(history_matrix(random_graph(*shape, edges, seed=edges)))
    u, s, v = truncated_svd(m, rank, small=0)
    exact_u, exact, exact_v = np.linalg.svd(m.toarray().astype(float), full_matrices=False)
    np.testing.assert_allclose(s, exact[: len(s)], atol=1e-4)
    assert len(s) == min(rank, (exact > 1e-6).sum())
    np.testing.assert_allclose(v.T @ v, np.eye(len(s)), atol=1e-4)
    np.testing.assert_allclose(m @ v, u * s, atol=1e-4)


def scores_by_method():
    "Scores of each method; the function brings its imports along into another process."
    import numpy as np

    from gnn_ecommerce.filter.graph_filter import GraphFilter
    from gnn_ecommerce.graph.interactions import random_graph

    graph = random_graph(80, 150, 900, seed=4)
    settings = {"paths": {}, "chebyshev": {"rank": 8}, "regression": {"l2": 3.0}}
    filters = [GraphFilter(method, 12, dtype="float32", **more) for method, more in settings.items()]
    return {f.method: f.fit(graph).score(np.arange(80)) for f in filters}


def test_the_same_without_numba(root, tmp_path):
    pytest.importorskip("numba")
    code = "import sys\nsys.modules['numba'] = None\n" + inspect.getsource(scores_by_method)
    code += "from gnn_ecommerce.graph.kernels import HAS_NUMBA\nassert not HAS_NUMBA\n"
    code += f"np.savez({str(tmp_path / 'scores.npz')!r}, **scores_by_method())"
    code = code.replace("sys.modules", "import numpy as np\nsys.modules", 1)
    subprocess.run([sys.executable, "-c", code], cwd=root, env={"PATH": "", "HOME": "/nowhere"}, check=True)
    there = np.load(tmp_path / "scores.npz")
    for method, here in scores_by_method().items():
        np.testing.assert_allclose(there[method], here, atol=1e-4 * np.abs(here).max())


@pytest.mark.slow
def test_gowalla_paths(real_data):
    "The published form of the filter on its public split: .1873 without a cut, .1865 with 200 entries a row."
    from gnn_ecommerce.graph.datasets import load_benchmark

    b = load_benchmark("gowalla")
    f = GraphFilter().fit(b.graph)
    assert f.table.nbytes < 34e6
    means = evaluate(f, b.test, [20], "seen").metrics
    assert means["recall@20"] == pytest.approx(0.1865, abs=1e-4) and means["ndcg@20"] == pytest.approx(0.1542, abs=1e-4)


def test_half_precision_decodes_every_number():
    "The kernel's reading of float16 bits equals NumPy's."
    from gnn_ecommerce.filter import item_table

    if not item_table.HAS_NUMBA:
        pytest.skip("without numba no bits are decoded")
    bits = np.arange(2**16).astype(np.uint16)
    halves = bits.view(np.float16)
    finite = np.isfinite(halves)
    decoded = [item_table._decode_half(x) for x in bits[finite][::7]]
    np.testing.assert_array_equal(decoded, halves[finite][::7].astype(np.float32))


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("b", [0.01, 3.0, 300.0])
@pytest.mark.parametrize("exclude", ["bought", "seen", "none"])
def test_fused_ranking_equals_scores_in_memory(b, exclude, biased):
    "Both kernels give the lists and scores of the general way, to the bit; with item biases too."
    graph, model, f = parts(3, users=300, biased=biased)
    hybrid, users = HybridRecommender(model, f, b), np.arange(300)
    for items in (None, np.arange(0, 90, 2), np.arange(3)):
        fused = hybrid.recommend(users, 9, exclude, items=items)
        mask = hybrid._mask(users, exclude, None)
        plain = Recommender._best(hybrid, users, 9, mask, hybrid._check_items(items))
        for one, two in zip(fused, plain):
            np.testing.assert_array_equal(one, two)


def test_saved_filter_keeps_its_key():
    "Files call the method `kind`; a filter is read back from either name."
    graph = random_graph(40, 30, 200)
    f = GraphFilter(n=9).fit(graph)
    assert f.saved_params["kind"] == "paths"
    for params in (f.saved_params, f.params):
        back = GraphFilter.from_arrays(f.to_arrays(), params, graph)
        assert back.params == f.params


def dense(f):
    return f.table.to_csr().toarray()


def test_fold_in_counts_the_newest_products_most():
    "Of a basket the last product is the newest; one that comes twice has its latest place."
    graph = in_order(random_graph(60, 50, 500, seed=6), 6)
    f = GraphFilter(n=9, recency=0.7, closeness=0.5).fit(graph)
    want = dense(f)[[5, 5]] + 2**-0.7 * dense(f)[[3, 3]]
    np.testing.assert_allclose(f.fold_in([[3, 5], [5, 3, 5]]), want, rtol=1e-5)


def test_fold_in_of_a_history_with_recency_is_its_score():
    graph = random_graph(60, 50, 500, seed=6)
    position = pd.DataFrame({"position": rng(0, "order").permutation(graph.n_edges)})
    graph = dataclasses.replace(graph, edges=position)
    f = GraphFilter(n=9, recency=0.7).fit(graph)
    row, oldest_first = f.base[[3]], np.argsort(-graph.ages[graph.edges_of(user=3)])
    folded = f.fold_in([row.indices[oldest_first]], [row.data[oldest_first]])
    np.testing.assert_allclose(folded, f.score([3]), rtol=1e-5)


def test_a_product_twice_in_a_basket_counts_once():
    f = GraphFilter(n=9).fit(random_graph(60, 50, 500, seed=6))
    np.testing.assert_array_equal(f.fold_in([[4, 4, 0]]), f.fold_in([[0, 4]]))


def test_regression_is_at_its_optimum():
    "Without dropout it is the ridge regression whose diagonal is zero: any other table has a larger loss."
    f = GraphFilter("regression", 99, dtype="float32", l2=3.0, dropout=0.0).fit(random_graph(50, 40, 400, seed=2))
    r, best, draw = f.base.toarray().astype(float), dense(f), rng(0, "bent")

    def loss(w):
        return ((r - r @ w) ** 2).sum() + 3 * (w**2).sum()

    for size in (1e-3, 1e-2, 1e-1):
        bent = np.where(np.eye(40), 0, size * draw.standard_normal((40, 40)))
        assert loss(best) < min(loss(best + bent), loss(best - bent))


GRID = {"beta": (0.2, 0.0), "gamma": (0.84, 0.2, 2.0)}


def test_refine_extends_the_first_table():
    "A second round adds rows between the values, and can only raise the best one."
    graph, held = random_graph(80, 60, 700, seed=7), random_graph(80, 60, 300, seed=8).csr("seen")
    _, coarse = choose_filter(graph, held, grid=GRID, metric="recall@5", n=10)
    _, fine = choose_filter(graph, held, grid=GRID, metric="recall@5", n=10, refine=True)
    pd.testing.assert_frame_equal(fine.iloc[: len(coarse)], coarse)
    assert len(fine) > len(coarse)
    assert fine["recall@5"].max() >= coarse["recall@5"].max()


def test_choose_filter_measures_what_it_returns():
    graph, held = in_order(random_graph(80, 60, 700, seed=7), 7), random_graph(80, 60, 300, seed=8).csr("seen")
    grid = {"recency": (0.0, 0.5, 1.0), "closeness": (0.0, 0.5)}
    best, table = choose_filter(graph, held, grid=grid, metric="recall@5", n=10)
    again = evaluate(GraphFilter(**best.params).fit(graph), held, [5]).metrics["recall@5"]
    assert (len(table), again) == (4, table["recall@5"].max())


def test_a_product_speaks_for_itself_if_customers_come_back():
    graph = random_graph(80, 60, 700, seed=7)
    assert choose_filter(graph, graph.csr("seen"), metric="ndcg@5", exclude="none")[0].diagonal


def test_choose_b_backends_agree():
    graph, model, f = parts(4)
    hybrid, held = HybridRecommender(model, f), random_graph(150, 90, 500, seed=8).csr("seen")
    compiled = choose_b(hybrid, held, (0, 2, 8), "recall@5")
    f.backend = "torch"
    best, table = choose_b(hybrid, held, (0, 2, 8), "recall@5")
    assert best == compiled[0]
    pd.testing.assert_frame_equal(table, compiled[1])


def test_choose_b_measures_what_is_served():
    graph, model, f = parts(4)
    hybrid, held = HybridRecommender(model, f), random_graph(150, 90, 500, seed=8).csr("seen")
    _, table = choose_b(hybrid, held, (0, 2, 8), "recall@5")
    served = [evaluate(hybrid.with_b(b), held, [5]).metrics["recall@5"] for b in table.b]
    np.testing.assert_allclose(table["recall@5"], served, atol=1e-6)


@pytest.mark.parametrize(
    ("method", "values", "message"),
    [
        ("path", {}, "method: expected one of paths, chebyshev, regression, found 'path'"),
        ("paths", {"betta": 0.3}, "did you mean 'beta'"),
        ("paths", {"alpha": -1}, "paths.alpha: expected a number >= 0, found -1"),
        ("paths", {"cap": 0}, "paths.cap: expected a whole number >= 1, found 0"),
        ("paths", {"cap": 2.5}, "paths.cap: expected a whole number >= 1, found 2.5"),
        ("paths", {"beta": True}, "paths.beta: expected a number >= 0, found True"),
        ("chebyshev", {"flatness": np.inf}, "chebyshev.flatness: expected a number >= 0, found inf"),
        ("regression", {"l2": 0.0}, "regression.l2: expected a number > 0, found 0.0"),
        ("regression", {"dropout": 1.0}, r"regression.dropout: expected a number in \[0, 1\), found 1.0"),
    ],
)
def test_wrong_settings_of_a_method(method, values, message):
    with pytest.raises(GnnEcommerceError, match=message):
        method_settings(method, values)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"n": 0}, "n: expected a whole number >= 1, found 0"),
        ({"recency": -1}, "recency: expected a number >= 0, found -1"),
        ({"recency": np.inf}, "recency: expected a number >= 0, found inf"),
        ({"dtype": "float64"}, "dtype: expected 'float16' or 'float32', found 'float64'"),
        ({"method": "regression", "dropout": 1.0}, "regression.dropout"),
        ({"cap": 0}, "paths.cap"),
        ({"rank": 3}, "paths.rank"),
    ],
)
def test_wrong_parameters_of_a_filter(parameters, message):
    with pytest.raises(GnnEcommerceError, match=message):
        GraphFilter(**parameters)


def fitted(**parameters):
    return GraphFilter(n=9, **parameters).fit(toy_graph())


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: GraphFilter(n=9, recency=1.0).fit(toy_graph()), GnnEcommerceError, "set recency to 0"),
        (lambda: GraphFilter(n=9, closeness=0.5).fit(toy_graph()), GnnEcommerceError, "set closeness to 0"),
        (lambda: GraphFilter().fold_in([[0]]), GnnEcommerceError, "call fit"),
        (lambda: fitted().fold_in([[7]]), UnknownIdError, "items: expected indices in 0..4, found 7..7"),
        (lambda: fitted().fold_in([[0.5]]), GnnEcommerceError, "items: expected a list of indices, found float64"),
        (lambda: fitted().fold_in([[1]], [[1, 2]]), GnnEcommerceError, "weights: expected one for each product"),
        (lambda: fitted().contributions(9, 0), UnknownIdError, "users: expected indices in 0..3"),
        (lambda: TablePacker(3, "int8"), GnnEcommerceError, "dtype: expected 'float16' or 'float32', found 'int8'"),
    ],
    ids=["recency", "closeness", "not fitted", "item", "type", "weights", "user", "dtype"],
)
def test_what_a_filter_refuses(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_damaged_arrays_are_refused():
    f = fitted()
    arrays = f.to_arrays()
    for name, damaged, message in (
        ("indices", f.table.indices[1:], "do not agree"),
        ("indptr", f.table.indptr[:-1], "do not agree"),
        ("indices", f.table.indices + np.uint16(5), "do not agree"),
        ("values", f.table.values.astype(np.float32), "expected int64 indptr, uint16 or int32 indices and float16"),
    ):
        with pytest.raises(GnnEcommerceError, match=message):
            GraphFilter.from_arrays(arrays | {name: damaged}, f.params)


def test_an_empty_table_can_be_packed():
    assert TablePacker(0).table().n_items == 0


HYBRID = {
    "negative b": (lambda model, f: HybridRecommender(model, f, -1), "b: expected a number >= 0, found -1"),
    "infinite b": (lambda model, f: HybridRecommender(model, f, np.inf), "b: expected a number >= 0, found inf"),
    "no filter": (lambda model, f: HybridRecommender(model, None, 1), "expected a filter_part for b=1, found none"),
    "other sizes": (lambda model, f: HybridRecommender(model, fitted()), "two parts for the same users and items"),
    "fit": (lambda model, f: HybridRecommender(model, f).fit(None), "fit the parts and put them together again"),
    "metric": (lambda model, f: choose_b(HybridRecommender(model, f), None, metric="auc"), "such as 'ndcg@20'"),
    "no b": (lambda model, f: choose_b(HybridRecommender(model, f), None, ()), "at least one b"),
    "targets": (
        lambda model, f: choose_b(HybridRecommender(model, f), sp.csr_array((9, 9))),
        r"targets: expected shape \(150, 90\)",
    ),
    "nobody": (
        lambda model, f: choose_b(HybridRecommender(model, f), sp.csr_array((150, 90), dtype=bool)),
        "users with validation pairs, found none",
    ),
}


@pytest.mark.parametrize(("call", "message"), HYBRID.values(), ids=HYBRID)
def test_what_a_hybrid_refuses(call, message):
    _, model, f = parts()
    with pytest.raises(GnnEcommerceError, match=message):
        call(model, f)


def test_a_grid_of_another_method_is_refused():
    graph = random_graph(80, 60, 700, seed=7)
    with pytest.raises(GnnEcommerceError, match="paths.rank"):
        choose_filter(graph, graph.csr("seen"), grid={"rank": (1, 2)})


def test_similar_items_are_the_models():
    _, model, f = parts()
    ours, theirs = HybridRecommender(model, f, 3.0).similar_items([3], 4), model.similar_items([3], 4)
    np.testing.assert_array_equal(ours[0], theirs[0])
