"""The graph stage against slow, obvious implementations; what is damaged or from the future is refused."""

import json
import math
import shutil
from decimal import Decimal
from pathlib import Path

import ibis
import networkx as nx
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import yaml

from gnn_ecommerce import graph_build
from gnn_ecommerce.core import (
    ArtifactError,
    DataError,
    GnnEcommerceError,
    ProjectPaths,
    SettingsError,
    write_json,
    write_table,
)
from gnn_ecommerce.graph.interactions import GRAPH_FILES, InteractionGraph
from gnn_ecommerce.data.events import EVENT_TYPES
from gnn_ecommerce.graph_build import EventWeights, GraphBuildSettings, build_graph, run_graph_build

END = pd.Timestamp("2020-03-01", tz="UTC")
REFERENCE = {"view": 0.01, "cart": 0.1, "remove_from_cart": -0.09, "purchase": 1.0}


def random_events(seed=0, n=4000, users=60, items=30, text=False):
    "Events whose pairs reach every branch of every scheme: a few fixed pairs, and random ones of all sizes."
    r = np.random.default_rng(seed)
    user, item = (r.random(n) ** 2 * users).astype(int), (r.random(n) ** 2 * items).astype(int)
    kind = r.choice(EVENT_TYPES, n, p=[0.45, 0.3, 0.2, 0.05])
    fixed = [
        (900, "cart", 10),
        (901, "cart", 9),
        (901, "view", 10),
        (902, "cart", 11),
        (903, "remove_from_cart", 7),
        (904, "view", 100),
        (905, "view", 101),
        (906, "purchase", 1),
        (907, "purchase", 3),
        (908, "purchase", 1),
        (908, "remove_from_cart", 2),
        (909, "purchase", 1),
        (909, "remove_from_cart", 30),
        (910, "view", 3),
        (911, "view", 8),
        (911, "cart", 11),
        (911, "remove_from_cart", 2),
    ]
    user = np.concatenate([user, *[[u] * k for u, _, k in fixed]])
    item = np.concatenate([item, np.zeros(len(user) - n, int)])
    kind = np.concatenate([kind, *[[t] * k for _, t, k in fixed]])
    seconds = r.integers(1, 100 * 86400, len(user))
    df = pd.DataFrame(
        {
            "user_id": user * 1000 + 7,
            "product_id": item * 11 - 3,
            "event_type": kind.astype(object),
            "event_time": (END - pd.to_timedelta(seconds, unit="s")).astype("datetime64[us, UTC]"),
            "price": r.random(len(user)) * 20,
        }
    )
    if text:
        df = df.assign(
            user_id=[f"ü{u}" if u % 2 else f"U {u}" for u in df.user_id], product_id=[f"p{i}" for i in df.product_id]
        )
    return df.sample(frac=1, random_state=seed).reset_index(drop=True)


def catalogue(events):
    ids = sorted(events.product_id.unique())[::-1]
    return pd.DataFrame({"product_id": ids, "brand": ["b"] * len(ids), "price": np.arange(len(ids)) / 2})


def table(events):
    return ibis.memtable(pa.Table.from_pandas(events, preserve_index=False))


def build(events, **settings):
    return build_graph(table(events), catalogue(events), GraphBuildSettings(**settings), END)[0]


def weight_of(graph):
    return {
        (u, i): w
        for u, i, w in zip(
            graph.user_ids.decode(graph.user).tolist(),
            graph.item_ids.decode(graph.item).tolist(),
            graph.weight.tolist(),
        )
    }


# slow, obvious: one pair at a time, in Python; decimals, because .9 + .1 is 1


def slow_total(pair, weights):
    return sum(Decimal(str(weights[t])) for t in pair.event_type)


def slow_sum(pair, weights, **_):
    total = max(slow_total(pair, weights), Decimal(str(weights["view"])))
    if total > 1:
        return 1.0 if "purchase" in set(pair.event_type) else 0.5
    return float(total)


def slow_log_count(pair, weights, **_):
    return math.log(1 + float(max(slow_total(pair, weights), Decimal(str(weights["view"])))))


def slow_recency(pair, weights, half_life):
    ages = [(END - t).total_seconds() / 86400 for t in pair.event_time]
    total = sum(weights[k] * 2 ** (-a / half_life) for k, a in zip(pair.event_type, ages))
    return max(total, weights["view"] * 2 ** (-min(ages) / half_life), 1e-9)


