"""Once around: serve, events, export, the pipeline again, a new bundle, swapped in; then the purchases matter, and the
deleted customer is nowhere."""

import json
import shutil
import subprocess
import sys
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pandas as pd
import pytest
from conftest import ROOT
from postgres import free_port
from shop import Api, answers, post, wait_for

from gnn_ecommerce.bundle import open_bundle
from gnn_ecommerce.core import ProjectPaths, example_project, run_stage

pytestmark = pytest.mark.slow
AFTER = datetime(2020, 3, 1, tzinfo=UTC)  # the built-in shop ends before
NEWCOMER = 9_000_001


def newest(root):
    paths = ProjectPaths(root)
    return open_bundle(paths.bundles / json.loads((paths.bundles / "latest.json").read_text())["bundle"])


@contextmanager
def model_server(root, log):
    "A model server over a project's bundles; its address."
    url = f"http://127.0.0.1:{(port := free_port())}"
    options = {"folder": root / "model-checkpoints" / "bundles", "port": port, "workers": 1}
    command = [sys.executable, "-m", "gnn_ecommerce.model_server"]
    command += [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    with open(log, "w") as file:
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file)
    try:
        wait_for(lambda: answers(f"{url}/readyz") or process.poll() is not None)
        yield url
    finally:
        process.terminate()
        process.wait(30)


def event(name, event_type, product, customer, minutes):
    when = (AFTER + timedelta(minutes=minutes)).isoformat()
    values = {"event_type": event_type, "product_id": product, "customer_id": customer, "event_time": when}
    return {"event_id": name, **values}


def send(shop, *events):
    assert shop.post("/v1/events", json={"events": list(events)}).json()["state"] == "stored"


def list_of(shop, customer, k=10):
    "Source, products and model version of a list."
    body = shop.get(f"/v1/customers/{customer}/recommendations", params={"k": k}).json()
    return body["source"], [i["product_id"] for i in body["items"]], body.get("model_version")


def other_events(bundle, products):
    "Time passes: the last fifth of all events is for validation and test."
    users = [bundle.user_ids.id(i) for i in range(2, 60)]
    for turn in range(2):
        yield [
            event(
                f"f{turn}-{i}", "view" if i % 4 else "purchase", products[i % 8], users[i % 58], 2000 + turn * 1000 + i
            )
            for i in range(1000)
        ]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    "A small shop whose pipeline has run; each database gets a copy."
    root = tmp_path_factory.mktemp("trained") / "shop"
    run_stage("bundle", example_project("bundle", {"training": {"epochs": 2, "filter": "paths"}}, root))
    return root


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def chain(request, trained, tmp_path_factory):
    "The whole way: what the shop saw before, in between and after."
    folder = tmp_path_factory.mktemp("chain")
    database = request.getfixturevalue("postgres").database() if request.param == "postgres" else None
    seen, root = SimpleNamespace(root=folder / "shop"), folder / "shop"
    shutil.copytree(trained, root)
    seen.old = newest(root)
    seen.buyer, seen.gone = seen.old.user_ids.id(1), seen.old.user_ids.id(0)
    seen.products = [seen.old.item_ids.id(i) for i in range(8)]
    with model_server(root, folder / "model.log") as url:
        api = Api(folder, url, database, MODEL_TIMEOUT=5).start()
        try:
            with api.client() as shop:
                around(seen, api, shop, url)
        finally:
            api.stop()
    return seen


def around(seen, api, shop, url):
    def lists():
        return {user: list_of(shop, user) for user in (seen.buyer, seen.gone, NEWCOMER)}

    seen.before = lists()
    seen.bought = seen.before[seen.buyer][1][0]
    send(shop, event("a", "purchase", seen.bought, seen.buyer, 0))
    send(shop, *(event(f"n{i}", "purchase", p, NEWCOMER, i) for i, p in enumerate(seen.products[:5])))
    assert shop.delete(f"/v1/customers/{seen.gone}").status_code == 200
    seen.between = lists()
    for events in other_events(seen.old, seen.products):
        send(shop, *events)
    seen.exported = api.store.export_events(seen.root / "data" / "raw" / "sample" / "live.parquet")
    for stage in ("data_prep", "graph_build", "training", "refit", "bundle"):
        run_stage(stage, seen.root / "params.yaml")
    seen.new = newest(seen.root)
    seen.active = post(f"{url}/admin/activate", {"bundle": seen.new.name})["active"]
    api.store.prune_interactions(AFTER + timedelta(days=30))
    wait_for(lambda: list_of(shop, seen.buyer)[2] != seen.before[seen.buyer][2])
    seen.after, seen.long_list = lists(), list_of(shop, seen.buyer, 100)[1]


def sources(lists):
    return [source for source, _, _ in lists.values()]


def test_before_the_model_knows_the_two_old_customers(chain):
    assert sources(chain.before) == ["model", "model", "popular"]


def test_events_and_the_deletion_take_effect_at_once(chain):
    assert sources(chain.between) == ["model", "popular", "fold_in"]
    assert chain.bought not in chain.between[chain.buyer][1]


def test_all_events_are_exported(chain):
    assert chain.exported == 2006


def test_a_new_bundle_is_served(chain):
    assert chain.new.name != chain.old.name
    assert chain.active == chain.new.name


def test_the_new_model_knows_the_newcomer_and_not_the_deleted_customer(chain):
    assert sources(chain.after) == ["model", "popular", "model"]


def test_purchases_are_hidden_without_the_store(chain):
    assert chain.bought not in chain.long_list
    assert set(chain.after[NEWCOMER][1]).isdisjoint(chain.products[:5])


def test_the_new_bundle_has_the_newcomer_in_place_of_the_deleted_customer(chain):
    def has(bundle):
        return (bundle.user_ids.encode([chain.gone, NEWCOMER], unknown="mask") >= 0).tolist()

    assert [has(chain.old), has(chain.new)] == [[True, False], [False, True]]


@pytest.mark.parametrize("name", ["interim/events", "processed/train*", "processed/val", "processed/test"])
def test_the_deleted_customer_is_in_no_file(chain, name):
    frame = pd.read_parquet(next((chain.root / "data").glob(f"{name}.parquet")))
    assert chain.gone not in set(frame.user_id)


def test_older_events_of_the_deleted_customer_are_left_out(chain):
    metrics = json.loads((chain.root / "reports" / "data_prep" / "metrics.json").read_text())
    assert metrics["rows_forgotten"] > 0
