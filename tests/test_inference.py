"""Stage `inference` on a project of its own: what it writes, for whom, and what it refuses."""

import shutil
import tracemalloc

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from gnn_ecommerce import inference
from gnn_ecommerce.core import (
    ArtifactError,
    DataError,
    ProjectPaths,
    SettingsError,
    example_project,
    merge_params,
    read_json,
    read_params,
    read_table,
)
from gnn_ecommerce.ranking.evaluation import evaluate
from gnn_ecommerce.graph.interactions import InteractionGraph, random_graph
from gnn_ecommerce.inference import InferenceSettings, Recommending, chosen_users, run_inference, write_recommendations
from gnn_ecommerce.ranking.recommender import EmbeddingRecommender, Popular, Recommender
from gnn_ecommerce.models.checkpoint import load_checkpoint

#: the evaluated model is served: lists of the final one are in test_refit
FAST = {"inference": {"bootstrap": 100, "baselines": ["popular", "random"]}, "refit": {"until": "none", "check": False}}


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    "A tiny project in which every stage before inference has run; its filter leaves some users outside of the graph."
    return example_project(
        before="inference",
        overlay=merge_params(FAST, {"graph_build": {"min_user_events": 3}}),
        root=tmp_path_factory.mktemp("project"),
    )


@pytest.fixture
def project(trained, tmp_path):
    "A copy of it: (function that runs the stage with an overlay, paths)."
    import yaml

    shutil.copytree(trained.parent, tmp_path / "p")
    params = tmp_path / "p" / "params.yaml"

    def run(**overlay):
        params.write_text(yaml.safe_dump(merge_params(read_params(params), {"inference": overlay})), encoding="utf8")
        return run_inference(params)

    return run, ProjectPaths(params.parent)


def written(paths):
    return read_table(paths.recommendations / "recommendations.parquet", "recommendations", "inference")