SLOW = {
    "sum": slow_sum,
    "log_count": slow_log_count,
    "recency": slow_recency,
    "unweighted": lambda pair, *_, **__: 1.0,
    "purchase_only": lambda pair, *_, **__: 1.0 if "purchase" in set(pair.event_type) else None,
}


def slow_weights(events, scheme, weights=EventWeights().model_dump(), half_life=30.0):
    pairs = {
        key: SLOW[scheme](pair, weights, half_life=half_life) for key, pair in events.groupby(["user_id", "product_id"])
    }
    return {k: w for k, w in pairs.items() if w is not None}


@pytest.mark.parametrize("text", [False, True], ids=["integer ids", "text ids"])
@pytest.mark.parametrize("scheme", SLOW)
@pytest.mark.parametrize(
    "weights",
    [
        EventWeights().model_dump(),
        REFERENCE,
        {**REFERENCE, "remove_from_cart": -0.19},
        {"view": 0.3, "cart": 0.25, "remove_from_cart": 0.0, "purchase": 0.4},
    ],
    ids=["default", "the reference's", "-0.19", "own"],
)
def test_schemes_agree_with_slow_ones(scheme, weights, text):
    events = random_events(seed=1, text=text)
    graph, slow = (
        build(events, scheme=scheme, weights=EventWeights(**weights), half_life_days=9.0),
        slow_weights(events, scheme, weights, 9.0),
    )
    ours = weight_of(graph)
    assert ours.keys() == slow.keys()
    assert [ours[k] for k in slow] == pytest.approx([*slow.values()], rel=2e-6)
    bought = {k for k, pair in events.groupby(["user_id", "product_id"]) if "purchase" in set(pair.event_type)}
    assert {k for k, p in zip(ours, graph.purchased) if p} == bought


def test_sum_reaches_every_branch():
    w = {
        u // 1000: x
        for (u, i), x in weight_of(build(random_events(), weights=EventWeights(**REFERENCE))).items()
        if u >= 900_000
    }
    assert w == pytest.approx(
        {
            900: 1.0,
            901: 1.0,
            902: 0.5,
            903: 0.01,
            904: 1.0,
            905: 0.5,
            906: 1.0,
            907: 1.0,
            908: 0.82,
            909: 0.01,
            910: 0.03,
            911: 1.0,
        }
    )


def test_counts_and_times():
    events = random_events(seed=2)
    graph = build(events)
    slow = events.groupby(["user_id", "product_id"]).agg(
        first_time=("event_time", "min"), last_time=("event_time", "max")
    )
    for kind in EVENT_TYPES:
        slow[f"n_{kind}"] = (events.event_type == kind).groupby([events.user_id, events.product_id]).sum()
    assert list(zip(graph.user_ids.decode(graph.user), graph.item_ids.decode(graph.item))) == slow.index.tolist()
    for c in slow:
        assert (graph.edges[c].to_numpy() == slow[c].to_numpy()).all(), c
    assert {str(graph.edges[f"n_{k}"].dtype) for k in EVENT_TYPES} == {"int32"}
    assert graph.items.product_id.tolist() == graph.item_ids.ids.tolist()
    assert (graph.purchased == (slow.n_purchase > 0)).all()


@pytest.mark.parametrize("k", [2, 3, 5])
def test_k_core_agrees_with_networkx(k):
    events = random_events(seed=k, n=700, users=150, items=60)
    whole = nx.Graph([(("u", u), ("i", i)) for u, i in zip(events.user_id.tolist(), events.product_id.tolist())])
    graph = build(events, k_core=k)
    ours = {frozenset([("u", u), ("i", i)]) for u, i in weight_of(graph)}
    assert ours == {frozenset(e) for e in nx.k_core(whole, k).edges}
    assert min(np.bincount(graph.user).min(), np.bincount(graph.item).min()) >= k


def test_indices_do_not_depend_on_how_an_engine_sorts(monkeypatch):
    events = random_events(seed=3, text=True)
    graph = build(events)
    monkeypatch.setattr(graph_build, "sorted_pairs", lambda pairs: pairs.order_by(ibis.desc("user_id")))
    assert build(events).hash == graph.hash


