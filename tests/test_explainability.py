"""Shares add up to the score in every split; paths against brute force; hubs stay cheap; what a server may not load."""

import itertools
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch

from gnn_ecommerce.core import GnnEcommerceError, rng
from gnn_ecommerce.lightgcn import LightGCNRecommender
from gnn_ecommerce.explainability import ExplainabilitySettings, interesting_users, write_explanations
from gnn_ecommerce.graph.interactions import InteractionGraph, random_graph
from gnn_ecommerce.filter.graph_filter import GraphFilter
from gnn_ecommerce.filter.hybrid import HybridRecommender
from gnn_ecommerce.explain.paths import connection, shortest_paths
from gnn_ecommerce.graph.propagation import Adjacency, Propagation
from gnn_ecommerce.explain.shares import Explainer, deletion_curve, random_case, removal_correlation

FILTERS = {
    "alone": None,
    "paths": dict(method="paths", n=15),
    "paths, few counted": dict(method="paths", n=40, cap=5),
    "chebyshev": dict(method="chebyshev", n=15, rank=6),
    "regression": dict(method="regression", n=15, l2=3.0),
}


def model_of(seed, layers, weighted, cosine, part, diagonal=False):
    "A random model: its explainer and its recommender."
    g, draw = random_graph(40, 30, 240, seed), rng(seed, layers, part)
    e, alpha = torch.from_numpy(draw.standard_normal((70, 8), np.float32)), list(draw.random(layers + 1))
    filter = GraphFilter(weighted=weighted, diagonal=diagonal, **FILTERS[part]).fit(g) if FILTERS[part] else None
    z = Propagation(Adjacency.from_graph(g, weighted), alpha).forward(e)
    model, b = LightGCNRecommender(z[:40], z[40:], g, cosine), 3.0 * bool(filter)
    return Explainer(g, e, alpha, weighted, cosine, filter, b), HybridRecommender(model, filter, b) if b else model


def all_splits(explainer, user, items):
    "Sums of every split of the scores of some items, by name."
    s = explainer.shares(user, items)
    return s, {
        "first step": s.products.sum(0) + s.own + s.bias,
        "event type": s.by_event_type().sum(axis=1).to_numpy(),
        "people": explainer.people(user, items).sum(axis=1).to_numpy(),
        "walks": np.array([explainer.walks(user, int(i), n=3).table.share.sum() for i in items]),
        "table": np.array([s.table(int(i), 2).share.sum() for i in items]),
    }


def test_every_split_adds_up_to_the_score(capsys):
    worst, cases, scores = {}, 0, 0
    for layers, weighted, cosine, part in itertools.product(range(1, 6), (True, False), (True, False), FILTERS):
        for seed in range(3):
            explainer, model = model_of(seed, layers, weighted, cosine, part, diagonal=seed == 1)
            user, items = int(rng(seed, layers, part).integers(40)), rng(seed, part).choice(30, 6, replace=False)
            s, splits = all_splits(explainer, user, items)
            target = model.score([user])[0][items]
            for name, total in splits.items():
                worst[name] = max(worst.get(name, 0), float((np.abs(total - target) / s.scale).max()))
            cases, scores = cases + 1, scores + len(items)
    with capsys.disabled():
        print(
            f"\n{scores} scores of {cases} models, worst deviation of the scale:",
            ", ".join(f"{k} {v:.1e}" for k, v in worst.items()),
        )
    assert max(worst.values()) < 1e-5


def test_random_models_of_all_shapes_add_up(capsys):
    "Also no layers at all, customers without history, products without customers, one dimension, an item bias."
    worst, cases = 0.0, 150
    for seed in range(1000, 1000 + cases):
        explainer, model = random_case(seed)
        g = explainer.graph
        user, items = int(rng(seed).integers(g.n_users)), np.arange(min(g.n_items, 5))
        s, splits = all_splits(explainer, user, items)
        worst = max(
            [
                worst,
                *(
                    (np.abs(total - model.score([user])[0][items]) / s.scale.clip(1e-30)).max()
                    for total in splits.values()
                ),
            ]
        )
    with capsys.disabled():
        print(f"\n{cases} random models, 5 splits: worst deviation {worst:.1e} of the scale")
    assert worst < 1e-5


