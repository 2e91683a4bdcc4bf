"""The model server as a process: the batch's lists over HTTP, swaps under load, refusals, abuse, killed workers."""

import http.client
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT
from gnn_ecommerce.bundle import BundleSettings, build_bundle
from gnn_ecommerce.models.checkpoint import build_recommender
from gnn_ecommerce.graph.interactions import InteractionGraph, pairs_csr, random_graph
from gnn_ecommerce.filter.graph_filter import GraphFilter
from gnn_ecommerce.inference import InferenceSettings, Recommending

N_USERS, N_ITEMS = 300, 150


def small_model(seed):
    "Graph, tensors, scoring and purchases since training of a model that has learned nothing, with a catalogue."
    draw, g = np.random.default_rng(seed), random_graph(N_USERS, N_ITEMS, 2500, 1)
    ids = np.arange(N_ITEMS) * 10 + 5
    items = pd.DataFrame(
        {
            "product_id": ids,
            "name": [f"Thing {i}" for i in range(N_ITEMS)],
            "category_code": np.resize(["hair.brush", "hair.comb", "nail"], N_ITEMS),
            "brand": np.resize(["kamm", "lux"], N_ITEMS),
            "price": 1.0 + np.arange(N_ITEMS),
        }
    )
    g = InteractionGraph.from_arrays(
        g.user,
        g.item,
        g.weight,
        g.purchased,
        user_ids=(np.arange(N_USERS) * 2).tolist(),
        item_ids=ids.tolist(),
        items=items,
        scheme="sum",
    )
    filter = GraphFilter("paths", 20).fit(g)
    tensors = {
        "embedding.weight": torch.from_numpy(draw.standard_normal((N_USERS + N_ITEMS, 16), np.float32)),
        "alpha": torch.full((3,), 1 / 3),
    }
    tensors |= {f"filter.{k}": torch.from_numpy(v) for k, v in filter.to_arrays().items()}
    return (
        g,
        tensors,
        dict(weighted=True, cosine=True, b=2.0, filter=filter.saved_params),
        pairs_csr(draw.integers(0, N_USERS, 100), draw.integers(0, N_ITEMS, 100), (N_USERS, N_ITEMS)),
    )


class Server:
    "A model server in a process of its own."

    def __init__(self, folder, name, workers=2):
        self.log = open(folder / "server.log", "w+", encoding="utf8")
        args = [
            sys.executable,
            "-m",
            "gnn_ecommerce.model_server",
            "--folder",
            str(folder / "bundles"),
            "--bundle",
            name,
            "--port",
            "0",
            "--workers",
            str(workers),
        ]
        self.process = subprocess.Popen(
            args,
            cwd=ROOT,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )
        deadline = time.monotonic() + 120
        while not (found := re.search(r"http://127\.0\.0\.1:(\d+)", self.said())):
            assert self.process.poll() is None and time.monotonic() < deadline, self.said()
            time.sleep(0.05)
        self.port = int(found[1])

    def said(self):
        return Path(self.log.name).read_text(encoding="utf8")

    def connect(self, timeout=30):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def ask(self, method, path, body=None, connection=None, headers=None):
        c = connection or self.connect()
        c.request(
            method,
            path,
            body if body is None or isinstance(body, bytes | str) else json.dumps(body),
            {"Content-Type": "application/json", **(headers or {})},
        )
        r = c.getresponse()
        text = r.read()
        if connection is None:
            c.close()
        return r.status, json.loads(text) if r.headers["content-type"].endswith("json") else text.decode()

    def recommend(self, *requests, connection=None):
        status, answer = self.ask("POST", "/recommend", {"requests": requests}, connection)
        assert status == 200, answer
        return answer

    def activate(self, name, share=1.0):
        return self.ask("POST", "/admin/activate", {"bundle": name, "share": share})

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(30)
        self.log.close()
        return code


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    "Two bundles, their models, and a server of the first."
    folder, made = tmp_path_factory.mktemp("serving"), {}
    for version, seed in (("one", 1), ("two", 2)):
        graph, tensors, scoring, hidden = small_model(seed)
        bundle = build_bundle(
            folder / "bundles", graph, tensors, scoring, BundleSettings(lists=25), hidden, model_version=version
        )
        job = Recommending(
            build_recommender(graph, tensors, scoring),
            InferenceSettings(k=20),
            pd.DataFrame({"user_id": np.zeros(0, int), "product_id": np.zeros(0, int), "bought": np.zeros(0, bool)}),
            hidden,
            version,
        )
        made[version] = bundle, job
    server = Server(folder, made["one"][0].name)
    yield folder, made, server
    assert server.stop() == 0, server.said()
    assert "Traceback" not in server.said(), server.said()


