"""The command: what it prints, its exit codes, and that its lists are those of the stages."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from configparser import ConfigParser
from contextlib import closing
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pyarrow.parquet as pq
import pytest
from postgres import free_port
from shop import answers, wait_for
from typer.testing import CliRunner

from gnn_ecommerce import cli
from gnn_ecommerce.core import ProjectPaths, example_project, run_stage, write_json
from gnn_ecommerce.shop.spool import Spool


@pytest.fixture(scope="module")
def project():
    "A tiny project with recommendations."
    params = example_project("inference", {"inference": {"report": False, "k": 10}})
    run_stage("inference", params)
    return params.parent


@pytest.fixture
def run(project):
    def typed(*words):
        done = CliRunner().invoke(cli.app, [str(w) for w in words], env={"GNN_ECOMMERCE_ROOT": str(project)})
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done.exit_code, done.stdout, done.stderr

    return typed


def batch(project):
    "recommendations.parquet: user -> products in order."
    table = pq.read_table(ProjectPaths(project).recommendations / "recommendations.parquet").to_pandas()
    return {u: part.sort_values("rank") for u, part in table.groupby("user_id")}


def commands(app, before=()):
    "Every command with its path."
    for c in app.registered_commands:
        yield (*before, c.name), c.callback
    for g in app.registered_groups:
        yield from commands(g.typer_instance, (*before, g.name))


@pytest.mark.parametrize("words", [w for w, _ in commands(cli.app)], ids=" ".join)
def test_help_of_every_command_says_what_it_does(words):
    done = CliRunner().invoke(cli.app, [*words, "--help"])
    assert done.exit_code == 0 and f"Usage: root {' '.join(words)}" in done.stdout
    text = done.stdout.split("Options")[0]
    assert len(text.split()) > 8, f"{words}: expected a sentence on what it does"


def test_the_console_command_is_declared():
    config = ConfigParser(delimiters=["="])
    config.read(cli.__file__.rpartition("/gnn_ecommerce/")[0] + "/settings.ini")
    assert "gnn-ecommerce=gnn_ecommerce.cli:main" in config["DEFAULT"]["console_scripts"].split()


def test_the_command_starts_without_the_heavy_libraries():
    heavy = ("torch", "duckdb", "ibis", "matplotlib", "fastapi")
    code = f"import sys; from gnn_ecommerce.cli import main; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def process(*words, **env):
    "A command in a process of its own, outside of any project."
    env = {k: v for k, v in os.environ.items() if k != "GNN_ECOMMERCE_ROOT"} | env
    command = [sys.executable, "-m", "gnn_ecommerce.cli", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd="/", env=env)


def test_without_a_project_a_command_ends_with_1_and_no_traceback():
    done = process("recommend", "5")
    assert (done.returncode, done.stdout) == (1, "")
    assert "expected params.yaml in" in done.stderr and "Traceback" not in done.stderr


def test_wrong_arguments_end_with_2():
    done = process("recommend", "-k", "many")
    assert done.returncode == 2 and "Invalid value for '-k'" in done.stderr


def test_lists_are_those_of_stage_inference(run, project):
    lists = batch(project)
    users = list(lists)[:40]
    code, out, _ = run("recommend", *users, "-k", 10, "--json")
    report = json.loads(out)
    assert code == 0 and [r["customer"] for r in report["results"]] == users
    for r in report["results"]:
        assert [i["product_id"] for i in r["items"]] == lists[r["customer"]].product_id.tolist()
        assert [i["score"] for i in r["items"]] == pytest.approx(lists[r["customer"]].score.tolist(), abs=1e-4)
        assert (r["source"], r["model_version"]) == ("model", lists[r["customer"]].model_version.iloc[0])


def test_filters_hold_and_rank_as_without(run, project):
    user = list(batch(project))[0]
    everything = json.loads(run("recommend", user, "-k", 1000, "--json")[1])["results"][0]["items"]
    cheap = json.loads(run("recommend", user, "-k", 1000, "--max-price", 5, "--json")[1])["results"][0]["items"]
    assert [i["product_id"] for i in cheap] == [i["product_id"] for i in everything if i.get("price", 9e9) <= 5]
    assert run("recommend", user, "--brand", "no such brand")[1].endswith("nothing is left to recommend\n")


def test_a_category_alone_gives_what_is_popular_in_it(run, project):
    category = cli.open_project(project).graph.items.category_code.dropna().iloc[0]
    result = json.loads(run("recommend", "--category", category, "--json")[1])["results"][0]
    assert result["source"] == "popular_in_category"
    assert all(item["category"].startswith(category) for item in result["items"])


@pytest.fixture(scope="module")
def trained(project):
    return cli.open_project(project)


def test_a_basket_with_content_prefers_what_is_like_it(run, trained):
    from gnn_ecommerce.filter.graph_filter import basket_matrix

    ids = trained.graph.item_ids
    one = int(ids.ids[3])
    plain, blended = (
        json.loads(run("recommend", "-b", one, "-k", 10, "--content-weight", weight, "--json")[1])["results"][0]
        for weight in (0, 1)
    )
    basket = basket_matrix([ids.encode([one])], trained.graph.n_items)
    like = trained.engine.catalogue.content_scores(basket)[0]

    def mean(result):
        return like[ids.encode([item["product_id"] for item in result["items"]])].mean()

    assert [plain["source"], blended["source"]] == ["fold_in", "content"]
    assert mean(blended) > mean(plain)


@pytest.fixture(scope="module")
def bundle(project):
    "A bundle of the project: its folder."
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GNN_ECOMMERCE_ROOT", str(project))
        done = CliRunner().invoke(cli.app, ["bundle", "build", "--json"])
    assert done.exit_code == 0, done.stderr
    return Path(json.loads(done.stdout)["path"])


@pytest.fixture(scope="module")
def served(bundle):
    "The engine behind a model server of the bundle."
    from gnn_ecommerce.bundle import open_bundle
    from gnn_ecommerce.serving.engine import Engine

    return Engine.of_bundle(open_bundle(bundle))


@pytest.mark.parametrize(
    ("customer", "basket", "weight"), [(1, 0, 0), (0, 1, 0), (1, 1, 0), (0, 1, 0.4), (1, 1, 0.4), (1, 1, 1), (0, 0, 0)]
)
def test_lists_are_those_of_the_server(run, project, served, customer, basket, weight):
    from gnn_ecommerce.serving.protocol import BasketItem, Request

    user, (one, other) = list(batch(project))[2], served.bundle.item_ids.ids[[3, 8]].tolist()
    words = ([user] if customer else []) + (["-b", f"{one}:view,{other}:purchase"] if basket else [])
    out = run("recommend", *words, "-k", 7, "--content-weight", weight, "--json")[1]
    result = json.loads(out)["results"][0]
    items = [BasketItem(one, "view"), BasketItem(other, "purchase")] if basket else []
    request = Request(customer=user if customer else None, basket=items, k=7, content_weight=float(weight))
    (listed,) = served.answer([request])
    assert result["source"] == listed.source
    assert [i["product_id"] for i in result["items"]] == [served.bundle.item_ids.id(i) for i in listed.items.tolist()]


def test_the_parts_of_a_project_are_those_of_its_bundle(trained, served):
    "What `project_parts` puts together without a bundle."
    parts, same = trained.engine.parts, served.parts
    assert (parts.version, parts.n_items) == (same.version, same.n_items)
    assert np.array_equal(parts.popularity, same.popularity)
    assert all(np.array_equal(a, b) for a, b in zip(parts.hidden, same.hidden, strict=True))


def test_what_is_in_the_basket_is_not_recommended(run, trained):
    ids = trained.graph.item_ids.ids[:2]
    items = json.loads(run("recommend", "-b", f"{ids[0]},{ids[1]}", "-k", 100, "--json")[1])["results"][0]["items"]
    assert not {item["product_id"] for item in items} & set(ids)


def test_an_id_that_is_no_integer_is_named(run):
    for text in ("--5", "\u00b2", "5.0"):
        code, _, err = run("recommend", "--", text)
        assert code == 1 and f"expected integers as in the events, found {text!r}" in err


def test_reasons_add_up(run, project):
    user = list(batch(project))[1]
    for words in ((user,), ("-b", ",".join(map(str, cli.open_project(project).graph.item_ids.ids[:4])))):
        code, out, _ = run("explain", *words, "-k", 5, "--reasons", 2, "--json")
        assert code == 0
        for item in json.loads(out)["items"]:
            assert (
                sum(r["share"] for r in item["reasons"]) == pytest.approx(item["score"], abs=1e-4) and item["sentence"]
            )


def test_an_unknown_customer_gets_what_is_popular(run):
    assert json.loads(run("recommend", 1, "--json")[1])["results"][0]["source"] == "popular"


def test_what_is_popular_has_no_reasons(run):
    code, out, err = run("explain", 1)
    assert (code, out) == (1, "") and err.startswith("gnn-ecommerce explain: customer: expected one of the")


def test_an_unknown_product_is_named(run):
    code, out, err = run("recommend", "-b", "1")
    assert (code, out) == (1, "") and "found 1 unknown, such as 1" in err


def store(tmp_path, clicked=30):
    "A store with 100 lists of an hour ago, some of them clicked."

    from gnn_ecommerce.shop.stores import Event, Served, Store

    url, at = f"sqlite:///{tmp_path}/shop.db", datetime.now(UTC) - timedelta(hours=1)
    s = Store(url)
    s.add_served([Served(f"r{i}", "customer", "model", "v1", [i % 9, 99], f"u{i}", at, 0.01) for i in range(100)])
    s.add_events(
        [Event(f"e{i}", "view", i % 9, f"u{i}", at + timedelta(minutes=1), price=5.0) for i in range(clicked)]
        + [Event("p", "purchase", 99, "u0", at + timedelta(minutes=2), price=5.0)]
    )
    s.close()
    return url


def test_monitor_says_what_is_in_the_store(run, tmp_path):
    url = store(tmp_path)
    code, out, err = run("monitor", "-d", url, "--json")
    report = json.loads(out)
    assert code == 0 and report["findings"] == [] and (report["lists"], report["events"]) == (100, 31), err
    rate = report["rates"][0]
    assert (rate["model_version"], rate["clicked"], rate["bought"], rate["click_rate"]) == ("v1", 30, 1, 0.3)
    code, out, _ = run("monitor", "-d", url, "--days", 0.01)
    assert code == 3 and "No list was given out." in out


def test_a_limit_of_the_alerts_can_be_set(run, tmp_path):
    url = store(tmp_path)
    code, out, _ = run("monitor", "-d", url, "--limit", "p95_ms=0.001")
    assert code == 3 and "(limit 0 ms)" in out
    code, _, err = run("monitor", "-d", url, "--limit", "p95=1")
    assert code == 2 and "one of fallback, empty, p95_ms" in " ".join(err.split()), err


def live(project, tmp_path, factor):
    "A store with events of the training, of now, at another price; nothing else of the project is needed."

    from gnn_ecommerce.shop.stores import Event, Store

    e = pq.read_table(ProjectPaths(project).processed / "train_events.parquet").to_pandas().tail(2000)
    url, shift = (
        f"sqlite:///{tmp_path}/live{factor}.db",
        timedelta(days=(datetime.now(UTC) - e.event_time.max()).days + 1),
    )
    s = Store(url)
    s.add_events(
        [
            Event(
                f"e{i}",
                r.event_type,
                r.product_id,
                r.user_id,
                (r.event_time + shift - timedelta(days=1)).to_pydatetime(),
                price=None if r.price != r.price else r.price * factor,
            )
            for i, r in enumerate(e.itertuples())
        ]
    )
    s.close()
    return url


@pytest.fixture
def alone(bundle, tmp_path):
    "A bundle far from its project."
    return Path(shutil.copytree(bundle, tmp_path / "elsewhere" / bundle.name))


@pytest.mark.parametrize(("factor", "level"), [(1, "ok"), (3, "drift")])
def test_drift_from_a_bundle_and_a_store_alone(run, project, alone, tmp_path, factor, level):
    url = live(project, tmp_path, factor)
    code, out, err = run("monitor", "-d", url, "--days", 3650, "--bundle", alone, "--json")
    report = json.loads(out)
    assert {row["variable"]: row["level"] for row in report["drift"]}["price"] == level, (err, report["drift"])
    assert code == 3  # no list was given out: that is a finding
    assert ("price of the events has drifted" in str(report["findings"])) == (level == "drift")
    assert {"training: events since", "training: age of its data"} <= {row["what"] for row in report["backlog"]}


def test_drift_is_the_same_however_the_training_is_named(run, project, bundle, tmp_path):
    url = live(project, tmp_path, 3)

    def psi(*words):
        rows = json.loads(run("monitor", "-d", url, "--days", 3650, *words, "--json")[1])["drift"]
        return {row["variable"]: row["psi"] for row in rows}

    first = psi("--bundle", bundle)
    for words in (("--bundle", "active"), ("--bundle", "latest"), ("-C", project)):
        assert psi(*words) == pytest.approx(first, abs=1e-3), words


def test_a_bundle_that_is_not_there_is_named(run, tmp_path):
    code, out, err = run("monitor", "-d", store(tmp_path), "--bundle", tmp_path / "none")
    assert (code, out) == (1, "") and "expected a folder with a manifest.json, found none in" in err


def test_a_bundle_without_a_profile_is_no_error(run, bundle, tmp_path):
    from gnn_ecommerce.bundle import _name

    manifest = json.loads((bundle / "manifest.json").read_text())
    del manifest["event_profile"]
    old = Path(shutil.copytree(bundle, tmp_path / _name(manifest)))
    (old / "manifest.json").chmod(0o644)
    (old / "manifest.json").write_text(json.dumps(manifest | {"bundle": old.name}))
    code, out, err = run("monitor", "-d", store(tmp_path), "--bundle", old, "--json")
    report = json.loads(out)
    assert code == 0 and report["drift"] == [] and report["coverage"][0]["coverage"] > 0, err


def test_monitor_answers_prometheus_and_follows_the_pointer(project, bundle, tmp_path):
    pointer = ProjectPaths(project).serving / "active.json"
    words = ["monitor", "-d", live(project, tmp_path, 3), "--days", "3650", "--bundle", "active", "-C", str(project)]
    server = subprocess.Popen(
        [sys.executable, "-m", "gnn_ecommerce.cli", *words, "--listen", "0", "--every", "0.1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        url = re.search(r"http://127\.0\.0\.1:\d+/metrics", server.stdout.readline())[0]

        def look():
            text = urllib.request.urlopen(url, timeout=30).read().decode()
            return {name: float(x) for name, x in re.findall(r"^gnn_ecommerce_monitor_(\S+) (\S+)$", text, re.M)}

        metrics = look()
        assert metrics["up"] == 1 and metrics['events{event_type="view"}'] > 100
        assert (metrics['drift{variable="price"}'], metrics['drift{variable="brand"}']) == (1, 0)
        pointer.parent.mkdir(parents=True, exist_ok=True)
        write_json({"active": "0123"}, pointer)
        wait_for(lambda: look()["up"] == 0)
        assert look()['drift{variable="price"}'] == 1  # there is no such bundle: the last metrics stay
    finally:
        pointer.unlink(missing_ok=True)
        server.send_signal(signal.SIGTERM)
        _, err = server.communicate(timeout=30)
    assert server.returncode == 0 and "no '0123'" in err, err


def test_events_are_exported(run, tmp_path):
    code, out, _ = run("events", "export", tmp_path / "out.parquet", "-d", store(tmp_path, 10), "--json")
    assert (code, json.loads(out)["events"]) == (0, 11)
    assert pq.read_metadata(tmp_path / "out.parquet").num_rows == 11


def test_a_time_that_is_none_is_a_wrong_argument(run, tmp_path):
    assert run("events", "export", tmp_path / "x", "-d", store(tmp_path), "--since", "yesterday")[0] == 2


def test_a_key_is_shown_once(run, tmp_path):
    url = store(tmp_path)
    made = json.loads(run("keys", "create", "shop", "-s", "recommend", "-s", "events", "-d", url, "--json")[1])
    listed = run("keys", "list", "-d", url, "--json")[1]
    assert made["key"].startswith("gk_") and [key["key_id"] for key in json.loads(listed)] == [made["key_id"]]
    assert made["key"].split("_", 2)[2] not in listed


def test_a_key_is_revoked_once(run, tmp_path):
    url = store(tmp_path)
    made = json.loads(run("keys", "create", "shop", "-s", "recommend", "-d", url, "--json")[1])
    assert [run("keys", "revoke", made["key_id"], "-d", url)[0] for _ in range(2)] == [0, 1]
    assert run("keys", "list", "-d", url)[1].rstrip().endswith("revoked")


def test_a_scope_that_does_not_exist_is_refused(run, tmp_path):
    assert run("keys", "create", "shop", "-s", "everything", "-d", store(tmp_path))[0] == 1


def test_a_database_that_is_none_is_refused(run):
    assert run("keys", "list", "-d", "mysql://x")[0] == 1


def test_bundles_are_listed(run, bundle):
    assert [row["bundle"] for row in json.loads(run("bundle", "list", "--json")[1])] == [bundle.name]


def test_a_bundle_is_known_by_its_hash_its_folder_or_as_the_latest(run, bundle):
    for name in (bundle.name, "latest", bundle):
        assert json.loads(run("bundle", "verify", name, "--json")[1])["whole"]
    assert run("bundle", "verify", "../etc")[0] == 1


def test_a_bundle_does_not_differ_from_itself(run, bundle):
    assert json.loads(run("bundle", "diff", bundle.name, "--json")[1])["lists"]["same"] == 1


def test_a_damaged_bundle_is_not_whole(run, bundle, tmp_path):
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    data = bytearray((copy / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (copy / "model.safetensors").chmod(0o644)
    (copy / "model.safetensors").write_bytes(data)
    code, out, err = run("bundle", "verify", copy)
    assert (code, out) == (1, "") and "it is damaged" in err


@pytest.fixture
def admin(monkeypatch):
    "A server that activates any bundle but 'bad': its address, and what it was asked."
    asked = []

    class Server(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append((self.path, self.headers["Authorization"], body))
            refused = body["bundle"] == "bad"
            answer = {"active": "new", "previous": "old", "canary": None, "share": 0}
            text = json.dumps({"title": "Invalid", "detail": "it is damaged"} if refused else answer).encode()
            self.send_response(422 if refused else 200)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Server)
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("GNN_ECOMMERCE_ADMIN_TOKEN", "t")
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def test_activate_asks_the_server(run, admin):
    url, asked = admin
    code, out, _ = run("bundle", "activate", "abc", "--share", 0.1, "--url", url)
    assert (code, out) == (0, "serving new; before: old\n")
    assert asked == [("/admin/activate", "Bearer t", {"bundle": "abc", "share": 0.1})]


def test_a_server_that_refuses_says_why(run, admin):
    code, out, err = run("bundle", "activate", "bad", "--url", admin[0])
    assert (code, out) == (1, "") and "found status 422: it is damaged" in err


def test_a_server_that_does_not_run_is_named(run):
    code, _, err = run("bundle", "activate", "abc", "--url", f"http://127.0.0.1:{free_port()}")
    assert code == 1 and "expected a model server at" in err


@pytest.fixture
def pointer(project):
    "The file that servers follow; there is none before and after."
    path = ProjectPaths(project).serving / "active.json"
    path.unlink(missing_ok=True)
    yield path
    path.unlink(missing_ok=True)


def test_the_pointer_is_written_without_a_server(run, bundle, pointer):
    assert run("bundle", "activate", bundle.name, "--offline")[0] == 0
    assert json.loads(pointer.read_text())["active"] == bundle.name


def test_a_rollback_serves_what_was_served_before(run, bundle, pointer):
    pointer.parent.mkdir(parents=True, exist_ok=True)
    write_json({"active": "0123", "previous": bundle.name}, pointer)
    assert json.loads(run("bundle", "activate", "previous", "--offline", "--json")[1]) == {
        "active": bundle.name,
        "canary": None,
        "share": 0.0,
        "previous": "0123",
    }


def test_what_cannot_be_served_is_not_pointed_at(run, bundle, pointer):
    for name, *more in (
        (bundle.name, "--share", 0.5),  # nothing is served beside the canary
        ("previous",),  # nothing was served before
        ("0123",),  # there is no such bundle
        (bundle,),  # a folder: servers follow names
    ):
        assert run("bundle", "activate", name, "--offline", *more)[0] == 1, name
    assert not pointer.exists()


def test_a_served_bundle_answers_is_swapped_by_the_command_and_stops_when_told(run, project, bundle):
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    words = ["serve", "model", "--model-port", str(port), "--bundle", bundle.name, "--workers", "1", "-C", str(project)]
    server = subprocess.Popen(
        [sys.executable, "-m", "gnn_ecommerce.cli", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for(lambda: server.poll() is not None or answers(f"{url}/readyz"), 180)
        assert server.poll() is None, server.stderr.read()
        code, out, err = run("bundle", "activate", bundle.name, "--url", url, "--json")
        assert code == 0 and json.loads(out)["active"] == bundle.name, err
        assert run("bundle", "activate", "0123456789abcdef", "--url", url)[0] == 1
    finally:
        server.send_signal(signal.SIGTERM)
        server.communicate(timeout=30)
    assert server.returncode == 0


@pytest.mark.slow
def test_serve_starts_monitoring_where_a_port_is_set(project, bundle, tmp_path):
    ports = {name: str(free_port()) for name in ("PORT", "MODEL_PORT", "MONITOR_PORT")}
    env = {k: v for k, v in os.environ.items() if k not in ("MODEL_URL", "DATABASE_URL", "SPOOL")}
    env |= ports | {"GNN_ECOMMERCE_ROOT": str(project)}
    with open(tmp_path / "log", "w+") as log:
        server = subprocess.Popen([sys.executable, "-m", "gnn_ecommerce.cli", "serve"], stdout=log, stderr=log, env=env)
        try:
            ready = "Metrics for Prometheus"
            wait_for(lambda: server.poll() is not None or ready in (tmp_path / "log").read_text(), 120)
            assert server.poll() is None, (tmp_path / "log").read_text()
            url = f"http://127.0.0.1:{ports['MONITOR_PORT']}/metrics"
            text = urllib.request.urlopen(url, timeout=30).read().decode()
            assert "gnn_ecommerce_monitor_up 1.0" in text and 'what="spool: records"} 0.0' in text
            shop, key = f"http://127.0.0.1:{ports['PORT']}", (project / "data/store/monitor-key").read_text().strip()
            assert f"Open {shop}:" in (tmp_path / "log").read_text()
            assert "Shop window" in urllib.request.urlopen(shop, timeout=30).read().decode()
            assert json.load(urllib.request.urlopen(f"{shop}/window/key", timeout=30))["key"] != key
            asked = urllib.request.Request(f"{shop}/v1/admin/monitor", headers={"Authorization": f"Bearer {key}"})
            body = json.load(urllib.request.urlopen(asked, timeout=30))
            assert "gnn_ecommerce_monitor_up 1.0" in body["monitor"] and len(body["bundles"]) == 1
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(60)
    assert server.returncode == 0, (tmp_path / "log").read_text()


def test_monitor_that_listens_writes_nothing_else(run, tmp_path):
    "--listen goes on until it is stopped: a report or JSON beside it would never come, so it is refused."
    for more in (("--html", tmp_path / "report.html"), ("--json",)):
        code, _, err = run("monitor", "--listen", 0, *more)
        assert code == 2 and "--listen alone" in " ".join(err.split()), err
    assert not (tmp_path / "report.html").exists()


def test_serve_names_a_port_that_is_none(project):
    "In a process of its own, because `serve` makes the project the folder that it runs in."
    done = process("serve", "-C", project, MONITOR_PORT="nine")
    assert done.returncode == 1
    assert "MONITOR_PORT: expected a port, 0 to 65535, found 'nine'" in done.stderr


def test_serve_beside_another_names_who_has_the_port(project, bundle):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        done = process("serve", "-C", project, PORT=port, MODEL_PORT=str(free_port()))
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert (
        f"PORT: expected a free port, found {port} used by" in done.stderr and f"process {os.getpid()}" in done.stderr
    )


def test_serve_beside_another_that_has_the_spool_says_so(project, bundle):
    with closing(Spool(project / "data" / "store" / "spool")):
        done = process("serve", "-C", project, PORT=str(free_port()), MODEL_PORT=str(free_port()))
    assert done.returncode == 1 and "expected a free spool, found another process" in done.stderr
    assert "The shop answers" not in done.stdout