@pytest.mark.parametrize("layers", range(1, 6))
def test_paths_and_similarity_are_what_the_formula_says(layers):
    "Each part by itself in float64 on dense matrices, not only their sum."
    for seed, cosine in itertools.product(range(3), (True, False)):
        explainer, _ = model_of(seed, layers, True, cosine, "alone")
        A, E = (
            Adjacency.from_graph(explainer.graph).to_scipy().toarray().astype(float),
            explainer.embedding.astype(float),
        )
        P = sum(a * np.linalg.matrix_power(A, l) for l, a in enumerate(explainer.alpha))
        Z, gram = P @ E, E @ E.T
        for u, i in ((0, 3), (17, 29)):
            c = np.linalg.norm(Z[u]) * np.linalg.norm(Z[40 + i]) if cosine else 1.0
            joint = np.outer(P[u], P[40 + i]) * gram / c
            w = explainer.walks(u, i, n=0)
            scale = np.abs(joint).sum()
            assert abs(w.paths - np.trace(joint)) < 1e-5 * scale
            assert abs(w.similarity - (joint.sum() - np.trace(joint))) < 1e-5 * scale


def every_path(A, weight, alpha, start, end):
    "Contribution of every walk, by going everywhere."
    layers, found = len(alpha) - 1, {}

    def go(nodes, product):
        k = len(nodes) - 1
        if nodes[-1] == end and k:
            found[nodes] = product * sum(
                alpha[m] * alpha[k - m] * weight[nodes[m]] for m in range(max(0, k - layers), min(layers, k) + 1)
            )
        if k < 2 * layers - 1:
            for n in np.flatnonzero(A[nodes[-1]]):
                go((*nodes, int(n)), product * A[nodes[-1], n])

    go((start,), 1.0)
    return found


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_best_paths_are_the_best_of_all(layers):
    for seed in range(5):
        g = random_graph(9, 8, 26, seed=seed)
        e = torch.from_numpy(rng(seed).standard_normal((17, 4), np.float32) ** 3)
        explainer = Explainer(g, e, list(rng(seed, "a").random(layers + 1)), cosine=False)
        A, weight = (
            explainer.adjacency.to_scipy().toarray().astype(float),
            (explainer.embedding.astype(float) ** 2).sum(1),
        )
        for u, i in itertools.product((0, 4, 8), (0, 7)):
            expected = every_path(A, weight, explainer.alpha, u, 9 + i)
            for n in (1, 5, 10**6):
                w = explainer.walks(u, i, n)
                top = w.table[w.table.kind == "path"]
                np.testing.assert_allclose(top.share, sorted(expected.values(), reverse=True)[:n], rtol=1e-5)
                assert w.complete
                for share, path in zip(top.share, top.path):
                    assert share == pytest.approx(
                        expected[tuple(9 + x if k % 2 else x for k, x in enumerate(path))], rel=1e-5
                    )


def test_filter_paths_by_going_everywhere():
    for weighted, cap, diagonal in itertools.product((True, False), (3, 2000), (True, False)):
        g = random_graph(25, 20, 140, seed=5)
        f = GraphFilter(n=9, weighted=weighted, cap=cap, diagonal=diagonal, alpha=0.3, gamma=0.7).fit(g)
        explainer = Explainer(g, np.zeros((45, 2)), [0.5, 0.5], weighted, filter=f, b=2.0)
        r, W = f.history.toarray().astype(float), f.table.to_csr().toarray().astype(float)
        from gnn_ecommerce.filter.methods import cap_history

        counted, degree = cap_history(f.history, cap).toarray().astype(float), r.sum(1)
        for u, i in itertools.product((0, 11), range(20)):
            expected = {}
            for x in np.flatnonzero(r[u]):
                terms = {
                    v: counted[v, x] * counted[v, i] * degree[v] ** -0.7
                    for v in range(25)
                    if counted[v, x] and counted[v, i]
                }
                if W[x, i]:
                    expected |= {
                        (x, v): 2 * degree[u] ** -0.5 * r[u, x] * W[x, i] * t / sum(terms.values())
                        for v, t in terms.items()
                    }
            found = {(x, v): share for x, v, share in zip(*(a.tolist() for a in explainer.filter_paths(u, i)))}
            assert found.keys() == expected.keys()
            for key, share in found.items():
                assert share == pytest.approx(expected[key], rel=1e-5)


def hub_graph(n):
    "A product that everybody has, and others."
    draw = rng(0, "hub")
    user = np.concatenate([np.arange(n), draw.integers(0, n, 3 * n), np.zeros(5000, int)])
    item = np.concatenate([np.zeros(n, int), draw.integers(1, 6000, 3 * n), np.arange(1, 5001)])
    pairs = np.unique(user.astype(np.int64) * 6000 + item)
    return InteractionGraph.from_arrays(
        pairs // 6000, pairs % 6000, draw.random(len(pairs)).clip(0.01), n_users=n, n_items=6000
    )