def lists_of(job, ids):
    "What stage `inference` writes for some customers."
    items, scores, known = job.lists(np.asarray(ids))
    products = job.model.graph.item_ids.ids
    return {
        int(u): ([int(products[i]) for i in row if i >= 0], s[row >= 0], "model" if k else "popular")
        for u, row, s, k in zip(ids, items, scores, known)
    }


def test_server_gives_the_lists_of_the_batch(shop):
    _, made, server = shop
    ids = [*range(0, 2 * N_USERS, 2), 1, 3]
    expected = lists_of(made["one"][1], ids)
    for a in range(0, len(ids), 100):
        for wanted in ({}, {"exclude_products": [5, 15, 25, 35, 45, 55, 65, 75]}):
            for r in server.recommend(*[{"customer": u, "k": 10, **wanted} for u in ids[a : a + 100]])["results"]:
                items, scores, source = expected[r["customer"]]
                keep = [n for n, i in enumerate(items) if i not in wanted.get("exclude_products", ())][:10]
                got = [i["product_id"] for i in r["items"]]
                assert r["source"] == source and got[: len(keep)] == [items[n] for n in keep]
                np.testing.assert_array_equal(np.float32([i["score"] for i in r["items"]])[: len(keep)], scores[keep])


def test_all_kinds_of_requests(shop):
    _, _, server = shop
    asked = [
        {"customer": 4, "explain": True, "k": 3},
        {"basket": [5, {"product_id": 25, "event_type": "view"}], "k": 5, "explain": True, "content_weight": 0.4},
        {"basket": [5], "content_weight": 1.0},
        {"customer": 1, "category": "hair"},
        {"customer": 1, "fallback": "random", "seed": 3},
        {"customer": 4, "basket": [35], "filters": {"brand": "lux", "max_price": 40}},
        {},
        {"customer": 4, "filters": {"category": "no such"}},
    ]
    answer = server.recommend(*asked)
    assert [r["source"] for r in answer["results"]] == [
        "model",
        "fold_in",
        "content",
        "popular_in_category",
        "random",
        "model",
        "popular",
        "model",
    ]
    for r in answer["results"][:2]:
        for item in r["items"]:
            assert sum(why["share"] for why in item["reasons"]) == pytest.approx(item["score"], abs=1e-4) and item[
                "sentence"
            ].endswith(".")
    assert {i["category"] for i in answer["results"][3]["items"]} == {"hair.brush", "hair.comb"}
    assert (
        all(i["brand"] == "lux" and i["price"] <= 40 for i in answer["results"][5]["items"])
        and answer["results"][7]["items"] == []
    )
    infer = server.ask(
        "POST",
        "/v2/models/recommender/infer",
        {
            "id": "7",
            "inputs": [{"name": "customer", "shape": [2], "datatype": "INT64", "data": [4, 1]}],
            "parameters": {"k": 3},
        },
    )[1]
    assert (
        infer["id"] == "7"
        and infer["outputs"][0]["data"][:3] == [i["product_id"] for i in answer["results"][0]["items"]]
        and infer["outputs"][3]["data"] == ["model", "popular"]
    )
    for path in (
        "/livez",
        "/readyz",
        "/version",
        "/v2",
        "/v2/health/ready",
        "/v2/models/recommender",
        "/v2/models/recommender/ready",
        "/products/5/similar?k=3",
        "/openapi.json",
    ):
        assert server.ask("GET", path)[0] == 200, path
    metrics = server.ask("GET", "/metrics")[1]
    assert 'gnn_model_results_total{source="random"} 1' in metrics and re.search(
        r"gnn_model_seconds_count [1-9]", metrics
    )


def spread(server, n, workers=2):
    "So many connections to each worker: [(its process, connection)]."
    made = []
    for _ in range(1000):
        c = server.connect()
        pid = server.ask("GET", "/version", connection=c)[1]["worker"]
        if sum(pid == p for p, _ in made) < n:
            made.append((pid, c))
        else:
            c.close()
        if len(made) == n * workers:
            return made
    raise AssertionError(f"expected {workers} workers to answer, found {set(p for p, _ in made)}")