def test_filters_in_order_and_counted():
    events = random_events(seed=4)
    cfg = dict(max_user_events=150, min_user_events=12, min_item_events=45)
    _, log = build_graph(
        table(events), catalogue(events), GraphBuildSettings(**cfg, k_core=3, scheme="purchase_only"), END
    )
    left, e = {"all": events}, events
    for step, column, keep in (
        ("max_user_events", "user_id", lambda n: n <= 150),
        ("min_user_events", "user_id", lambda n: n >= 12),
        ("min_item_events", "product_id", lambda n: n >= 45),
    ):
        left[step] = e = e[keep(e.groupby(column)[column].transform("size"))]
    bought = e[e.event_type == "purchase"][["user_id", "product_id"]].drop_duplicates()
    left["scheme"] = e = e.merge(bought)
    core = nx.k_core(nx.Graph([(("u", u), ("i", i)) for u, i in zip(bought.user_id, bought.product_id)]), 3)
    left["k_core"] = e[[core.has_edge(("u", u), ("i", i)) for u, i in zip(e.user_id, e.product_id)]]
    slow = [
        (s, x.user_id.nunique(), x.product_id.nunique(), len(x[["user_id", "product_id"]].drop_duplicates()), len(x))
        for s, x in left.items()
    ]
    assert [tuple(row) for row in log.itertuples(index=False)] == slow
    assert len({row[3] for row in slow}) == len(slow), "every filter removes something here"


def test_order_of_events_and_threads_change_nothing(tmp_path):
    events, hashes = random_events(seed=5, n=30_000, users=20, items=10), set()
    for i, threads in enumerate((1, 2, 3)):
        params = project(
            tmp_path / str(i),
            events.sample(frac=1, random_state=i),
            graph_build={"scheme": "recency", "threads": threads, "half_life_days": 3.0},
        )
        hashes.add(run_graph_build(params).hash)
    assert len(hashes) == 1


# the stage, on files


def project(root, events, split=None, products=None, targets=None, **sections):
    "A project with what the stage reads; returns its params file."
    paths = ProjectPaths(root)
    write_table(events, paths.processed / "train_events.parquet", "train_events")
    write_table(catalogue(events) if products is None else products, paths.processed / "products.parquet", "products")
    write_json(split or {"kind": "temporal", "val_start": END.isoformat()}, paths.processed / "split.json")
    for part, df in (targets or {}).items():
        write_table(df, paths.processed / f"{part}.parquet", "targets")
    params = paths.root / "params.yaml"
    params.write_text(yaml.safe_dump({"seed": 0, **sections}))
    return params


@pytest.mark.parametrize("text", [False, True], ids=["integer ids", "text ids"])
def test_stage_round_trip(tmp_path, text):
    events = random_events(seed=6, text=text)
    params = project(tmp_path, events, graph_build={"scheme": "sum", "min_user_events": 2})
    graph, paths = run_graph_build(params), ProjectPaths(tmp_path)
    back = InteractionGraph.load(paths.graph)
    assert back.hash == graph.hash and weight_of(back) == weight_of(graph)
    assert back.user_ids == graph.user_ids and back.item_ids == graph.item_ids
    pd.testing.assert_frame_equal(back.edges, graph.edges)
    pd.testing.assert_frame_equal(back.items, graph.items, check_dtype=False)
    assert sorted(f.name for f in paths.graph.iterdir()) == sorted(GRAPH_FILES)
    metrics = json.loads((paths.report("graph_build") / "metrics.json").read_text())
    assert metrics["n_edges"] == graph.n_edges and metrics["removed_users_min_user_events"] > 0
    assert all(isinstance(v, (int, float)) for v in metrics.values())
    first = {f.name: f.read_bytes() for f in [*paths.graph.iterdir(), *paths.report("graph_build").iterdir()]}
    run_graph_build(params)
    assert {f.name: f.read_bytes() for f in [*paths.graph.iterdir(), *paths.report("graph_build").iterdir()]} == first


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    root = tmp_path_factory.mktemp("saved")
    run_graph_build(project(root, random_events(seed=7, n=900)))
    return ProjectPaths(root).graph


