"""Monitoring of a shop whose answers are known: clicks, purchases, drift, backlog, the report."""

import json
import re
from datetime import timedelta

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

from gnn_ecommerce import monitoring as m
from gnn_ecommerce.core import DataError, ProjectPaths, example_project, read_table
from gnn_ecommerce.data.event_profile import Profile

START = pd.Timestamp("2024-03-01", tz="UTC")


def lists(n, clicked, bought, version="v1", prefix="r"):
    "n lists of one product each; the first `clicked` are clicked an hour later, the first `bought` of those bought."
    served = pd.DataFrame(
        dict(
            recommendation_id=[f"{prefix}{i}" for i in range(n)],
            served_at=START + pd.to_timedelta(np.arange(n), "min"),
            user_id=[f"{prefix}u{i}" for i in range(n)],
            route="customer",
            source="model",
            model_version=version,
            products=[json.dumps([f"p{i % 7}", "q"]) for i in range(n)],
            seconds=0.01,
        )
    )
    rows = [
        (served.served_at[i] + timedelta(hours=1, minutes=kind == "purchase"), kind, served.user_id[i], f"p{i % 7}")
        for kind, k in (("view", clicked), ("purchase", bought))
        for i in range(k)
    ]
    return m.typed_events(
        pd.DataFrame(rows, columns=["event_time", "event_type", "user_id", "product_id"])
    ), m.typed_served(served)


def test_rates_are_those_that_were_put_in():
    parts = [lists(200, 50, 10, "v1", "a"), lists(100, 10, 0, "v2", "b")]
    events, served = (pd.concat(p, ignore_index=True) for p in zip(*parts))
    found = m.rates(events, served)
    assert found.clicked.to_dict() == {"v1": 50, "v2": 10} and found.bought.to_dict() == {"v1": 10, "v2": 0}
    assert found.click_rate.to_dict() == {"v1": 0.25, "v2": 0.1}
    low, high = m.wilson(50, 200)
    assert (
        (found.click_low["v1"], found.click_high["v1"]) == pytest.approx((float(low), float(high)))
        and low == pytest.approx(0.1951, abs=1e-4)
        and high == pytest.approx(0.3143, abs=1e-4)
    )
    assert found.purchase_low["v2"] == 0


@pytest.mark.parametrize(
    ("change", "clicked"),
    [
        (lambda e: e, 50),
        (lambda e: e.assign(event_time=e.event_time - timedelta(hours=2)), 0),  # before the list
        (lambda e: e.assign(event_time=e.event_time + timedelta(hours=30)), 0),  # after the window
        (lambda e: e.assign(product_id="z"), 0),  # not in the list
        (lambda e: e.assign(user_id="somebody"), 0),  # another customer
        (lambda e: e.assign(event_type="remove_from_cart"), 0),
        (lambda e: e.assign(event_type="shown"), 0),
        (lambda e: pd.concat([e, e.assign(event_time=e.event_time + timedelta(minutes=5))]), 50),  # twice is once
    ],
    ids=["as it is", "before", "too late", "other product", "other customer", "removed", "shown", "twice"],
)
def test_what_counts_as_a_click(change, clicked):
    events, served = lists(200, 50, 0)
    assert m.rates(change(events), served).clicked["v1"] == clicked


def test_a_click_belongs_to_the_latest_list_or_to_the_one_it_names():
    served = m.typed_served(
        pd.DataFrame(
            dict(
                recommendation_id=["old", "new"],
                served_at=[START, START + timedelta(hours=1)],
                user_id="ana",
                source="model",
                model_version=["v1", "v2"],
                products=[["p"], ["p"]],
            )
        )
    )
    event = pd.DataFrame(
        dict(event_time=[START + timedelta(hours=2)], event_type="view", user_id="ana", product_id="p")
    )
    assert m.attribute(m.typed_events(event), served).recommendation_id.tolist() == ["new"]
    assert m.attribute(m.typed_events(event.assign(recommendation_id="old")), served).recommendation_id.tolist() == [
        "old"
    ]
    assert m.attribute(
        m.typed_events(event.assign(event_time=START + timedelta(minutes=30))), served
    ).recommendation_id.tolist() == ["old"]