def load(server, seconds_or_stop, check, threads=6, connections=None):
    "Clients that ask until told to stop; returns numbers of answers and of failures. With connections, `check` is told which one it was."
    counts, lock = {"answers": 0, "failed": 0}, threading.Lock()

    def client(n):
        draw, c, mine = random.Random(n), connections[n] if connections else server.connect(), 0
        while not seconds_or_stop.is_set():
            some = [{"customer": draw.randrange(N_USERS) * 2, "k": 10} for _ in range(3)] + [
                {"customer": draw.randrange(N_USERS) * 2, "k": 10, "exclude": "seen"}
            ]
            try:
                check(server.recommend(*some, connection=c), *([n] if connections else []))
                mine += 1
            except Exception as err:
                with lock:
                    counts["failed"] += 1
                    counts.setdefault("errors", []).append(repr(err))
                c.close()
        with lock:
            counts["answers"] += mine

    all_ = [threading.Thread(target=client, args=(n,)) for n in range(len(connections) if connections else threads)]
    for t in all_:
        t.start()
    return all_, counts


def test_ten_swaps_under_load(shop):
    _, made, server = shop
    expected = {v: lists_of(job, range(0, 2 * N_USERS, 2)) for v, (_, job) in made.items()}
    workers, connections = zip(*spread(server, 3))
    stop, mixed, seen = threading.Event(), [], {pid: [] for pid in workers}

    def check(answer, n):
        versions = {r["model_version"] for r in answer["results"]} | {answer["model_version"]}
        if seen[workers[n]][-1:] != [answer["model_version"]]:
            seen[workers[n]].append(answer["model_version"])
        first = answer["results"][0]
        wrong = [i["product_id"] for i in first["items"]] != expected[first["model_version"]][first["customer"]][0][:10]
        if len(versions) != 1 or wrong:
            mixed.append(answer)

    threads, counts = load(server, stop, check, connections=connections)
    for n in range(10):
        status, answer = server.activate(made["two" if n % 2 == 0 else "one"][0].name)
        assert (
            status == 200
            and answer["workers"] == 2
            and answer["active"] == made["two" if n % 2 == 0 else "one"][0].name
        )
        for pid, c in spread(server, 1):
            found = server.ask("GET", "/version", connection=c)[1]
            assert (found["worker"], found["bundle"]) == (pid, answer["active"]), (
                "every worker serves it when the answer comes"
            )
            c.close()
        time.sleep(0.05)
    stop.set()
    for t in threads:
        t.join()
    print(f"{counts['answers']} answers during ten swaps, {counts['failed']} failed, {len(mixed)} mixed")
    print(f"models that each worker answered with, in turns: {[len(turns) for turns in seen.values()]}")
    assert counts["failed"] == 0 and not mixed and counts["answers"] > 50, counts
    assert len(seen) == 2 and all(len(turns) >= 5 and {*turns} == {"one", "two"} for turns in seen.values()), {
        pid: len(turns) for pid, turns in seen.items()
    }


def test_canary_rollback_and_pointer(shop):
    folder, made, server = shop
    one, two = made["one"][0].name, made["two"][0].name
    status, answer = server.activate(two, 0.3)
    assert status == 200 and (answer["active"], answer["canary"], answer["share"]) == (one, two, 0.3)
    versions = {
        r["customer"]: r["model_version"]
        for r in server.recommend(*[{"customer": u, "k": 1} for u in range(0, 2 * N_USERS, 2)])["results"]
    }
    assert 0.15 < np.mean([v == "two" for v in versions.values()]) < 0.45
    assert {
        r["customer"]: r["model_version"]
        for r in server.recommend(*[{"customer": u, "k": 1} for u in range(0, 2 * N_USERS, 2)])["results"]
    } == versions, "stable"
    status, answer = server.activate(two)
    assert (
        answer["previous"] == one and answer["canary"] is None and len(server.ask("GET", "/version")[1]["serving"]) == 1
    )
    assert server.activate(answer["previous"])[1]["active"] == one
    pointer = folder / "serving" / "active.json"
    assert json.loads(pointer.read_text())["active"] == one
    for name in (two, one):
        (folder / "next.json").write_text(json.dumps({"active": name}))
        os.replace(folder / "next.json", pointer)
        deadline = time.monotonic() + 10
        while server.ask("GET", "/version")[1]["bundle"] != name:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_what_cannot_be_served_is_refused_and_the_running_bundle_stays(shop):
    folder, made, server = shop
    good = made["one"][0]

    def spoiled(name, change):
        path = folder / "bundles" / name
        shutil.copytree(good.path, path)
        for f in path.iterdir():
            f.chmod(0o644)
        change(path)
        return name

    def cut(path):
        (path / "users.safetensors").write_bytes((path / "users.safetensors").read_bytes()[:-10])

    def flip(path):
        data = bytearray((path / "model.safetensors").read_bytes())
        data[-1] ^= 1
        (path / "model.safetensors").write_bytes(data)

    def newer(path):
        m = json.loads((path / "manifest.json").read_text())
        (path / "manifest.json").write_text(json.dumps({**m, "schema": 99}))

    for name, change, reason in (
        ("truncated", cut, "truncated"),
        ("damaged", flip, "damaged"),
        ("newer", newer, "newer gnn_ecommerce"),
        ("foreign", lambda p: (p / "manifest.json").write_text("{}"), "foreign"),
    ):
        status, answer = server.activate(spoiled(name, change))
        assert status == 409 and reason in answer["detail"], answer
        shutil.rmtree(folder / "bundles" / name)
    for name, expected in (
        ("../../etc", 422),
        ("/etc", 422),
        ("..", 422),
        ("", 422),
        ("a/b", 422),
        ("%2e%2e", 422),
        ("no-such", 404),
        ("x" * 300, 422),
    ):
        assert server.activate(name)[0] == expected, name
    for body, expected in ((b"{}", 422), (b'{"bundle": 3}', 422), (b'{"bundle": "x", "share": 2}', 422), (b"{", 400)):
        assert server.ask("POST", "/admin/activate", body)[0] == expected
    assert server.ask("POST", "/admin/activate", b"{}", headers={"Content-Type": "text/plain"})[0] == 415
    assert (
        server.ask("GET", "/version")[1]["bundle"] == good.name
        and server.recommend({"customer": 2})["model_version"] == "one"
    )


