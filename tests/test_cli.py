"""The command: what it prints, its exit codes, and that its lists are those of the stages."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from gnn_ecommerce import cli
from gnn_ecommerce.core import ProjectPaths, example_project, run_stage


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


def test_the_console_command_is_declared_and_starts_without_the_heavy_libraries():
    from configparser import ConfigParser

    config = ConfigParser(delimiters=["="])
    config.read(cli.__file__.rpartition("/gnn_ecommerce/")[0] + "/settings.ini")
    assert "gnn-ecommerce=gnn_ecommerce.cli:main" in config["DEFAULT"]["console_scripts"].split()
    code = "import sys; from gnn_ecommerce.cli import main; print([m for m in ('torch', 'duckdb', 'ibis', 'matplotlib', 'fastapi') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ})
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_exit_codes_of_the_process(tmp_path):
    def process(*words):
        return subprocess.run(
            [sys.executable, "-m", "gnn_ecommerce.cli", *words],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={k: v for k, v in os.environ.items() if k != "GNN_ECOMMERCE_ROOT"},
        )

    wrong, usage, version = process("recommend", "5"), process("recommend", "-k", "many"), process("--version")
    assert (
        (wrong.returncode, wrong.stdout) == (1, "")
        and "expected params.yaml in" in wrong.stderr
        and "Traceback" not in wrong.stderr
    )
    assert usage.returncode == 2 and "Invalid value for '-k'" in usage.stderr
    assert version.returncode == 0 and version.stdout.strip()


def test_lists_are_those_of_stage_inference(run, project):
    lists = batch(project)
    users = list(lists)[:40]
    code, out, _ = run("recommend", *users, "-k", 10, "--json")
    found = json.loads(out)
    assert code == 0 and [r["customer"] for r in found["results"]] == users
    for r in found["results"]:
        assert [i["product_id"] for i in r["items"]] == lists[r["customer"]].product_id.tolist()
        assert [i["score"] for i in r["items"]] == pytest.approx(lists[r["customer"]].score.tolist(), abs=1e-4)
        assert (r["source"], r["model_version"]) == ("model", lists[r["customer"]].model_version.iloc[0])


def test_filters_hold_and_rank_as_without(run, project):
    user = list(batch(project))[0]
    everything = json.loads(run("recommend", user, "-k", 1000, "--json")[1])["results"][0]["items"]
    cheap = json.loads(run("recommend", user, "-k", 1000, "--max-price", 5, "--json")[1])["results"][0]["items"]
    assert [i["product_id"] for i in cheap] == [i["product_id"] for i in everything if i.get("price", 9e9) <= 5]
    assert run("recommend", user, "--brand", "no such brand")[1].endswith("nothing is left to recommend\n")


def test_a_basket_with_content_prefers_what_is_like_it(run, project):
    shop = cli.open_project(project)
    one = int(shop.graph.item_ids.ids[3])
    plain, blended = (
        json.loads(run("recommend", "-b", one, "-k", 10, "--content-weight", w, "--json")[1])["results"][0]
        for w in (0, 1)
    )
    like = shop.catalogue.content_scores(_row(shop, one))[0]

    def mean(r):
        return like[shop.graph.item_ids.encode([i["product_id"] for i in r["items"]])].mean()

    assert [plain["source"], blended["source"]] == ["fold_in", "content"] and mean(blended) > mean(plain)


def test_lists_are_those_of_the_server(run, project):
    "Customers, baskets, both, with and without content: what the engine behind the model server says of the same bundle."
    from gnn_ecommerce.bundle import bundle_path, open_bundle
    from gnn_ecommerce.serving.engine import Engine
    from gnn_ecommerce.serving.protocol import BasketItem, Request

    paths = ProjectPaths(project)
    name = json.loads(run("bundle", "build", "--json")[1])["bundle"]
    engine = Engine.of_bundle(open_bundle(bundle_path(paths.bundles, name)))
    user, (one, other) = list(batch(project))[2], engine.bundle.item_ids.ids[[3, 8]].tolist()
    basket, typed = [BasketItem(one, "view"), BasketItem(other, "purchase")], f"{one}:view,{other}:purchase"
    for customer, in_it, weight in (
        (user, False, 0),
        (None, True, 0),
        (user, True, 0),
        (None, True, 0.4),
        (user, True, 0.4),
        (user, True, 1),
        (None, False, 0),
    ):
        words = [
            *([user] if customer is not None else []),
            *(["-b", typed] if in_it else []),
            "-k",
            7,
            "--content-weight",
            weight,
            "--json",
        ]
        found = json.loads(run("recommend", *words)[1])["results"][0]
        (listed,) = engine.answer(
            [Request(customer=customer, basket=basket if in_it else [], k=7, content_weight=float(weight))]
        )
        assert (found["source"], [i["product_id"] for i in found["items"]]) == (
            listed.source,
            [engine.bundle.item_ids.id(i) for i in listed.items.tolist()],
        ), words
        assert not in_it or not {one, other} & {i["product_id"] for i in found["items"]}


def test_an_id_that_is_no_integer_is_named(run):
    for text in ("--5", "\u00b2", "5.0"):
        code, _, err = run("recommend", "--", text)
        assert code == 1 and f"expected integers as in the events, found {text!r}" in err


def _row(shop, product):
    "A basket of one product."
    from gnn_ecommerce.filter.graph_filter import basket_matrix

    return basket_matrix([shop.graph.item_ids.encode([product])], shop.graph.n_items)


def test_reasons_add_up(run, project):
    user = list(batch(project))[1]
    for words in ((user,), ("-b", ",".join(map(str, cli.open_project(project).graph.item_ids.ids[:4])))):
        code, out, _ = run("explain", *words, "-k", 5, "--reasons", 2, "--json")
        assert code == 0
        for item in json.loads(out)["items"]:
            assert (
                sum(r["share"] for r in item["reasons"]) == pytest.approx(item["score"], abs=1e-4) and item["sentence"]
            )


def test_unknown_customer_and_product(run):
    assert json.loads(run("recommend", 1, "--json")[1])["results"][0]["source"] == "popular"
    code, out, err = run("explain", 1)
    assert (code, out) == (1, "") and err.startswith("gnn-ecommerce explain: customer: expected one of the")
    code, out, err = run("recommend", "-b", "1")
    assert (code, out) == (1, "") and "found 1 unknown, such as 1" in err


def store(tmp_path, clicked=30):
    "A store with 100 lists of an hour ago, some of them clicked."
    from datetime import UTC, datetime, timedelta

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
    found = json.loads(out)
    assert code == 0 and found["findings"] == [] and (found["lists"], found["events"]) == (100, 31), err
    rate = found["rates"][0]
    assert (rate["model_version"], rate["clicked"], rate["bought"], rate["click_rate"]) == ("v1", 30, 1, 0.3)
    code, out, _ = run("monitor", "-d", url, "--days", 0.01)
    assert code == 3 and "No list was given out." in out


def live(project, tmp_path, factor):
    "A store with events of the training, of now, at another price; nothing else of the project is needed."
    from datetime import UTC, datetime, timedelta

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


def test_drift_from_a_bundle_and_a_store_alone(run, project, tmp_path):
    made = json.loads(run("bundle", "build", "--json")[1])
    alone = tmp_path / "elsewhere" / made["bundle"]
    shutil.copytree(made["path"], alone)
    for factor, level in ((1, "ok"), (3, "drift")):
        url = live(project, tmp_path, factor)
        code, out, err = run("monitor", "-d", url, "--days", 3650, "--bundle", alone, "--json")
        found = json.loads(out)
        assert {r["variable"]: r["level"] for r in found["drift"]}["price"] == level, (err, found["drift"])
        assert code == 3 and ("price of the events has drifted" in str(found["findings"])) == (
            level == "drift"
        )  # no list was given out: that is a finding
        assert {"training: events since", "training: age of its data"} <= {r["what"] for r in found["backlog"]}
        for other in (("--bundle", "active"), ("--bundle", "latest"), ("-C", project)):
            same = json.loads(run("monitor", "-d", url, "--days", 3650, *other, "--json")[1])["drift"]
            assert [(r["variable"], r["psi"]) for r in same] == [
                (r["variable"], pytest.approx(r["psi"], abs=1e-3)) for r in found["drift"]
            ], other
    code, out, err = run("monitor", "-d", url, "--bundle", tmp_path / "none")
    assert (code, out) == (1, "") and "expected a bundle in none" in err


def test_a_bundle_without_a_profile_is_no_error(run, project, tmp_path):
    from gnn_ecommerce.bundle import _name, open_bundle

    made = json.loads(run("bundle", "build", "--json")[1])
    manifest = json.loads((Path(made["path"]) / "manifest.json").read_text())
    assert (
        manifest.pop("event_profile")["events"]
        == pq.read_metadata(ProjectPaths(project).processed / "train_events.parquet").num_rows
    )
    old = tmp_path / _name(manifest)
    shutil.copytree(made["path"], old)
    (old / "manifest.json").chmod(0o644)
    (old / "manifest.json").write_text(json.dumps(manifest | {"bundle": old.name}))
    assert open_bundle(old).name == old.name
    code, out, err = run("monitor", "-d", store(tmp_path), "--bundle", old, "--json")
    found = json.loads(out)
    assert code == 0 and found["drift"] == [] and found["coverage"][0]["coverage"] > 0, err


def test_monitor_answers_prometheus_and_follows_the_pointer(run, project, tmp_path):
    import re
    import signal
    import urllib.request

    from gnn_ecommerce.core import write_json

    run("bundle", "build")
    pointer = ProjectPaths(project).serving / "active.json"
    server = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "gnn_ecommerce.cli",
            "monitor",
            "-d",
            live(project, tmp_path, 3),
            "--days",
            "3650",
            "--bundle",
            "active",
            "-C",
            str(project),
            "--listen",
            "0",
            "--every",
            "0.1",
        ],
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

        found = look()
        assert (
            found["up"] == 1
            and found['drift{variable="price"}'] == 1
            and found['drift{variable="brand"}'] == 0
            and found['events{event_type="view"}'] > 100
        )
        pointer.parent.mkdir(parents=True, exist_ok=True)
        write_json({"active": "0123"}, pointer)
        time.sleep(0.2)
        found = look()
        assert (
            found["up"] == 0 and found['drift{variable="price"}'] == 1
        )  # the pointed bundle is not there: said, and the last figures stay
    finally:
        pointer.unlink(missing_ok=True)
        server.send_signal(signal.SIGTERM)
        _, err = server.communicate(timeout=30)
    assert server.returncode == 0 and "no '0123'" in err, err


def test_events_export_and_keys(run, tmp_path):
    url = store(tmp_path, 10)
    code, out, _ = run("events", "export", tmp_path / "out.parquet", "-d", url, "--json")
    assert code == 0 and json.loads(out)["events"] == 11 == pq.read_table(tmp_path / "out.parquet").num_rows
    made = json.loads(run("keys", "create", "shop", "-s", "recommend", "-s", "events", "-d", url, "--json")[1])
    listed = json.loads(run("keys", "list", "-d", url, "--json")[1])
    assert (
        made["key"].startswith("gk_")
        and [k["key_id"] for k in listed] == [made["key_id"]]
        and made["key"].split("_", 2)[2] not in json.dumps(listed)
    )
    assert [run("keys", "revoke", made["key_id"], "-d", url)[0] for _ in range(2)] == [0, 1]
    assert run("keys", "create", "shop", "-s", "everything", "-d", url)[0] == 1
    assert run("events", "export", tmp_path / "x", "-d", url, "--since", "yesterday")[0] == 2
    assert run("keys", "list", "-d", "mysql://x")[0] == 1


def test_bundles_by_name(run, project, tmp_path):
    made = json.loads(run("bundle", "build", "--json")[1])
    assert [b["bundle"] for b in json.loads(run("bundle", "list", "--json")[1])] == [made["bundle"]]
    for name in (made["bundle"], "latest", made["path"]):
        assert json.loads(run("bundle", "verify", name, "--json")[1])["whole"]
    assert json.loads(run("bundle", "diff", made["bundle"], "--json")[1])["lists"]["same"] == 1
    copy = tmp_path / "copy"
    shutil.copytree(made["path"], copy)
    data = bytearray((copy / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (copy / "model.safetensors").chmod(0o644)
    (copy / "model.safetensors").write_bytes(data)
    code, out, err = run("bundle", "verify", copy)
    assert (code, out) == (1, "") and "it is damaged" in err
    assert run("bundle", "verify", "../etc")[0] == 1


def test_activate_asks_the_server_and_says_why_it_would_not(run, project, monkeypatch):
    from http.server import BaseHTTPRequestHandler, HTTPServer
    from threading import Thread

    seen = []

    class Server(BaseHTTPRequestHandler):
        def do_POST(self):
            seen.append(
                (
                    self.path,
                    self.headers["Authorization"],
                    json.loads(self.rfile.read(int(self.headers["Content-Length"]))),
                )
            )
            ok = seen[-1][2]["bundle"] != "bad"
            body = json.dumps(
                {"active": "new", "previous": "old", "canary": None, "share": 0}
                if ok
                else {"title": "Invalid", "detail": "it is damaged"}
            ).encode()
            self.send_response(200 if ok else 422)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Server)
    Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("GNN_ECOMMERCE_ADMIN_TOKEN", "t")
    try:
        assert run("bundle", "activate", "abc", "--share", 0.1, "--url", url)[:2] == (0, "serving new; before: old\n")
        code, out, err = run("bundle", "activate", "bad", "--url", url)
    finally:
        server.shutdown()
        server.server_close()
    assert (code, out) == (1, "") and "found status 422: it is damaged" in err
    assert seen[0] == ("/admin/activate", "Bearer t", {"bundle": "abc", "share": 0.1})
    code, _, err = run("bundle", "activate", "abc", "--url", url)
    assert code == 1 and "expected a model server at" in err


def test_the_pointer_can_be_written_and_rolled_back_without_a_server(run, project):
    from gnn_ecommerce.bundle import read_pointer
    from gnn_ecommerce.core import write_json

    name = json.loads(run("bundle", "build", "--json")[1])["bundle"]
    pointer = ProjectPaths(project).serving / "active.json"
    assert run("bundle", "activate", name, "--offline", "--share", 0.5)[0] == 1  # nothing is served beside it
    assert run("bundle", "activate", name, "--offline")[0] == 0 and read_pointer(pointer)["active"] == name
    assert run("bundle", "activate", "previous", "--offline")[0] == 1
    write_json({"active": "0123", "previous": name}, pointer)
    assert json.loads(run("bundle", "activate", "previous", "--offline", "--json")[1]) == {
        "active": name,
        "canary": None,
        "share": 0.0,
        "previous": "0123",
    }
    assert run("bundle", "activate", "0123", "--offline")[0] == 1  # there is no such bundle
    assert (
        run("bundle", "activate", ProjectPaths(project).bundles / name, "--offline")[0] == 1
    )  # a name is wanted: servers follow no paths


def test_a_served_bundle_answers_is_swapped_by_the_command_and_stops_when_told(run, project):
    import signal
    import socket
    import urllib.request

    name = json.loads(run("bundle", "build", "--json")[1])["bundle"]
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    server = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "gnn_ecommerce.cli",
            "serve",
            "model",
            "--model-port",
            str(port),
            "--bundle",
            name,
            "--workers",
            "1",
            "-C",
            str(project),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        for _ in range(600):
            assert server.poll() is None, server.stderr.read()
            try:
                if urllib.request.urlopen(f"{url}/readyz", timeout=2).status == 200:
                    break
            except OSError:
                time.sleep(0.1)
        else:
            raise AssertionError("expected the server to be ready within a minute")
        code, out, err = run("bundle", "activate", name, "--url", url, "--json")
        assert code == 0 and json.loads(out)["active"] == name, err
        assert run("bundle", "activate", "0123456789abcdef", "--url", url)[0] == 1
    finally:
        server.send_signal(signal.SIGTERM)
        server.communicate(timeout=30)
    assert server.returncode == 0


@pytest.mark.slow
def test_serve_starts_monitoring_where_a_port_is_set(run, project, tmp_path):
    import signal
    import urllib.request

    from postgres import free_port

    run("bundle", "build")
    ports = {name: str(free_port()) for name in ("PORT", "MODEL_PORT", "MONITOR_PORT")}
    env = (
        {k: v for k, v in os.environ.items() if k not in ("MODEL_URL", "DATABASE_URL", "SPOOL")}
        | ports
        | {"GNN_ECOMMERCE_ROOT": str(project)}
    )
    with open(tmp_path / "log", "w+") as log:
        server = subprocess.Popen([sys.executable, "-m", "gnn_ecommerce.cli", "serve"], stdout=log, stderr=log, env=env)
        try:
            until = time.monotonic() + 120
            while "Figures for Prometheus" not in (said := (tmp_path / "log").read_text()):
                assert server.poll() is None and time.monotonic() < until, said
                time.sleep(0.1)
            text = (
                urllib.request.urlopen(f"http://127.0.0.1:{ports['MONITOR_PORT']}/metrics", timeout=30).read().decode()
            )
            assert "gnn_ecommerce_monitor_up 1.0" in text and 'what="spool: records"} 0.0' in text
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
    done = subprocess.run(
        [sys.executable, "-m", "gnn_ecommerce.cli", "serve", "-C", str(project)],
        capture_output=True,
        text=True,
        env={**os.environ, "MONITOR_PORT": "nine"},
    )
    assert done.returncode == 1 and "MONITOR_PORT: expected a port, 0 to 65535, found 'nine'" in done.stderr, (
        done.stderr
    )
