"""The engine behind the model server: lists in advance are those of scoring, reasons add up, JSON is exact."""

import numpy as np
import pandas as pd
import pytest
import torch
from gnn_ecommerce.bundle import BundleSettings, build_bundle
from gnn_ecommerce.filter.graph_filter import GraphFilter
from gnn_ecommerce.graph.interactions import InteractionGraph, pairs_csr, random_graph
from gnn_ecommerce.serving.engine import Engine, Listed
from gnn_ecommerce.serving.protocol import BasketItem, Filters, Request, Result, decode

USERS, ITEMS = 200, 90


def shop_bundle(folder, b=2.0, lists=12, seed=1, exclude="bought", text=False, weight=0.0):
    "A bundle of a model that has learned nothing, with a catalogue."
    g, draw = random_graph(USERS, ITEMS, 1500, seed), np.random.default_rng(seed)
    items = pd.DataFrame(
        {
            "product_id": [f"p{i:04}" for i in range(ITEMS)] if text else np.arange(ITEMS) * 10 + 5,
            "name": [f"Thing {i}" if i % 3 else None for i in range(ITEMS)],
            "category_code": draw.choice(["hair.brush", "hair.comb", "nail.lamp", "skin"], ITEMS),
            "brand": draw.choice(["kamm", "lux", "zart"], ITEMS),
            "price": draw.uniform(1, 50, ITEMS).round(2),
        }
    )
    users = [f"u{i:05}" for i in range(USERS)] if text else (np.arange(USERS) * 2).tolist()
    ids = dict(user_ids=users, item_ids=items.product_id.tolist())
    g = InteractionGraph.from_arrays(g.user, g.item, g.weight, g.purchased, **ids, items=items, scheme="sum")
    filter = GraphFilter("paths", 20).fit(g)
    tensors = {f"filter.{k}": torch.from_numpy(v) for k, v in filter.to_arrays().items()}
    tensors["embedding.weight"] = torch.from_numpy(draw.standard_normal((USERS + ITEMS, 8), np.float32))
    tensors["alpha"] = torch.full((3,), 1 / 3)
    hidden = pairs_csr(draw.integers(0, USERS, 100), draw.integers(0, ITEMS, 100), (USERS, ITEMS))
    scoring = dict(weighted=True, cosine=True, b=b, filter=filter.params if b else None)
    settings, about = BundleSettings(lists=lists, exclude=exclude), dict(model_version="shop", content_weight=weight)
    return build_bundle(folder, g, tensors, scoring, settings, hidden, **about), hidden


def random_requests(seed, bundle, n):
    "Requests of any type."
    draw, users, items = np.random.default_rng(seed), bundle.user_ids.ids.tolist(), bundle.item_ids.ids.tolist()

    def maybe(part, make):
        return make() if draw.random() < part else {}

    def some(most):
        return [items[i] for i in draw.choice(len(items), draw.integers(1, most), replace=False)]

    def basket():
        return [BasketItem(id, "view") if draw.random() < 0.5 else id for id in some(6)] + ["gone"]

    def filters():
        category = draw.choice(["hair", "hair.comb", "skin", "nothing"]).item() if draw.random() < 0.7 else None
        return Filters(category=category, max_price=float(draw.uniform(1, 60)))

    return [
        Request(
            customer=users[draw.integers(len(users))] if draw.random() < 0.8 else "who",
            k=int(draw.integers(1, 30)),
            exclude=draw.choice(["bought", "bought", "bought", "seen", "none"]).item(),
            **maybe(0.5, lambda: {"exclude_products": [*some(30), "gone"]}),
            **maybe(0.4, lambda: {"filters": filters()}),
            **maybe(0.3, lambda: {"basket": basket()}),
            **maybe(0.2, lambda: {"fallback": "random", "seed": 3}),
            **maybe(0.2, lambda: {"category": draw.choice(["hair", "void"]).item()}),
        )
        for _ in range(n)
    ]


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    bundle, hidden = shop_bundle(tmp_path_factory.mktemp("bundles"))
    return bundle, hidden, Engine.of_bundle(bundle)


def first(engine, **wish):
    return engine.answer([Request(**wish)])[0]