@pytest.fixture
def built(saved, tmp_path):
    "A copy of a project whose graph is built; returns its params file."
    shutil.copytree(saved.parents[2], tmp_path, dirs_exist_ok=True)
    return tmp_path / "params.yaml"


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x20
    path.write_bytes(data)


DAMAGE = {
    "missing": Path.unlink,
    "empty": lambda p: p.write_bytes(b""),
    "cut": lambda p: p.write_bytes(p.read_bytes()[:-30]),
    "one bit": flip,
    "another program's": lambda p: (
        pd.DataFrame({"a": [1]}).to_parquet(p) if p.suffix == ".parquet" else p.write_text('{"a": 1}')
    ),
}


@pytest.mark.parametrize("name", GRAPH_FILES)
@pytest.mark.parametrize("how", DAMAGE)
def test_damaged_graph_is_refused(saved, tmp_path, name, how):
    folder = tmp_path / "graph"
    shutil.copytree(saved, folder)
    DAMAGE[how](folder / name)
    with pytest.raises(ArtifactError, match="dvc repro (--force )?graph_build"):
        InteractionGraph.load(folder)


def test_tables_of_another_graph_are_refused(saved, tmp_path):
    run_graph_build(project(tmp_path, random_events(seed=8, n=900, users=90, items=40)))
    for name in GRAPH_FILES:
        folder = tmp_path / name
        shutil.copytree(saved, folder)
        shutil.copy(ProjectPaths(tmp_path).graph / name, folder / name)
        with pytest.raises(ArtifactError, match="graph_build"):
            InteractionGraph.load(folder)


def test_a_graph_whose_hash_was_written_by_hand_is_refused(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "graph")
    facts = json.loads((saved / "graph.json").read_text())
    for key, value in (("hash", "0" * 64), ("n_edges", 1), ("n_users", 1), ("n_items", 1)):
        write_json({**facts, key: value}, tmp_path / "graph" / "graph.json")
        with pytest.raises(ArtifactError, match="dvc repro --force graph_build"):
            InteractionGraph.load(tmp_path / "graph")


@pytest.mark.parametrize("name", ["train_events.parquet", "products.parquet", "split.json"])
@pytest.mark.parametrize("how", [h for h in DAMAGE if h != "one bit"])
def test_damaged_input_leaves_the_old_graph(built, name, how):
    paths = ProjectPaths(built.parent)
    before = InteractionGraph.load(paths.graph).hash
    DAMAGE[how](paths.processed / name)
    if name == "split.json" and how == "another program's":
        (paths.processed / name).write_text('{"kind": "temporal"}')
    with pytest.raises(ArtifactError, match="dvc repro (--force )?data_prep"):
        run_graph_build(built)
    assert InteractionGraph.load(paths.graph).hash == before
    assert [p for p in built.parent.rglob("*") if p.name.startswith(".")] == []


def test_damage_inside_the_events_is_refused(tmp_path):
    params = project(tmp_path, random_events(seed=9, n=30_000))
    path = ProjectPaths(tmp_path).processed / "train_events.parquet"
    data = bytearray(path.read_bytes())
    data[200 : len(data) // 2] = bytes(len(data) // 2 - 200)
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match="dvc repro --force data_prep"):
        run_graph_build(params)


@pytest.mark.parametrize("column, value", [("event_type", "wish"), ("user_id", None), ("event_time", None)])
def test_unusable_train_events_are_refused(tmp_path, column, value):
    events = random_events(seed=9, n=900, text=True)
    events.loc[[3, 5], column] = value
    with pytest.raises(ArtifactError, match="found 2 rows without: run `dvc repro --force data_prep`"):
        run_graph_build(project(tmp_path, events, products=catalogue(random_events(seed=9, n=900, text=True))))


def test_no_event_of_the_future(tmp_path):
    events = random_events(seed=10, n=900)
    for time, refused in ((END, True), (END + pd.Timedelta(days=1), True), (END - pd.Timedelta(microseconds=1), False)):
        late = pd.concat([events, events.head(1).assign(event_time=time)]).astype({"event_time": "datetime64[us, UTC]"})
        params = project(tmp_path, late)
        if not refused:
            run_graph_build(params)
            continue
        with pytest.raises(DataError, match="found 1 at or after it.*would know the future"):
            run_graph_build(params)


