"""New products, products that are bought again, or both; and parts that validation adds to the score."""

import json
import re

import numpy as np
import pandas as pd
import pytest
import yaml

from gnn_ecommerce.bundle import BundleSettings, build_bundle, find_bundle, open_bundle
from gnn_ecommerce.core import (
    TINY,
    GnnEcommerceError,
    ProjectPaths,
    example_project,
    merge_params,
    read_json,
    read_params,
    read_table,
    rng,
    run_stage,
)
from gnn_ecommerce.explain.shares import Explainer
from gnn_ecommerce.explainability import run_explainability
from gnn_ecommerce.explore.figures import page
from gnn_ecommerce.explore.state import ExplorerState
from gnn_ecommerce.filter.parts import ChosenParts
from gnn_ecommerce.filter.personal import FadingCounts, TifuKnn, TifuSettings, read_purchases
from gnn_ecommerce.graph.interactions import InteractionGraph
from gnn_ecommerce.inference import run_inference
from gnn_ecommerce.models.checkpoint import build_recommender, load_model
from gnn_ecommerce.serving.engine import Engine
from gnn_ecommerce.serving.protocol import BasketItem, Request
from gnn_ecommerce.training import add_parts

SETTINGS = merge_params(
    TINY,
    {
        "data_prep": {"events": "data/raw/events.csv", "val_days": 30, "test_days": 30},
        "training": {"filter": "paths", "filter_search": False, "temperature": 0.3},
        "refit": {"check": False},
        "inference": {"bootstrap": 100, "baselines": ["popular"]},
    },
)


def grocer_events(users=240, items=60, days=300):
    "Purchases of a shop where each product has an interval, and customers stop with some."
    draw = rng(0, "grocer")
    interval, rows = draw.choice([8.0, 20.0, 60.0], items), []
    for user in range(users):
        for item in draw.choice(items, 10, replace=False):
            day, stop = draw.uniform(0, days), draw.uniform(100, 2 * days)
            while day < min(stop, days):
                rows.append((pd.Timestamp("2020-01-01", tz="UTC") + pd.Timedelta(days=day), "purchase", item, user))
                day += draw.gamma(4, interval[item] / 4)
    events = pd.DataFrame(rows, columns=["event_time", "event_type", "product_id", "user_id"])
    return events.assign(price=1.0).sort_values("event_time")


@pytest.fixture(scope="module")
def grocer(tmp_path_factory):
    "A project of such a shop in which all stages before inference have run."
    paths = ProjectPaths(tmp_path_factory.mktemp("grocer"))
    (paths.root / "data/raw").mkdir(parents=True)
    grocer_events().to_csv(paths.root / "data/raw/events.csv", index=False)
    (paths.root / "params.yaml").write_text(yaml.safe_dump(SETTINGS), encoding="utf8")
    for stage in ("data_prep", "graph_build", "training", "refit"):
        run_stage(stage, (paths.root / "params.yaml"))
    return paths