def test_open_lists_are_counted():
    events, served = lists(100, 10, 0)
    assert (
        m.rates(events, served, timedelta(minutes=10)).open["v1"] == 10
    )  # the newest thing known is the list of minute 99


def test_sources_and_coverage_by_hand():
    served = lists(10, 0, 0)[1].assign(source=["model"] * 6 + ["popular"] * 3 + ["fallback"])
    assert m.sources(served).share.to_dict() == {"model": 0.6, "popular": 0.3, "fallback": 0.1}
    found = m.coverage(served, 16).loc["v1"]
    assert (found.products, found.coverage, found.half) == (8, 0.5, 1)
    assert m.findings(served) == ["10.0% of the lists are fallbacks: the model server could not be asked (limit 5%)."]


@pytest.fixture(scope="module")
def shop():
    "A built-in shop: its prepared events, and those that came after the training as live ones."
    paths = ProjectPaths(
        example_project("graph_build", {"sample_data": {"events": 40_000, "users": None, "items": 500}}).parent
    )
    events = read_table(paths.interim / "events.parquet", "events", "data_prep")
    live = m.typed_events(events[events.split != "train"].rename_axis(None))
    return (
        paths,
        live,
        read_table(paths.processed / "products.parquet", "products", "data_prep", ["product_id", "brand"]),
    )


def test_the_same_shop_has_not_drifted_and_one_with_double_prices_has(shop):
    paths, live, products = shop
    profile = Profile.from_project(paths)
    same = m.drift(profile, m.training_like(live, products))
    assert not (same.level == "drift").any(), same
    dear = m.drift(profile, m.training_like(live.assign(price=live.price * 2), products))
    assert dear.level["price"] == "drift" and dear.psi["price"] > 0.25, dear
    assert (dear.level.drop("price") == same.level.drop("price")).all()


def test_other_changes_are_found_where_they_are(shop):
    paths, live, products = shop
    profile = Profile.from_project(paths)
    for variable, changed in {
        "event_type": live[live.event_type != "cart"],
        "brand": live.assign(product_id="new-" + live.product_id, brand="another"),
        "hour": live.assign(event_time=live.event_time.dt.floor("D") + timedelta(hours=3)),
    }.items():
        assert m.drift(profile, m.training_like(changed, products)).level[variable] == "drift", variable


def test_few_events_are_never_called_drift(shop):
    paths, live, products = shop
    profile = Profile.from_project(paths)
    for n in range(1, 30, 4):
        assert (m.drift(profile, m.training_like(live[:n], products)).level == "ok").all()


def test_a_profile_is_the_same_after_json(shop):
    profile = Profile.from_project(shop[0])
    again = Profile.from_dict(json.loads(json.dumps(profile.to_dict())))
    assert again.until == profile.until and pd.Timestamp(again.until) <= shop[1].event_time.min()
    live = m.training_like(shop[1], shop[2])
    pd.testing.assert_frame_equal(m.drift(again, live), m.drift(profile, live))


def test_tables_without_rows_are_no_error():
    events, served = lists(0, 0, 0)
    assert (
        len(m.traffic(events, served))
        == len(m.sources(served))
        == len(m.rates(events, served))
        == len(m.coverage(served))
        == len(m.backlog(events))
        == 0
    )
    with pytest.raises(DataError, match="expected events, found none"):
        Profile.from_events(events)


@pytest.mark.slow
def test_the_report_is_one_html_file_with_plots_and_without_code(tmp_path):
    out = m.write_report(tmp_path / "report.html", {"days": 5}, ROOT / "nbs" / "guides" / "monitoring.ipynb")
    text = out.read_text(encoding="utf8")
    assert text.count("data:image/png;base64") >= 5 and "import pandas" not in text
    assert "Clicks and purchases" in text and "fallback" in text
    assert re.search(r"<h2[^>]*>Look here: \d+\.\d% of the lists are fallbacks", text)
    assert "https:" not in text and "gnn-ecommerce monitor" not in text