def test_a_hub_and_a_customer_with_five_thousand_products_stay_cheap():
    g = hub_graph(100_000)
    e = torch.from_numpy(rng(0).standard_normal((g.n_users + g.n_items, 16), np.float32))
    explainer = Explainer(g, e, [0.25] * 4, filter=GraphFilter(n=50).fit(g), b=1.0)
    items = np.array([0, 5500, 5700, 5999])
    for user, least in ((0, 5000), (1, 1)):
        start = time.perf_counter()
        s, splits = all_splits(explainer, user, items)
        sentences = [explainer.sentence(s, int(i)) for i in items]
        view = connection(g, user, 5500, adjacency=explainer.adjacency)
        seconds = time.perf_counter() - start
        assert len(s.history) >= least and all(sentences) and len(view) <= 200 and len(shortest_paths(view, user, 5500))
        for total in splits.values():
            np.testing.assert_allclose(total, s.score, atol=1e-5 * s.scale.max())
        assert seconds < 60, f"{seconds:.1f} s for four products of a customer with {len(s.history)} products"


def test_what_if_is_what_a_graph_without_the_events_says_of_the_customer():
    "Nobody else's degree matters, so folding in and propagating anew agree on the customer's side."
    g = random_graph(30, 25, 160, seed=3)
    explainer, _ = model_of(3, 2, True, True, "paths")
    g = explainer.graph
    for user in (0, 7, 21):
        history = explainer.shares(user, [0]).history
        for without in ([], history[:1], history[::2], history):
            w = explainer.what_if(user, without, np.arange(g.n_items))
            left = g.subset(~((g.user == user) & np.isin(g.item, without)))
            e = left.edges_of(user=user)
            degree_u, degree_i = left.weight[e].sum(), np.bincount(g.item, g.weight, g.n_items)
            z = explainer.alpha[0] * explainer.embedding[user].astype(float)
            if len(e):
                z = z + (left.weight[e] / np.sqrt(degree_u * degree_i[left.item[e]])) @ explainer.after[left.item[e]]
            unit = explainer.item_embedding / np.linalg.norm(explainer.item_embedding, axis=1, keepdims=True)
            score = unit @ z / np.linalg.norm(z)
            if len(e):
                score = (
                    score
                    + explainer.b
                    * degree_u**-0.5
                    * left.weight[e]
                    @ explainer.filter.table.to_csr().toarray()[left.item[e]]
                )
            np.testing.assert_allclose(w.after, score, atol=1e-5)
    with pytest.raises(GnnEcommerceError, match="no event with it"):
        explainer.what_if(0, [x for x in range(30) if x not in explainer.shares(0, [0]).history][:1], [0])


def test_effects_are_what_if_of_each_product():
    for seed in range(5):
        explainer, _ = random_case(seed)
        s = explainer.shares(0, np.arange(min(5, explainer.graph.n_items)))
        changes = [explainer.what_if(0, [x], s.items).change.to_numpy() for x in s.history]
        wanted = -np.reshape(changes, (len(s.history), len(s.items)))
        np.testing.assert_allclose(explainer.effects(s), wanted, atol=1e-9)


def test_people_are_what_dense_matrices_say():
    g, user, items, others = random_graph(30, 20, 150, seed=4), 3, np.arange(20), np.arange(30) != 3
    E, alpha = rng(0, "E").standard_normal((50, 5), np.float32), [0.4, 0.3, 0.2, 0.1]
    explainer = Explainer(g, torch.from_numpy(E), alpha, filter=GraphFilter("paths", n=8, cap=6).fit(g), b=0.7)
    A = Adjacency.from_graph(g).to_scipy().toarray().astype(float)
    Z = sum(a * np.linalg.matrix_power(A, l) for l, a in enumerate(alpha)) @ E
    beyond = (0.2 * np.eye(50) + 0.1 * A) @ E
    joint = (A[user, 30:] @ A[30:, :30]) * (Z[30:] @ beyond[:30].T)
    joint /= np.linalg.norm(Z[user]) * np.linalg.norm(Z[30:], axis=1)[:, None]
    has, table, s = g.csr().toarray().astype(bool).T, explainer.people(user, items), explainer.shares(user, items)
    own = np.array([share[v == user].sum() for _, v, share in (explainer.filter_paths(user, i) for i in items)])
    both = (joint * has)[:, others].sum(1) + s.filter.sum(0) - own
    np.testing.assert_allclose(table.people_with_both, both, atol=1e-6)
    np.testing.assert_allclose(table.other_people, (joint * ~has)[:, others].sum(1), atol=1e-6)
    np.testing.assert_allclose(table.yourself, joint[:, user] + own, atol=1e-6)