def test_no_target_pair_of_a_random_split(tmp_path):
    events = random_events(seed=11, n=900)
    split, pair = {"kind": "random_pairs", "val_start": None}, events[["user_id", "product_id"]].head(1)
    other = pair.assign(product_id=999_999)
    for val, test, refused in ((pair, other, "val"), (other, pair, "test"), (other, other, None)):
        params = project(tmp_path, events, split, targets={"val": val, "test": test})
        if refused is None:
            run_graph_build(params)
            continue
        with pytest.raises(DataError, match=f"expected no {refused} pair in the train events, found 1"):
            run_graph_build(params)


def test_empty_results_are_said(tmp_path):
    events = random_events(seed=12, n=300)
    for cfg, message in (
        ({"k_core": 500}, "k_core 500"),
        ({"max_user_events": 1, "min_user_events": 2}, "min_user_events 2"),
    ):
        with pytest.raises(DataError, match=f"expected edges after {message}, found none"):
            run_graph_build(project(tmp_path, events, graph_build=cfg))
    with pytest.raises(DataError, match="expected train events, found none"):
        run_graph_build(project(tmp_path, events.head(0), products=catalogue(events)))
    with pytest.raises(DataError, match="expected edges after scheme purchase_only"):
        run_graph_build(project(tmp_path, events[events.event_type == "view"], graph_build={"scheme": "purchase_only"}))


def test_own_scheme_from_a_file_and_a_module(tmp_path):
    code = """
        import ibis
        from gnn_ecommerce.graph_build import event_count, register_scheme

        @register_scheme('{name}')
        def own(events, settings):
            return event_count(events, 'cart')*settings.scheme_options['per_cart'] + 1
    """
    events = random_events(seed=13, n=900)
    for source, file in (("own_file.py", "own_file.py"), ("own_module", "own_module.py")):
        (tmp_path / file).write_text(
            "\n".join(line[8:] for line in code.format(name=source.split(".")[0]).splitlines())
        )
        cfg = {"scheme": source.split(".")[0], "scheme_from": source, "scheme_options": {"per_cart": 0.5}}
        graph = run_graph_build(project(tmp_path, events, graph_build=cfg))
        assert graph.weight == pytest.approx(1 + 0.5 * graph.edges.n_cart.to_numpy())
        assert graph.scheme == source.split(".")[0]


@pytest.mark.parametrize(
    "cfg, message",
    [
        ({"scheme": "recencey"}, "graph_build.scheme: expected one of sum.*found 'recencey'; did you mean 'recency'"),
        ({"scheme": "own"}, "name its file in graph_build.scheme_from"),
        (
            {"scheme": "own", "scheme_from": "no.py"},
            "graph_build.scheme_from: expected a Python file .*no.py, found none",
        ),
        ({"half_life_days": 0}, "graph_build.half_life_days: expected a value > 0"),
        ({"weights": {"veiw": 1.0}}, "graph_build.weights.veiw: expected no such key"),
        ({"memory_limit": "much"}, "graph_build.memory_limit: expected"),
    ],
)
def test_wrong_settings(tmp_path, cfg, message):
    with pytest.raises(SettingsError, match=message):
        run_graph_build(project(tmp_path, random_events(n=300), graph_build=cfg))


def test_too_little_memory_is_said(tmp_path):
    params = project(
        tmp_path,
        random_events(seed=14, n=200_000, users=50_000, items=5_000),
        graph_build={"memory_limit": "1MB", "threads": 2},
    )
    with pytest.raises(GnnEcommerceError, match="graph_build.memory_limit: expected enough"):
        run_graph_build(params)


def test_real_events(real_data, tmp_path):
    files = sorted((real_data / "cosmetics_sample").glob("20*.csv"))
    events = pd.concat(pd.read_csv(f) for f in files)
    events["event_time"] = pd.to_datetime(events.event_time, utc=True).astype("datetime64[us, UTC]")
    split = pd.Timestamp("2020-02-01", tz="UTC")
    events = events[events.event_time < split][["user_id", "product_id", "event_type", "event_time", "price"]]
    graph = run_graph_build(project(tmp_path, events, {"kind": "temporal", "val_start": split.isoformat()}))
    assert weight_of(graph) == pytest.approx(slow_weights(events, "sum"), rel=1e-6)