def raw(server, data, wait=5.0):
    "Send bytes; the status of the answer, 0 for none."
    with socket.create_connection(("127.0.0.1", server.port), timeout=wait) as s:
        try:
            s.sendall(data)
            out = s.recv(65536)
        except (TimeoutError, ConnectionError):
            return 0
    return int(out.split()[1]) if out.startswith(b"HTTP/1.1 ") else 0


def test_abuse(shop):
    _, _, server = shop
    big = "x" * 900_000
    bodies = [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"requests": []}',
        b'{"requests": [{}]',
        b"\xff\xfe",
        b'{"requests": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b"[" * 500_000,
        b'{"requests": [{"k": NaN}]}',
        b'{"requests": [{"filters": {"min_price": Infinity}}]}',
        json.dumps({"requests": [{"customer": big}]}),
        json.dumps({"requests": [{"basket": [big]}]}),
        b'{"requests": [{"customer": "\\ud800"}]}',
        b'{"requests": [{"customer": 1' + b"0" * 5000 + b"}]}",
    ]
    for r in (
        {"k": 0},
        {"k": -1},
        {"k": 10**9},
        {"k": 2.5},
        {"k": "20"},
        {"k": True},
        {"k": None},
        {"customer": {}},
        {"customer": [1]},
        {"customer": 1.5},
        {"basket": "x"},
        {"basket": [[]]},
        {"basket": [5] * 1001},
        {"exclude": "x"},
        {"unknown": 1},
        {"filters": {"category": 3}},
        {"filters": {"min_price": -1}},
        {"reasons": 0},
        {"seed": -1},
        {"content_weight": 2},
        {"basket": [{"product_id": 5, "event_type": "x"}]},
    ):
        bodies.append({"requests": [r]})
    codes = {}
    for body in bodies:
        status, answer = server.ask("POST", "/recommend", body)
        codes[status] = codes.get(status, 0) + 1
        assert status in (400, 422) and answer["detail"], (body if len(body) < 100 else body[:100], status)
    fine = [
        {"customer": 2**70},
        {"customer": -(2**63)},
        {"customer": "é漢\U0001f600\u0000"},
        {"customer": "4"},
        {"customer": 4, "k": 1000, "explain": True, "reasons": 100},
        {"basket": [2**80, "x", -1]},
        {"exclude_products": ["x", 2**90]},
        {"basket": [5] * 1000, "k": 1000, "explain": True},
        {"customer": 4, "exclude_products": list(range(10_000))},
        {"category": "\u0000", "fallback": "random"},
        {"basket": [{"product_id": 5, "event_type": "remove_from_cart"}]},
        {"filters": {"products": []}},
        {"customer": 4, "filters": {"min_price": 1e308}},
    ]
    for r in fine:
        server.recommend(r)
    assert (
        len(server.recommend(*[{"customer": u % 600, "k": 2, "exclude": "none"} for u in range(1000)])["results"])
        == 1000
    )
    assert server.ask("POST", "/recommend", {"requests": [{}] * 1001})[0] == 422
    assert raw(server, b"POST /recommend HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n") == 413
    for method, path, status in (
        ("GET", "/recommend", 405),
        ("DELETE", "/version", 405),
        ("GET", "/no", 404),
        ("GET", "/products/x/similar", 404),
        ("GET", "/products/99999999999999999999999/similar", 404),
        ("GET", "/products/5/similar?k=0", 422),
        ("GET", "/products/5/similar?k=x", 422),
        ("GET", "/products/..%2f..%2fetc/similar", 404),
        ("GET", "/v2/models/other", 404),
        ("POST", "/v2/models/recommender/infer", 400),
    ):
        assert server.ask(method, path)[0] == status, path
    for infer in (
        {"inputs": []},
        {"inputs": [{"name": "x", "shape": [1], "datatype": "INT64", "data": [1]}]},
        {"inputs": [{"name": "customer", "shape": [2], "datatype": "INT64", "data": [1]}]},
        {"inputs": [{"name": "basket", "shape": [1], "datatype": "BYTES", "data": ["{"]}]},
        {"inputs": [{"name": "customer", "shape": [1], "datatype": "INT64", "data": [{}]}]},
        {"inputs": [{"name": "customer", "shape": [1], "datatype": "INT64", "data": [1]}], "parameters": {"k": "x"}},
    ):
        assert server.ask("POST", "/v2/models/recommender/infer", infer)[0] == 422, infer
    assert raw(server, os.urandom(300)) in (400, 0) and raw(server, b"GET / HTTP/9.9\r\n\r\n") in (400, 404, 505)
    metrics = server.ask("GET", "/metrics")[1]
    assert not re.search(r'status="5xx"} [1-9]', metrics), metrics
    print(f"{sum(codes.values())} malformed bodies: {codes}, no 5xx")


