"""Once around: serve, events, export, the pipeline again, a new bundle, swapped in; then the new purchase matters, and the deleted customer is nowhere."""

import json
import shutil
import subprocess
import sys
import urllib.request
from datetime import UTC, datetime, timedelta

import pandas as pd
import pytest
from conftest import ROOT
from postgres import free_port
from shop import Api, answers, wait_for

from gnn_ecommerce.bundle import open_bundle
from gnn_ecommerce.core import ProjectPaths, example_project, run_stage

AFTER = datetime(2020, 3, 1, tzinfo=UTC)  # the built-in shop ends before


def newest(root):
    paths = ProjectPaths(root)
    return open_bundle(paths.bundles / json.loads((paths.bundles / "latest.json").read_text())["bundle"])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    "A small shop whose pipeline has run."
    folder = tmp_path_factory.mktemp("chain") / "shop"
    run_stage("bundle", example_project("bundle", {"training": {"epochs": 2}}, folder))
    return folder


@pytest.fixture
def model(trained, tmp_path):
    root = tmp_path / "shop"
    shutil.copytree(trained, root)
    port = free_port()
    with open(tmp_path / "model.log", "w") as log:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "gnn_ecommerce.model_server",
                "--folder",
                str(root / "model-checkpoints" / "bundles"),
                "--port",
                str(port),
                "--workers",
                "1",
            ],
            cwd=ROOT,
            stdout=log,
            stderr=log,
        )
    try:
        wait_for(lambda: answers(f"http://127.0.0.1:{port}/readyz") or process.poll() is not None, 200)
        yield root, f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def activate(url, name):
    request = urllib.request.Request(
        f"{url}/admin/activate", json.dumps({"bundle": name}).encode(), {"Content-Type": "application/json"}
    )
    return json.load(urllib.request.urlopen(request, timeout=60))


@pytest.mark.slow
def test_closed_chain(model, store_url, tmp_path):
    root, url = model
    old = newest(root)
    known, gone, products = old.user_ids.id(1), old.user_ids.id(0), [old.item_ids.id(i) for i in range(8)]
    api = Api(tmp_path, url, store_url, MODEL_TIMEOUT=5).start()
    try:
        with api.client() as shop:

            def list_of(customer, k=10):
                found = shop.get(f"/v1/customers/{customer}/recommendations", params={"k": k}).json()
                return found["source"], [i["product_id"] for i in found["items"]], found.get("model_version")

            def send(*events):
                assert shop.post("/v1/events", json={"events": list(events)}).json()["state"] == "stored"

            def event(i, kind, product, customer, minutes):
                return {
                    "event_id": i,
                    "event_type": kind,
                    "product_id": product,
                    "customer_id": customer,
                    "event_time": (AFTER + timedelta(minutes=minutes)).isoformat(),
                }

            # one whom the model knows buys the first product of her list; a newcomer buys five; one wants to be forgotten
            source, before, version = list_of(known)
            assert source == "model" and list_of(9_000_001)[0] == "popular" and list_of(gone)[0] == "model"
            send(
                event("a", "purchase", before[0], known, 0),
                *(event(f"n{i}", "purchase", p, 9_000_001, i) for i, p in enumerate(products[:5])),
            )
            assert before[0] not in list_of(known)[1] and list_of(9_000_001)[0] == "fold_in"
            assert shop.delete(f"/v1/customers/{gone}").status_code == 200 and list_of(gone)[0] == "popular"
            # time passes: the last fifth of all events is for validation and test
            users = [old.user_ids.id(i) for i in range(2, 60)]
            for turn in range(2):
                send(
                    *(
                        event(
                            f"f{turn}-{i}",
                            "view" if i % 4 else "purchase",
                            products[i % 8],
                            users[i % 58],
                            2000 + turn * 1000 + i,
                        )
                        for i in range(1000)
                    )
                )
            n = api.store.export_events(root / "data" / "raw" / "sample" / "live.parquet")
            assert n == 2006
            for stage in ("data_prep", "graph_build", "training", "bundle"):
                run_stage(stage, root / "params.yaml")
            new = newest(root)
            assert new.name != old.name and activate(url, new.name)["active"] == new.name
            # the purchases are in the model now: they are hidden without the store, and they matter
            pruned = api.store.prune_interactions(AFTER + timedelta(days=30))
            wait_for(lambda: list_of(known)[2] != version)
            source, after, _ = list_of(known)
            assert source == "model" and before[0] not in list_of(known, 100)[1]
            source, hers, _ = list_of(9_000_001)
            assert source == "model" and not set(hers) & set(products[:5])
            # the deleted customer is nowhere: not in the events, not in the new bundle, not in a list
            assert list_of(gone)[0] == "popular"
            for name in (
                "data/interim/events.parquet",
                "data/processed/train_events.parquet",
                "data/processed/val.parquet",
                "data/processed/test.parquet",
            ):
                frame = pd.read_parquet(next(root.glob(name.replace("train_events", "train*"))))
                assert gone not in set(frame.user_id), name
            assert (
                new.user_ids.encode([gone], unknown="mask")[0] < 0
                and old.user_ids.encode([gone], unknown="mask")[0] >= 0
            )
            assert new.user_ids.encode([9_000_001], unknown="mask")[0] >= 0
            metrics = json.loads((root / "reports" / "data_prep" / "metrics.json").read_text())
            print(
                f"\n{store_url.split(':')[0]}: {n} events exported, {metrics['rows_forgotten']} older rows of the deleted customer left out; {pruned} interactions pruned; bundle {old.name} -> {new.name}; {len(set(before) - set(after))} of 10 products of the buyer's list are others"
            )
    finally:
        api.stop()