def test_the_stage_explains_an_unknown_customer_by_popularity(tmp_path):
    from gnn_ecommerce.core import ProjectPaths, dump_yaml, example_project, read_params, read_table
    from gnn_ecommerce.explainability import run_explainability
    from gnn_ecommerce.inference import run_inference

    params = example_project("explainability", {"refit": {"until": "none", "check": False}}, tmp_path)
    file = ProjectPaths(params.parent).recommendations / "recommendations.parquet"
    users = [int(read_table(file, "recommendations", "inference").user_id[0]), 1]  # 1: nobody
    asked = {"inference": {"users": users, "report": False}, "explainability": {"users": users, "k": 2, "check": 2}}
    params.write_text(dump_yaml(read_params(params) | asked))
    run_inference(params)
    result = run_explainability(params)
    unknown = result.rows[result.rows.user_id == users[1]]
    assert set(unknown.split) == {"popular"} and len(unknown) == 2
    assert unknown.sentence.str.startswith("Because many customers bought it").all()
    assert result.metrics["customers"] == 2 and result.metrics["not_known"] == 2 and result.metrics["checked"] == 2


def taste_shop(seed=0, n_users=240, n_items=120, tastes=6):
    "Customers who buy within a taste, and now and then one of a few bestsellers."
    draw = rng(seed, "tastes")
    user = np.repeat(np.arange(n_users), 14)
    item = np.where(
        draw.random(len(user)) < 0.75,
        draw.integers(0, n_items // tastes, len(user)) * tastes + user % tastes,
        draw.integers(0, 10, len(user)),
    )
    pairs = np.unique(user.astype(np.int64) * n_items + item)
    return InteractionGraph.from_arrays(pairs // n_items, pairs % n_items, n_users=n_users, n_items=n_items)


def check_deletion(explainer, pairs, again=False, guesses=("share", "effect")):
    "Shares and effects against random and popularity: more of the score gone, closer to the true change."
    curve = deletion_curve(explainer, pairs, (0, 0.2, 0.4), again=again, draws=1 if again else 5).pivot(
        index="removed", columns="order", values="left"
    )
    corr = removal_correlation(explainer, pairs, again).mean(numeric_only=True)
    for guess, other in itertools.product(guesses, ("random", "popularity")):
        assert curve[guess][0.2] < curve[other][0.2] and curve[guess][0.4] < curve[other][0.4], curve
        assert corr[guess] > corr[other] + 0.1, corr
    return curve, corr


def test_deletion_curve_of_a_trained_model():
    from gnn_ecommerce.training import TrainingSettings, fit

    g = taste_shop()
    keep = rng(0, "keep").random(g.n_edges) > 0.1
    graph = g.subset(keep)
    targets = g.subset(~keep).csr("seen")
    result = fit(graph, TrainingSettings(dim=16, epochs=6, filter="paths", filter_search=False), targets)
    explainer = Explainer.from_tensors(graph, result.tensors, result.scoring)
    users = np.arange(0, 240, 8)
    items, scores = result.recommender.recommend(users, 3)
    pairs = np.stack([np.repeat(users, 3), items.ravel()], 1)
    for u, row, score in zip(users, items, scores):
        np.testing.assert_allclose(explainer.shares(u, row).score, score, atol=1e-5)
    assert explainer.filter is not None
    check_deletion(explainer, pairs)
    check_deletion(explainer, pairs[::9], again=True)


def test_explanations_of_text_and_integer_ids(tmp_path):
    from gnn_ecommerce.core import read_table

    for ids in (np.arange(70) * 11 - 5, np.array([f"ü {i:02}" for i in range(70)], object)):
        g = random_graph(40, 30, 240, seed=1)
        g = InteractionGraph.from_arrays(
            g.user, g.item, g.weight, g.purchased, user_ids=list(ids[:40]), item_ids=list(ids[40:])
        )
        explainer = Explainer(g, rng(0).standard_normal((70, 4)), [0.5, 0.5])
        explainer.model_version = "lightgcn-1"
        rows = explainer.explanation_rows(3, np.array([0, 4]), [1, 2], ExplainabilitySettings(paths=2, shortest=1))
        write_explanations(rows, explainer, tmp_path / "explanations.parquet")
        back = read_table(tmp_path / "explanations.parquet", "explanations", "explainability")
        assert set(back.user_id) == {ids[3]} and set(back.product_id) == {ids[40], ids[44]}
        assert back.path[back.kind == "shortest path"].map(lambda p: p[0]).eq(str(ids[3])).all()
        sums = (
            back[back.split != "shortest_path"]
            .groupby(["rank", "split"])
            .agg(share=("share", "sum"), score=("score", "first"))
        )
        np.testing.assert_allclose(sums.share, sums.score, atol=1e-6)


def test_customers_without_history_and_products_without_customers():
    g = InteractionGraph.from_arrays([1, 1], [0, 1], n_users=3, n_items=4)
    for b in (0.0, 1.0):
        explainer = Explainer(g, rng(0).standard_normal((7, 4)), [0.4, 0.3, 0.3], filter=GraphFilter().fit(g), b=b)
        s, splits = all_splits(explainer, 0, np.arange(4))
        for total in splits.values():
            np.testing.assert_allclose(total, s.score, atol=1e-6)
        np.testing.assert_allclose(s.own, s.score, atol=1e-6)
        assert explainer.sentence(s, int(s.score.argmax())).startswith("Because of your taste as a whole")
        assert explainer.people(1, [3]).loc[3, "people_with_both"] == 0
        assert explainer.what_if(1, [0, 1], [2, 3]).after.notna().all()
        assert len(explainer.explanation_rows(0, np.array([3]), [1]))
    assert interesting_users(g, 5).tolist() == [1]


def test_the_share_functions_load_nothing_that_a_server_must_not_load():
    code = (
        "import sys, gnn_ecommerce.explain.shares, gnn_ecommerce.explain.paths; "
        "heavy = {'duckdb', 'ibis', 'papermill', 'matplotlib', 'plotly', 'implicit', 'sklearn', 'dvclive'}; "
        "print(sorted(heavy & set(sys.modules)), 'gnn_ecommerce.training' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] False"


def cosmetics_sample(folder):
    "Nine tenths of the pairs of the real sample, weighted by the scheme `sum`, and the others."
    events = pd.concat([pd.read_csv(f) for f in sorted((folder / "cosmetics_sample").glob("20*.csv"))])
    n = events.groupby(["user_id", "product_id"]).event_type.value_counts().unstack(fill_value=0)
    s = (
        (n * pd.Series({"view": 0.01, "cart": 0.1, "remove_from_cart": -0.09, "purchase": 1.0}))
        .sum(axis=1)
        .clip(lower=0.01)
    )
    weight = np.where(s <= 1, s, np.where(n.purchase > 0, 1.0, 0.5))
    users, items = (np.unique(n.index.get_level_values(c)) for c in ("user_id", "product_id"))
    g = InteractionGraph.from_arrays(
        np.searchsorted(users, n.index.get_level_values(0)),
        np.searchsorted(items, n.index.get_level_values(1)),
        weight,
        n.purchase > 0,
        user_ids=list(users),
        item_ids=list(items),
        edges=n.add_prefix("n_").reset_index(drop=True),
        scheme="sum",
    )
    keep = rng(0, "keep").random(g.n_edges) > 0.1
    return g.subset(keep), g.subset(~keep).csr("seen")


def test_deletion_curve_on_real_events(real_data):
    from gnn_ecommerce.training import TrainingSettings, fit

    graph, targets = cosmetics_sample(real_data)
    result = fit(graph, TrainingSettings(dim=32, epochs=10, filter="none"), targets)
    users = np.flatnonzero(np.diff(graph.user_ptr) >= 4)[:60]
    for b in (10.0, 0.0):
        filter = GraphFilter("paths").fit(graph)
        model = HybridRecommender(result.recommender, filter, b)
        items, _ = model.recommend(users, 5)
        explainer = Explainer(graph, result.tensors["embedding.weight"], result.tensors["alpha"], filter=filter, b=b)
        # cosines of this small sample are all near 1, whatever is taken out: shares say nothing of that, effects do
        check_deletion(
            explainer,
            np.stack([np.repeat(users, 5), items.ravel()], 1),
            guesses=("share", "effect") if b else ("effect",),
        )