def test_five_hundred_idle_and_slow_connections(shop):
    _, _, server = shop
    idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(500)]
    for n, s in enumerate(idle[:100]):
        s.sendall(b"POST /recommend HTTP/1.1\r\nContent-Length: 100\r\n\r\n{"[: 10 + n % 50])
    start = time.perf_counter()
    for _ in range(50):
        server.recommend({"customer": 4, "k": 3})
    assert time.perf_counter() - start < 5
    for s in idle:
        s.close()


def test_a_killed_worker_is_replaced(shop):
    _, _, server = shop
    stop, victim = threading.Event(), server.ask("GET", "/version")[1]["worker"]
    threads, counts = load(server, stop, lambda answer: None, threads=4)
    time.sleep(0.2)
    os.kill(victim, signal.SIGKILL)
    time.sleep(0.5)
    stop.set()
    for t in threads:
        t.join(30)
    assert counts["failed"] <= 4 and counts["answers"] > 10, counts
    deadline, pids = time.monotonic() + 30, set()
    while len(pids) < 2 or victim in pids:
        assert time.monotonic() < deadline
        pids |= {server.ask("GET", "/version")[1]["worker"]}
        pids.discard(victim)
    print(f"{counts['answers']} answers, {counts['failed']} connections lost with the worker, replaced")


HEAVY = ("duckdb", "ibis", "papermill", "matplotlib", "nbformat", "IPython", "dvc", "networkx", "fastapi")


def test_what_importing_the_server_loads():
    code = "import time; t = time.perf_counter(); import gnn_ecommerce.model_server; print(time.perf_counter() - t); import sys; print(' '.join({m.split('.')[0] for m in sys.modules}))"
    seconds, modules = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    print(f"import of the model server: {float(seconds):.2f} s, {len(modules.split())} packages")
    assert not set(HEAVY) & set(modules.split())


def test_a_taken_port_and_a_missing_bundle_end_with_a_message(shop, tmp_path, capsys, monkeypatch):
    from gnn_ecommerce.model_server import main

    _, made, server = shop
    monkeypatch.setattr("logging.basicConfig", lambda **kw: None)
    assert (
        main(
            [
                "--bundle",
                str(made["one"][0].path),
                "--pointer",
                str(tmp_path / "active.json"),
                "--port",
                str(server.port),
            ]
        )
        == 1
    )
    assert f"port: expected {server.port}" in capsys.readouterr().err
    assert main(["--folder", str(tmp_path)]) == 1
    assert "run `make demo`" in capsys.readouterr().err