def test_file_holds_the_exact_lists_of_everybody(project):
    run, paths = project
    result = run(k=7, chunk=50)
    served = paths.served
    table, graph = written(paths), InteractionGraph.load(served.graph)
    model = load_checkpoint(served.checkpoint, graph)
    assert list(table.columns) == ["user_id", "product_id", "rank", "score", "source", "purpose", "model_version"]
    assert table[["user_id", "rank"]].equals(table[["user_id", "rank"]].sort_values(["user_id", "rank"]))
    assert set(table.model_version) == {model.model_version}
    assert (table.groupby("user_id")["rank"].max() == table.groupby("user_id").size()).all()
    ours = table[table.source == "model"]
    assert set(ours.user_id) == set(graph.user_ids.ids)
    val, _ = inference.read_val(paths.processed / "val.parquet", graph)
    banned = graph.csr("bought").toarray() | val.toarray()
    scores = model.score(np.arange(graph.n_users))
    for user, rows in ours.groupby("user_id"):
        u = graph.user_ids.encode([user])[0]
        mine = graph.item_ids.encode(rows.product_id.to_numpy())
        assert not banned[u, mine].any()
        best = np.sort(np.where(banned[u], -np.inf, scores[u]))[::-1][:7]
        np.testing.assert_allclose(rows.score, best[: len(rows)], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(scores[u, mine], best[: len(rows)], rtol=1e-4, atol=1e-6)
    assert result.counts["n_rows"] == len(table)


def test_users_outside_of_the_graph_get_what_is_popular(project):
    run, paths = project
    run(k=5)
    table, graph = written(paths), InteractionGraph.load(paths.graph)
    events = read_table(paths.processed / "train_events.parquet", "train_events", "data_prep")
    outside = set(events.user_id) - set(graph.user_ids.ids)
    assert outside, "the filter of this project leaves somebody outside"
    popular = table[table.source == "popular"]
    assert outside <= set(popular.user_id) and not set(popular.user_id) & set(graph.user_ids.ids)
    order = graph.item_ids.decode(Popular().fit(graph).recommend_new(1, graph.n_items)[0][0])
    val = read_table(paths.processed / "val.parquet", "targets", "data_prep")
    bought = pd.concat([events[events.event_type == "purchase"], val])
    for user, rows in popular.groupby("user_id"):
        had = set(bought.product_id[bought.user_id == user])
        assert rows.product_id.tolist() == [i for i in order if i not in had][:5]


def test_only_some_users(project):
    run, paths = project
    graph = InteractionGraph.load(paths.graph)
    some = [int(o) for o in graph.user_ids.ids[[3, 8]]]
    run(users=[*some, -5], report=False)
    table = written(paths)
    assert table.groupby("user_id").source.first().to_dict() == {some[0]: "model", some[1]: "model", -5: "popular"}
    (paths.root / "ids.txt").write_text(f"user_id\n{some[1]}\n-5\n")
    everything = written(paths)
    run(users=None, users_file="ids.txt", report=False)
    assert written(paths).equals(everything[everything.user_id.isin([some[1], -5])].reset_index(drop=True)), (
        "the same lists whoever else is asked for"
    )
    with pytest.raises(DataError, match="expected a file of user ids"):
        run(users_file="none.txt")
    with pytest.raises(SettingsError, match="expected integers as in the events, found 'x'"):
        run(users=["x"], users_file=None)


def test_what_they_saw_is_masked_by_switch(project):
    run, paths = project
    graph = InteractionGraph.load(paths.graph)
    seen = set(zip(graph.user_ids.ids[graph.user], graph.item_ids.ids[graph.item]))
    lists = lambda: set(written(paths)[["user_id", "product_id"]].itertuples(index=False, name=None))
    run(exclude="seen", report=False)
    assert not lists() & seen
    run(exclude="bought", report=False)
    assert lists() & seen


def test_report_is_what_evaluate_says(project):
    run, paths = project
    result = run(ks=[5, 20])
    graph = InteractionGraph.load(paths.graph)
    model, (val, _) = (
        load_checkpoint(paths.checkpoints, graph),
        inference.read_val(paths.processed / "val.parquet", graph),
    )
    test = inference.read_test(paths.processed / "test.parquet", graph, val)
    direct = evaluate(model, test.targets, [5, 20], "bought", val).metrics
    folder = paths.report("inference")
    metrics = read_json(folder / "metrics.json", "inference")
    for name, value in direct.items():
        assert metrics[name] == pytest.approx(value)
    table = pd.read_csv(folder / "comparison.csv").set_index(["method", "metric"])
    assert {"popular", "random", model.name} <= set(table.index.get_level_values(0))
    for name, value in direct.items():
        assert table.loc[(model.name, name), "mean"] == pytest.approx(value, abs=1e-5)
    inside = table.dropna()
    assert ((inside.low <= inside["mean"]) & (inside["mean"] <= inside.high)).all()
    curve = pd.read_csv(folder / "recall_at_k.csv", index_col="k")
    assert curve.loc[20, model.name] == pytest.approx(direct["recall@20"], abs=1e-5) and curve.index.max() == 50
    assert (curve.diff().dropna() >= -1e-9).all(axis=None)
    assert result.counts["test_pairs"] == sum(
        result.counts[c] for c in ("comparable_pairs", "cold_item_pairs", "cold_user_pairs", "cold_both_pairs")
    )
    file = written(paths)
    hits = file.merge(
        read_table(paths.processed / "test.parquet", "targets", "data_prep")[
            ["user_id", "product_id"]
        ].drop_duplicates(),
        on=["user_id", "product_id"],
    )
    found = (hits[hits.source == "model"]).groupby("user_id").size()
    mine = result.evaluations[0].per_user
    assert found.sum() == result.evaluations[0].hits[:, :20].sum(), "the lists on disk are the ones that were measured"
    assert len(mine) == result.counts["comparable_users"]


def test_again_gives_the_same_bytes(project):
    run, paths = project
    names = [
        "metrics.json",
        "comparison.csv",
        "by_activity.csv",
        "by_popularity.csv",
        "cold.csv",
        "worth.csv",
        "recall_at_k.csv",
        "differences.csv",
        "customers.txt",
        "recall_at_k.png",
    ]
    lists = [paths.recommendations / f"recommendations.{kind}" for kind in ("parquet", "csv")]
    files = [*lists, *(paths.report("inference") / n for n in names)]
    run(chunk=1000)
    first = [f.read_bytes() for f in files]
    run(chunk=1000)
    for f, before in zip(files, first):
        assert f.read_bytes() == before, f.name


def test_lists_in_words_say_the_same_as_the_parquet_file(project):
    run, paths = project
    run(report=False, spreadsheet=3, k=5)
    table, words = written(paths), pd.read_csv(paths.recommendations / "recommendations.csv")
    customers = table.user_id.unique()[:3]
    same = table[table.user_id.isin(customers)].reset_index()
    assert (
        words[["customer", "product_id", "rank"]]
        .rename(columns={"customer": "user_id"})
        .equals(same[["user_id", "product_id", "rank"]].astype("int64"))
    )
    products = InteractionGraph.load(paths.served.graph).items.set_index("product_id").loc[words.product_id]
    assert words.name.tolist() == products.name.tolist()
    assert words.price.tolist() == pytest.approx(products.price.round(4).tolist(), nan_ok=True)
    assert words.reason.str.endswith(".").all()
    assert not words.category.astype(str).str.fullmatch(r"\d{6,}").any()


def test_a_test_split_that_nothing_can_be_said_of(project, capsys):
    run, paths = project
    test = read_table(paths.processed / "test.parquet", "targets", "data_prep")
    inference_targets = test.assign(user_id=-1 - np.arange(len(test)))
    from gnn_ecommerce.core import write_table

    write_table(inference_targets, paths.processed / "test.parquet", "targets")
    result = run()
    assert result.evaluations == [] and "nothing to compare" in capsys.readouterr().out
    assert len(pd.read_csv(paths.report("inference") / "comparison.csv")) == 0
    assert read_json(paths.report("inference") / "metrics.json", "inference")["comparable_users"] == 0


@pytest.mark.parametrize(
    "break_it, error, message",
    [
        (lambda p: (p.checkpoints / "model.safetensors").unlink(), ArtifactError, "dvc repro training"),
        (lambda p: (p.processed / "test.parquet").write_bytes(b"PAR1"), ArtifactError, "data_prep"),
        (lambda p: (p.processed / "val.parquet").unlink(), ArtifactError, "data_prep"),
        (lambda p: (p.graph / "edges.parquet").unlink(), ArtifactError, "graph_build"),
    ],
)
def test_a_broken_input_is_named(project, break_it, error, message):
    run, paths = project
    break_it(paths)
    with pytest.raises(error, match=message):
        run()


def test_an_unknown_baseline_stops_before_anything_is_written(project):
    run, paths = project
    with pytest.raises(SettingsError, match="inference.baselines: expected some of popular"):
        run(baselines=["popullar"])
    assert not (paths.recommendations / "recommendations.parquet").exists()


def test_a_failure_leaves_the_old_file(project, monkeypatch):
    run, paths = project
    run(report=False)
    before = (paths.recommendations / "recommendations.parquet").read_bytes()
    whole = inference.recommendation_rows
    calls = []

    def dies(job, ids):
        calls.append(len(ids))
        if len(calls) == 3:
            raise MemoryError
        return whole(job, ids)

    monkeypatch.setattr(inference, "recommendation_rows", dies)
    with pytest.raises(MemoryError):
        run(report=False, chunk=20)
    assert (paths.recommendations / "recommendations.parquet").read_bytes() == before
    names = sorted(o.name for o in paths.recommendations.iterdir())
    assert names == ["recommendations.csv", "recommendations.parquet"]


class Flat(Recommender):
    "Scores from a formula: no table whose size would hide the lists'."

    name = "flat"
    budget = 2 << 20

    def score(self, users):
        return np.cos(np.outer(users.astype(np.float32), np.arange(self.n_items, dtype=np.float32)))


def test_memory_does_not_grow_with_the_users(tmp_path, monkeypatch):
    monkeypatch.setenv("GNN_ECOMMERCE_PROGRESS", "none")
    peaks = []
    for n in (4000, 16000):
        graph = random_graph(n, 300, 8000, seed=0)
        job = Recommending(
            Flat().fit(graph),
            InferenceSettings(k=50, chunk=500),
            pd.DataFrame({"user_id": [-1], "product_id": [0], "bought": [True]}),
            version="v",
        )
        users = chosen_users(job.settings, graph, job.outside, ProjectPaths(tmp_path))
        job.lists(users.ids[:600])
        tracemalloc.start()
        write_recommendations(tmp_path / f"{n}.parquet", job, users)
        peaks.append((tracemalloc.get_traced_memory()[1], pa.default_memory_pool().max_memory()))
        tracemalloc.stop()
    (numpy_small, arrow_small), (numpy_large, arrow_large) = peaks
    assert numpy_large < 1.5 * numpy_small and arrow_large < 1.5 * arrow_small + 1e6, peaks


def test_embeddings_stream_like_everything_else(tmp_path):
    graph = random_graph(900, 200, 3000, seed=0)
    draw = np.random.default_rng(0)
    model = EmbeddingRecommender(draw.normal(size=(900, 8)), draw.normal(size=(200, 8)), graph)
    tables = []
    for chunk in (7, 900):
        job = Recommending(
            model,
            InferenceSettings(k=10, chunk=chunk),
            pd.DataFrame({"user_id": [], "product_id": [], "bought": []}),
            version="v",
        )
        write_recommendations(tmp_path / "r.parquet", job, graph.user_ids)
        tables.append(read_table(tmp_path / "r.parquet", "recommendations", "inference"))
    assert tables[0].equals(tables[1])