def test_known_customers_get_the_list_of_the_model(shop):
    bundle, hidden, engine = shop
    expected, _ = bundle.scorer.recommend(np.arange(USERS), 10, "bought", hidden)
    lists = engine.answer([Request(customer=user, k=10) for user in bundle.user_ids.ids.tolist()])
    assert [listed.items.tolist() for listed in lists] == expected.tolist()
    assert {listed.source for listed in lists} == {"model"}


@pytest.mark.parametrize("b, exclude", [(2.0, "bought"), (0.0, "bought"), (2.0, "seen"), (0.0, "none")])
def test_lists_in_advance_filtered_are_what_scoring_gives(tmp_path, b, exclude):
    with_lists, _ = shop_bundle(tmp_path, b=b, exclude=exclude)
    without, _ = shop_bundle(tmp_path, b=b, exclude=exclude, lists=0)
    requests = random_requests(0, with_lists, 300)
    engine, scoring = Engine.of_bundle(with_lists), Engine.of_bundle(without)
    assert any(isinstance(engine.plan(request), Listed) for request in requests if request.customer != "who")
    for one, two in zip(engine.answer(requests), scoring.answer(requests)):
        assert (one.source, one.items.tolist()) == (two.source, two.items.tolist())
        np.testing.assert_array_equal(one.scores, two.scores) if one.scores is not None else None


def test_requests_scored_together_get_the_lists_of_each_alone(shop):
    bundle, _, engine = shop
    requests = random_requests(1, bundle, 100)
    alone = [engine.answer([request])[0].items.tolist() for request in requests]
    assert [listed.items.tolist() for listed in engine.answer(requests)] == alone


@pytest.mark.parametrize(
    "wish, source",
    [
        ({}, "popular"),
        ({"category": "hair"}, "popular_in_category"),
        ({"category": "void"}, "popular"),
        ({"fallback": "random"}, "random"),
        ({"basket": ["gone"]}, "popular"),
        ({"basket": [5, 15]}, "fold_in"),
        ({"basket": [5], "content_weight": 1.0}, "content"),
    ],
)
def test_source(shop, wish, source):
    assert first(shop[2], **wish).source == source


def test_popular_skips_what_the_request_leaves_out(shop):
    bundle, _, engine = shop
    five = first(engine, k=6).items.tolist()
    assert first(engine, k=5, exclude_products=[bundle.item_ids.id(five[0])]).items.tolist() == five[1:]


def test_a_random_list_belongs_to_a_seed_and_a_customer(shop):
    lists = [
        tuple(first(shop[2], k=9, fallback="random", seed=seed, customer=customer).items)
        for seed, customer in ((1, "a"), (1, "a"), (2, "a"), (1, "b"))
    ]
    assert lists[0] == lists[1] and len(set(lists)) == 3


def test_what_is_in_the_basket_is_not_recommended(shop):
    assert not {0, 1} & set(first(shop[2], basket=[5, 15], k=ITEMS).items.tolist())


def test_a_filter_that_allows_nothing_gives_an_empty_list(shop):
    assert first(shop[2], basket=[5], filters=Filters(category="no such")).items.tolist() == []


@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_reasons_add_up(tmp_path, weight):
    bundle, _ = shop_bundle(tmp_path, seed=2, weight=weight)
    engine = Engine.of_bundle(bundle)
    for listed in engine.answer(random_requests(5, bundle, 100)):
        reasons, sentences = engine.explained(listed)
        assert all(sentence.endswith(".") for sentence in sentences)
        if listed.source in ("model", "fold_in"):
            sums = [sum(reason.share for reason in item) for item in reasons]
            assert sums == pytest.approx(listed.scores.tolist(), rel=2e-5, abs=2e-5)


@pytest.mark.parametrize("text", [False, True])
def test_json_is_that_of_the_objects(tmp_path, text):
    bundle, _ = shop_bundle(tmp_path, text=text, seed=3)
    engine = Engine.of_bundle(bundle)
    for listed in engine.answer(random_requests(7, bundle, 100)):
        read = decode(engine.to_json(listed), Result)
        for item in read.items:
            item.score = None if item.score is None else float(np.float32(item.score))
        note = "not known to the model: gone" if "gone" in (listed.request.basket or ()) else ""
        assert read == Result(
            listed.request.customer, listed.source, engine.version, engine.items(listed), listed.note or note
        )