def infer(paths, **overlay):
    "Run inference with other settings; the lists as a table, and the result."
    params = merge_params(SETTINGS, {"inference": overlay})
    (paths.root / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf8")
    result = run_inference(paths.root / "params.yaml")
    return read_table(paths.recommendations / "recommendations.parquet", "recommendations", "inference"), result


def pairs_of(table):
    return set(zip(table.user_id, table.product_id))


def test_repeated_pairs_are_those_that_were_bought_before(grocer):
    events = pd.read_parquet(grocer.interim / "events.parquet")
    for part, earlier in (("val", ["train"]), ("test", ["train", "val"])):
        now, before = (pairs_of(events[events.split.isin(parts)]) for parts in ([part], earlier))
        first, again = (read_table(grocer.processed / f"{part}{x}.parquet", "targets", "test") for x in ("", "_again"))
        assert pairs_of(again) == now & before and pairs_of(first) == now - before
        assert len(again) == len(pairs_of(again)) > 100


def test_the_share_of_repeats_is_in_the_checkpoint(grocer):
    graph = InteractionGraph.load(grocer.graph)
    first, again = (
        len(graph.encode_pairs(read_table(grocer.processed / f"{x}.parquet", "targets", "test"))[0].data)
        for x in ("val", "val_again")
    )
    repeat = read_json(grocer.checkpoints / "metadata.json", "training")["scoring"]["repeat"]
    assert repeat["share"] == pytest.approx(again / (first + again), abs=1e-5)
    assert repeat["weight"] > 0


def test_the_final_model_keeps_what_was_learned_of_repeats(grocer):
    evaluated = read_json(grocer.checkpoints / "metadata.json", "training")["scoring"]
    final = read_json(grocer.served.checkpoint / "metadata.json", "refit")["scoring"]
    assert final["repeat"] == evaluated["repeat"]


def test_lists_hold_what_their_purpose_says(grocer):
    events = pd.read_parquet(grocer.interim / "events.parquet")
    bought = pairs_of(events)
    lists = {
        purpose: infer(grocer, purpose=purpose, report=False, k=5)[0] for purpose in ("discover", "buy_again", "all")
    }
    assert not pairs_of(lists["discover"]) & bought
    assert pairs_of(lists["buy_again"]) <= bought
    both = pairs_of(lists["all"])
    assert both & bought and len(both) == len(lists["all"])
    scores = lists["buy_again"].groupby("user_id").score
    assert scores.apply(lambda s: s.is_monotonic_decreasing).all() and lists["buy_again"].score.between(0, 1).all()


def test_the_share_of_repeats_chooses_what_lists_are_for(grocer, served, capsys):
    share = read_json(grocer.checkpoints / "metadata.json", "training")["scoring"]["repeat"]["share"]
    said = (
        f"{share:.0%}".replace("%", " %")
        + " of validation's purchases had been bought before: lists of everything (all)"
    )
    lists, _ = infer(grocer, report=False)
    assert said in capsys.readouterr().out and set(lists.purpose) == {"all"}
    for metadata in (grocer.checkpoints, grocer.served.checkpoint):
        assert read_json(metadata / "metadata.json", "training")["purpose"] == said
    assert served.bundle.manifest["purpose"] == "all"


@pytest.mark.parametrize("purpose", ["discover", "buy_again", "all"])
def test_a_bundle_says_what_requests_are_for_that_do_not_say_it(grocer, purpose, tmp_path):
    graph = InteractionGraph.load(grocer.graph)
    tensors, metadata = load_model(grocer.checkpoints, graph)
    settings = BundleSettings(purpose=purpose)
    engine = Engine.of_bundle(build_bundle(tmp_path, graph, tensors, metadata["scoring"], settings))
    for customer in engine.parts.user_ids.ids[:5].tolist():
        given, meant = engine.answer([Request(customer=customer), Request(customer=customer, purpose=purpose)])
        np.testing.assert_array_equal(given.items, meant.items)
        np.testing.assert_allclose(given.scores, meant.scores)


@pytest.mark.parametrize("purpose", ["buy_again", "all"])
def test_explained_shares_add_up_with_what_is_bought_again(grocer, purpose):
    infer(grocer, purpose=purpose, report=False)
    settings = merge_params(SETTINGS, {"explainability": {"number": 3, "check": 5, "shortest": 0}})
    (grocer.root / "params.yaml").write_text(yaml.safe_dump(settings), encoding="utf8")
    result = run_explainability(grocer.root / "params.yaml")
    sums = result.rows.groupby(["user_id", "product_id", "split"]).agg({"share": "sum", "score": "first"})
    np.testing.assert_allclose(sums.share, sums.score, rtol=1e-5)
    again = result.rows[result.rows.kind == "repeat"]
    assert set(again.split) == {"first_step", "event_type", "people", "walks"}
    if purpose == "buy_again":
        np.testing.assert_allclose(again.share, again.score, rtol=1e-6)
    lead = again[again.share > again.score / 2]
    assert len(lead) and lead.sentence.str.contains("the last time was").all()


def test_without_the_product_itself_nothing_is_bought_again(grocer):
    graph = InteractionGraph.load(grocer.graph)
    explainer = Explainer.from_checkpoint(grocer.checkpoints, graph, purpose="all")
    item, other = graph.item[graph.edges_of(user=0)][:2].tolist()
    before = explainer.shares(0, [item]).repeat[0]
    gone, kept = (explainer.what_if(0, [x], [item]).change[item] for x in (item, other))
    model = Explainer.from_checkpoint(grocer.checkpoints, graph)
    assert gone == pytest.approx(model.what_if(0, [item], [item]).change[item] - before)
    assert kept == pytest.approx(model.what_if(0, [other], [item]).change[item])
    shares = explainer.shares(0, [item])
    row = shares.history.tolist().index(item)
    assert explainer.effects(shares)[row, 0] == pytest.approx(-gone)


def test_every_method_is_measured_on_every_task(grocer):
    _, result = infer(grocer)
    table = pd.read_csv(grocer.report("inference") / "tasks.csv").set_index(["task", "method", "metric"])["mean"]
    assert set(table.index.get_level_values("task")) == {"discover", "buy again", "all"}
    at = lambda task, method: table[task, method, "ndcg@20"]  # noqa: E731
    assert at("buy again", "buy again") > at("buy again", "own purchases counted")
    assert at("all", "all parts") > at("all", "own purchases counted") > at("all", "popular")
    assert "own purchases counted" in (grocer.report("inference") / "tasks.csv").read_text(encoding="utf8")
    assert result.tasks["mean"].between(0, 1).all()


def test_counts_are_measured_as_a_loop_would(grocer):
    _, result = infer(grocer)
    train = pd.read_parquet(grocer.processed / "train_events.parquet")
    again = read_table(grocer.processed / "test_again.parquet", "targets", "test")
    counts, recalls = train.groupby(["user_id", "product_id"]).size(), []
    graph = InteractionGraph.load(grocer.graph)
    for user, targets in again.groupby("user_id").product_id:
        wanted = set(targets) & set(graph.item_ids.ids)
        if user not in counts.index.get_level_values(0) or not wanted:
            continue
        own = counts[user].reset_index(name="n").sort_values(["n", "product_id"], ascending=[False, True])
        recalls.append(len(wanted & set(own.product_id[:10])) / len(wanted))
    t = result.tasks.set_index(["task", "method", "metric"])["mean"]
    assert t["buy again", "own purchases counted", "recall@10"] == pytest.approx(np.mean(recalls))


def slow_vector(days, items, s, n_items):
    "TIFU-KNN's vector of a customer, a basket at a time."
    baskets, vector = sorted(set(days)), np.zeros(n_items)
    size = int(np.ceil(len(baskets) / s.groups))
    groups = [baskets[a : a + size] for a in range(0, len(baskets), size)]
    for i, group in enumerate(groups):
        for j, day in enumerate(group):
            for item in {item for at, item in zip(days, items) if at == day}:
                vector[item] += s.of_groups**i / len(groups) * s.in_group**j / len(group)
    return vector


@pytest.fixture(scope="module")
def purchases(grocer):
    graph = InteractionGraph.load(grocer.graph)
    return graph, read_purchases(grocer.processed / "train_events.parquet", graph)


def test_tifu_knn_is_what_the_paper_says(purchases):
    graph, bought = purchases
    s = TifuSettings(groups=3, neighbours=5)
    mine = [bought.user == user for user in range(graph.n_users)]
    vectors = np.array([slow_vector(bought.day[m], bought.item[m], s, graph.n_items) for m in mine])
    distance = ((vectors[:9, None] - vectors) ** 2).sum(2)
    np.fill_diagonal(distance, np.inf)
    around = vectors[np.argsort(distance, axis=1, kind="stable")[:, :5]].mean(1)
    scores = TifuKnn(graph, bought, s).score(np.arange(9))
    np.testing.assert_allclose(scores, 0.7 * vectors[:9] + 0.3 * around, atol=1e-6)


def test_counts_fade_with_every_day_of_purchase(purchases):
    graph, bought = purchases
    scores = FadingCounts(graph, bought, half_life=10).score(np.arange(graph.n_users))
    wanted = np.zeros_like(scores)
    np.add.at(wanted, (bought.user, bought.item), 0.5 ** (bought.day / 10))
    np.testing.assert_allclose(scores, wanted, rtol=1e-5)


def test_a_shop_without_repeats_says_so(tmp_path):
    params = example_project("inference", root=tmp_path / "shop")
    params.write_text(
        yaml.safe_dump(merge_params(read_params(params), {"inference": {"purpose": "buy_again"}})), encoding="utf8"
    )
    with pytest.raises(GnnEcommerceError, match="purpose buy_again: expected a model that knows repeated purchases"):
        run_inference(params)


@pytest.fixture(scope="module")
def with_parts(grocer):
    "The shop's model with a low rank and popularity in the score: graph, tensors, scoring."
    graph = InteractionGraph.load(grocer.graph)
    tensors, metadata = load_model(grocer.checkpoints, graph)
    low_rank, popular = dict(rank=8, weighted=True, weight=3.0), dict(half_life=30.0, weight=0.2)
    return graph, *add_parts(graph, tensors, metadata["scoring"], ChosenParts(low_rank, popular).facts)


def test_a_bundle_serves_all_parts_of_the_score(with_parts, tmp_path):
    graph, tensors, scoring = with_parts
    bundle = build_bundle(tmp_path, graph, tensors, scoring, BundleSettings(lists=7, purpose="discover"))
    model, users = build_recommender(graph, tensors, scoring), np.arange(graph.n_users)
    items, scores = model.recommend(users, 7)
    np.testing.assert_array_equal(bundle.lists[0], items)
    np.testing.assert_allclose(bundle.lists[1], scores, rtol=1e-6)


def test_reasons_of_a_served_list_add_up_with_all_parts(with_parts, tmp_path):
    graph, tensors, scoring = with_parts
    engine = Engine.of_bundle(
        build_bundle(tmp_path, graph, tensors, scoring, BundleSettings(lists=7, purpose="discover"))
    )
    customer = engine.parts.user_ids.id(3)
    for request in (
        Request(customer=customer, k=5, explain=True),
        Request(customer=None, basket=[engine.parts.item_ids.id(2)], k=5, explain=True),
    ):
        (listed,) = engine.answer([request])
        shares = engine.scorer.shares(engine.customers([listed]), 0, listed.items)
        np.testing.assert_allclose(shares.own + shares.bias + shares.products.sum(0), shares.score)
        np.testing.assert_allclose(shares.score, listed.scores, rtol=1e-4)
        assert shares.bias.any()


@pytest.fixture(scope="module")
def served(grocer):
    "The engine of the bundle that the project serves."
    run_stage("bundle", grocer.root / "params.yaml")
    return Engine.of_bundle(open_bundle(find_bundle("latest", grocer.bundles)))


def ids_of(engine, listed):
    return engine.parts.item_ids.decode(listed.items).tolist()


@pytest.mark.parametrize("purpose", ["discover", "buy_again", "all"])
def test_served_lists_are_the_batch_lists(grocer, served, purpose):
    table, _ = infer(grocer, purpose=purpose, report=False, k=8)
    requests = [Request(customer=user, k=8, purpose=purpose) for user in table.user_id.unique().tolist()]
    wanted = table.groupby("user_id", sort=False)
    for request, listed in zip(requests, served.answer(requests)):
        rows = wanted.get_group(request.customer)
        assert ids_of(served, listed) == rows.product_id.tolist()
        np.testing.assert_allclose(listed.scores, rows.score, rtol=1e-6)


def test_reasons_of_lists_of_everything_add_up_and_say_when(served):
    customer = served.parts.user_ids.id(1)
    for purpose in ("buy_again", "all"):
        (listed,) = served.answer([Request(customer=customer, k=5, purpose=purpose, explain=True)])
        for item in served.items(listed):
            assert sum(reason.share for reason in item.reasons) == pytest.approx(item.score, rel=1e-4)
            if item.reasons[-1].kind == "repeat" and item.reasons[-1].share > item.score / 2:
                assert "the last time was" in item.sentence


def test_a_list_of_repeats_keeps_to_the_request(served):
    customer = served.parts.user_ids.id(1)
    (whole,) = served.answer([Request(customer=customer, k=5, purpose="buy_again")])
    first, second = ids_of(served, whole)[:2]
    (left,) = served.answer([Request(customer=customer, k=5, purpose="buy_again", exclude_products=[first])])
    assert ids_of(served, left)[0] == second
    (basket,) = served.answer([Request(customer=customer, k=5, purpose="buy_again", basket=[second])])
    assert second not in ids_of(served, basket) and basket.source == "buy_again"


def test_nobody_knows_what_a_stranger_buys_again(served):
    again, everything = served.answer([Request(customer=-5, purpose=purpose) for purpose in ("buy_again", "all")])
    assert (again.source, len(again.items)) == ("buy_again", 0)
    assert "no purchase of this customer" in again.note and b'"note":"no purchase' in served.to_json(again)
    assert everything.source == "popular" and len(everything.items)


def test_a_basket_is_folded_in_without_what_is_in_the_cart(served):
    bought, cart, viewed = served.parts.item_ids.ids[:3].tolist()
    basket = [BasketItem(bought, "purchase"), cart, BasketItem(viewed, "view")]
    for customer in (None, served.parts.user_ids.id(1)):
        (listed,) = served.answer([Request(customer=customer, basket=basket, purpose="all", k=100)])
        ids = ids_of(served, listed)
        assert listed.source == ("model" if customer is not None else "fold_in")
        assert cart not in ids and {bought, viewed} <= set(ids)


def test_what_was_bought_since_training_is_hidden_unless_it_is_bought_again(served):
    customer = served.parts.user_ids.id(1)
    for purpose in ("discover", "buy_again", "all"):
        (whole,) = served.answer([Request(customer=customer, k=5, purpose=purpose)])
        first = ids_of(served, whole)[0]
        (left,) = served.answer([Request(customer=customer, k=5, purpose=purpose, hide=[first])])
        assert (first in ids_of(served, left)) == (purpose != "discover")
    regular = served.parts.item_ids.ids[served.scorer.again(1)[0]]
    (whole,) = served.answer([Request(customer=customer, k=60, purpose="all")])
    new = next(id for id in ids_of(served, whole) if id not in regular)
    (left,) = served.answer([Request(customer=customer, k=60, purpose="all", hide=[new])])
    assert new not in ids_of(served, left)


def test_reasons_in_short_name_a_product_or_a_habit(served):
    customer = served.parts.user_ids.id(1)
    again, everything = served.answer([Request(customer=customer, k=20, purpose=p) for p in ("buy_again", "all")])
    habits = [reason for listed in (again, everything) for reason in served.because(listed)]
    assert all(reason.startswith(("you buy this about every ", "you bought ")) for reason in habits)
    (new,) = served.answer([Request(customer=-5)])
    assert served.because(new) == ["popular"] * len(new.items)


@pytest.fixture(scope="module")
def explored(grocer):
    "The explorer on a customer of the shop, whose lists are of everything."
    (grocer.root / "params.yaml").write_text(yaml.safe_dump(SETTINGS), encoding="utf8")
    state = ExplorerState.from_project(grocer.root)
    state.choose(1)
    return state


def test_the_explorer_lists_what_is_served(explored, served):
    everything, again = served.answer([Request(customer=1, k=10, purpose=p) for p in ("all", "buy_again")])
    assert explored.recommendations().product_id.tolist() == ids_of(served, everything)
    listed = explored.buy_again()
    assert listed.product_id.tolist() == ids_of(served, again)
    assert listed.reason.tolist() == served.explained(again)[1]


def test_the_explorer_takes_scores_apart_with_what_is_bought_again(explored):
    state, item = explored.copy(), int(explored.recommendations().item[0])
    state.pick(item)
    splits = state.splits()
    np.testing.assert_allclose(splits.groupby("split").share.sum(), state.score(), rtol=1e-6)
    assert "bought again" in set(splits.label)
    state.toggle(item)
    assert item not in set(state.buy_again().item)
    assert state.effect().query("item == @item").change.iloc[0] < 0


def test_the_page_has_both_lists(explored, tmp_path):
    text = page(explored, tmp_path / "page.html", inline=False, tops=(3,)).read_text(encoding="utf8")
    data = json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', text, re.S)[1])
    (customer,) = data["customers"]
    assert [row["item"] for row in customer["again"]] == explored.buy_again().item.tolist()
    assert {str(row["item"]) for row in customer["list"] + customer["again"]} == set(customer["products"])


def test_a_part_of_the_score_is_taken_only_if_it_helps(grocer):
    table = pd.read_csv(grocer.report("training") / "parts.csv")
    assert set(table.part) == {"low_rank", "popular"}
    taken = table[table.taken]
    assert (taken.gain > taken.standard_error).all()
    scoring = read_json(grocer.checkpoints / "metadata.json", "training")["scoring"]
    assert set(taken.part) == {name for name in ChosenParts._fields if name in scoring}
