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
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT
from shop import Process, named, wait_for

from gnn_ecommerce.bundle import BundleSettings, build_bundle
from gnn_ecommerce.filter.graph_filter import GraphFilter
from gnn_ecommerce.graph.interactions import InteractionGraph, pairs_csr, random_graph
from gnn_ecommerce.inference import InferenceSettings, Recommending
from gnn_ecommerce.model_server import main
from gnn_ecommerce.models.checkpoint import build_recommender
from gnn_ecommerce.serving.engine import in_share

N_USERS, N_ITEMS, WORKERS = 300, 150, 2
CUSTOMERS = list(range(0, 2 * N_USERS, 2))


def small_graph():
    "Random events over a catalogue; ids of users are even, those of items end with 5."
    g = random_graph(N_USERS, N_ITEMS, 2500, 1)
    catalogue = {
        "product_id": np.arange(N_ITEMS) * 10 + 5,
        "name": [f"Thing {i}" for i in range(N_ITEMS)],
        "category_code": np.resize(["hair.brush", "hair.comb", "nail"], N_ITEMS),
        "brand": np.resize(["kamm", "lux"], N_ITEMS),
        "price": 1.0 + np.arange(N_ITEMS),
    }
    ids = {"user_ids": CUSTOMERS, "item_ids": catalogue["product_id"].tolist(), "items": pd.DataFrame(catalogue)}
    return InteractionGraph.from_arrays(g.user, g.item, g.weight, g.purchased, **ids, scheme="sum")


def small_model(seed):
    "Graph, tensors, scoring and purchases since training of a model that has learned nothing."
    draw, graph = np.random.default_rng(seed), small_graph()
    graph_filter = GraphFilter("paths", 20).fit(graph)
    tensors = {
        "embedding.weight": torch.from_numpy(draw.standard_normal((N_USERS + N_ITEMS, 16), np.float32)),
        "alpha": torch.full((3,), 1 / 3),
        **{f"filter.{name}": torch.from_numpy(array) for name, array in graph_filter.to_arrays().items()},
    }
    scoring = {"weighted": True, "cosine": True, "b": 2.0, "filter": graph_filter.saved_params}
    hidden = pairs_csr(draw.integers(0, N_USERS, 100), draw.integers(0, N_ITEMS, 100), (N_USERS, N_ITEMS))
    return graph, tensors, scoring, hidden


class Model(NamedTuple):
    "A bundle, and what stage `inference` has for the same model."

    bundle: object
    job: Recommending

    @classmethod
    def make(cls, folder, version, seed):
        graph, tensors, scoring, hidden = small_model(seed)
        settings, seen = BundleSettings(lists=25), pd.DataFrame({"user_id": [], "product_id": []}, dtype=int)
        bundle = build_bundle(folder, graph, tensors, scoring, settings, hidden, model_version=version)
        recommender = build_recommender(graph, tensors, scoring)
        seen["bought"] = np.zeros(0, bool)
        return cls(bundle, Recommending(recommender, InferenceSettings(k=20), seen, hidden, version))

    @property
    def name(self):
        return self.bundle.name

    def lists(self, customers):
        "Customer -> products, scores and source, as stage `inference` writes them."
        items, scores, known = self.job.lists(np.asarray(customers))
        products = self.job.model.graph.item_ids.ids
        sources = ["model" if is_known else "popular" for is_known in known]
        return {
            customer: (products[row[row >= 0]].tolist(), score[row >= 0], source)
            for customer, row, score, source in zip(customers, items, scores, sources)
        }


class Server(Process):
    "A model server in a process of its own."

    def __init__(self, folder, bundle):
        options = {"folder": folder / "bundles", "bundle": bundle, "port": 0, "workers": WORKERS}
        command = [sys.executable, "-m", "gnn_ecommerce.model_server"]
        command += [f"--{name}={value}" for name, value in options.items()]
        super().__init__(command, {"OMP_NUM_THREADS": "1"}, ready=None)

    def start(self):
        super().start(wait=False)
        self.wait_until(self.address)
        assert self.address(), self.text()[-3000:]
        self.port = int(self.address()[1])
        return self

    def address(self):
        return re.search(r"http://127\.0\.0\.1:(\d+)", self.text())

    def connect(self):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)

    def ask(self, method, path, body=None, connection=None, headers=None):
        "Status and body of one answer."
        con = connection or self.connect()
        data = body if body is None or isinstance(body, bytes | str) else json.dumps(body)
        con.request(method, path, data, {"Content-Type": "application/json", **(headers or {})})
        answer = con.getresponse()
        text = answer.read()
        if connection is None:
            con.close()
        return answer.status, json.loads(text) if answer.headers["content-type"].endswith("json") else text.decode()

    def status(self, method, path, body=None, **more):
        return self.ask(method, path, body, **more)[0]

    def recommend(self, *requests, connection=None):
        status, answer = self.ask("POST", "/recommend", {"requests": requests}, connection)
        assert status == 200, answer
        return answer

    def activate(self, name, share=1.0):
        return self.ask("POST", "/admin/activate", {"bundle": name, "share": share})

    def serving(self):
        "The active bundle, and a canary if there is one."
        return [bundle["bundle"] for bundle in self.ask("GET", "/version")[1]["serving"]]

    def spread(self, n):
        "n connections to each worker: [(its process, connection)]."
        connections = []
        for _ in range(1000):
            con = self.connect()
            pid = self.ask("GET", "/version", connection=con)[1]["worker"]
            if sum(pid == worker for worker, _ in connections) < n:
                connections.append((pid, con))
            else:
                con.close()
            if len(connections) == n * WORKERS:
                return connections
        raise AssertionError(f"expected {WORKERS} workers to answer, found {set(pid for pid, _ in connections)}")

    def workers(self):
        "The processes that answer, and the bundle that each of them serves."
        serving = {}
        for pid, con in self.spread(1):
            serving[pid] = self.ask("GET", "/version", connection=con)[1]["bundle"]
            con.close()
        return serving


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("serving")


@pytest.fixture(scope="module")
def models(folder):
    "Two models; the server begins with the first."
    return {name: Model.make(folder / "bundles", name, seed) for name, seed in (("one", 1), ("two", 2))}


@pytest.fixture(scope="module")
def running(folder, models):
    server = Server(folder, models["one"].name).start()
    yield server
    assert server.stop() == 0, server.text()
    assert "Traceback" not in server.text()


@pytest.fixture
def server(running, models):
    "The server; whatever a test swaps in, the next one finds the first bundle."
    yield running
    if running.serving() != [models["one"].name]:
        running.activate(models["one"].name)


def product_ids(result):
    return [item["product_id"] for item in result["items"]]


# Lists


@pytest.mark.parametrize("wish", [{}, {"exclude_products": [5, 15, 25, 35, 45, 55, 65, 75]}], ids=["all", "without"])
def test_server_gives_the_lists_of_the_batch(server, models, wish):
    customers, left_out = [*CUSTOMERS, 1, 3], set(wish.get("exclude_products", ()))
    expected = models["one"].lists(customers)
    answer = server.recommend(*[{"customer": customer, "k": 10, **wish} for customer in customers])
    for result in answer["results"]:
        products, scores, source = expected[result["customer"]]
        kept = [place for place, product in enumerate(products) if product not in left_out][:10]
        assert result["source"] == source
        assert product_ids(result)[: len(kept)] == [products[place] for place in kept]
        given = np.float32([item["score"] for item in result["items"]])
        np.testing.assert_array_equal(given[: len(kept)], scores[kept])


REQUESTS = {
    "of the model": ({"customer": 4}, "model"),
    "with a basket": ({"basket": [5, {"product_id": 25, "event_type": "view"}]}, "fold_in"),
    "by content": ({"basket": [5], "content_weight": 1.0}, "content"),
    "of a category": ({"customer": 1, "category": "hair"}, "popular_in_category"),
    "at random": ({"customer": 1, "fallback": "random", "seed": 3}, "random"),
    "of nobody": ({}, "popular"),
}


@pytest.mark.parametrize("request_, source", named(REQUESTS))
def test_the_source_of_a_list(server, request_, source):
    assert server.recommend(request_)["results"][0]["source"] == source


@pytest.mark.parametrize("request_", [{"customer": 4}, {"basket": [5], "content_weight": 0.4}], ids=["model", "basket"])
def test_reasons_add_up_to_the_score(server, request_):
    (result,) = server.recommend({**request_, "explain": True, "k": 3})["results"]
    sums = [sum(reason["share"] for reason in item["reasons"]) for item in result["items"]]
    assert sums == pytest.approx([item["score"] for item in result["items"]], abs=1e-4)
    assert [item["sentence"][-1] for item in result["items"]] == ["."] * 3


def test_filters(server):
    filters = [{"brand": "lux", "max_price": 40}, {"category": "hair"}, {"category": "no such"}]
    lux, hair, none = server.recommend(*[{"customer": 4, "filters": wish} for wish in filters])["results"]
    assert {(item["brand"], item["price"] <= 40) for item in lux["items"]} == {("lux", True)}
    assert {item["category"] for item in hair["items"]} == {"hair.brush", "hair.comb"}
    assert none["items"] == []


def tensor(name="customer", datatype="INT64", data=(1,), shape=None):
    return {"name": name, "shape": shape or [len(data)], "datatype": datatype, "data": list(data)}


def infer(server, *inputs, **more):
    return server.ask("POST", "/v2/models/recommender/infer", {"inputs": inputs, **more})


def test_tensors_hold_the_same_lists(server):
    result = server.recommend({"customer": 4, "k": 3})["results"][0]
    _, answer = infer(server, tensor(data=[4, 1]), id="7", parameters={"k": 3})
    outputs = {output["name"]: output["data"] for output in answer["outputs"]}
    assert answer["id"] == "7"
    assert outputs["product"][:3] == product_ids(result)
    assert outputs["source"] == ["model", "popular"]


PATHS = "/livez /readyz /version /v2 /v2/health/ready /v2/models/recommender /v2/models/recommender/ready".split()


@pytest.mark.parametrize("path", [*PATHS, "/products/5/similar?k=3", "/customers?k=3", "/openapi.json"])
def test_what_can_be_read(server, path):
    assert server.status("GET", path) == 200


def test_customers_are_found_by_the_beginning_of_their_ids(server):
    found = server.ask("GET", "/customers?prefix=4&k=3")[1]["customers"]
    assert [str(customer["customer"])[0] for customer in found] == ["4"] * 3
    assert server.status("GET", "/customers?k=0") == 422


def test_a_list_of_what_is_bought_again_is_an_answer_too(server):
    assert server.recommend({"customer": 4, "k": 3, "purpose": "buy_again"})["results"][0]["source"] == "buy_again"


def counter(server, name):
    return float(re.search(rf"^{re.escape(name)} (\S+)", server.ask("GET", "/metrics")[1], re.MULTILINE)[1])


@pytest.mark.parametrize("name", ['gnn_model_results_total{source="random"}', "gnn_model_seconds_count"])
def test_metrics_count_lists_and_times(server, name):
    before = counter(server, name)
    server.recommend({"fallback": "random"})
    wait_for(lambda: counter(server, name) > before)  # a worker counts when it has answered


# Swaps


class Clients:
    "Clients that ask until they are told to stop, each on its own connection; `check` sees who asked and what came."

    def __init__(self, server, connections, check=lambda client, answer: None):
        self.server, self.connections, self.check = server, connections, check
        self.counts, self.errors, self.stopping = [0] * len(connections), [], False

    @property
    def answers(self):
        return sum(self.counts)

    def _ask(self, client):
        draw, con = random.Random(client), self.connections[client]
        while not self.stopping:
            wishes = [{"customer": customer, "k": 10} for customer in draw.choices(CUSTOMERS, k=4)]
            wishes[3]["exclude"] = "seen"
            try:
                self.check(client, self.server.recommend(*wishes, connection=con))
                self.counts[client] += 1
            except Exception as err:
                self.errors.append(repr(err))
                con.close()

    def __enter__(self):
        self.threads = [threading.Thread(target=self._ask, args=(client,)) for client in range(len(self.connections))]
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stopping = True
        for thread in self.threads:
            thread.join()
        for con in self.connections:
            con.close()


class Turns:
    "Which versions each client was answered by, in turns; and answers that mix two, or hold a wrong list."

    def __init__(self, models, clients):
        self.expected = {version: model.lists(CUSTOMERS) for version, model in models.items()}
        self.turns, self.wrong = [[] for _ in range(clients)], []

    def __call__(self, client, answer):
        version, first = answer["model_version"], answer["results"][0]
        if self.turns[client][-1:] != [version]:
            self.turns[client].append(version)
        versions = {result["model_version"] for result in answer["results"]}
        if versions != {version} or product_ids(first) != self.expected[version][first["customer"]][0][:10]:
            self.wrong.append(answer)

    def are_at(self, version):
        return [turns[-1:] for turns in self.turns] == [[version]] * len(self.turns)


@pytest.fixture(scope="module")
def swapped(running, models):
    "Ten swaps under load: the clients, what they saw, and for each swap what it answered and what each worker served."
    connections = [con for _, con in running.spread(3)]
    turns, swaps = Turns(models, len(connections)), []
    with Clients(running, connections, turns) as clients:
        wait_for(lambda: turns.are_at("one"))
        for version in ["two", "one"] * 5:
            status, answer = running.activate(models[version].name)
            swaps.append((status, answer["active"], answer["workers"], [*running.workers().values()]))
            wait_for(lambda at=version: turns.are_at(at))
    return clients, turns, swaps


def test_every_worker_serves_the_new_bundle_when_the_swap_is_answered(swapped, models):
    names = [models[version].name for version in ["two", "one"] * 5]
    assert swapped[2] == [(200, name, WORKERS, [name] * WORKERS) for name in names]


def test_no_request_fails_during_swaps(swapped):
    assert swapped[0].errors == []


def test_each_answer_is_of_one_model(swapped):
    assert swapped[1].wrong == []


def test_each_client_sees_each_swap_once(swapped):
    assert swapped[1].turns == [["one", *["two", "one"] * 5]] * (3 * WORKERS)


def versions(server):
    results = server.recommend(*[{"customer": customer, "k": 1} for customer in CUSTOMERS])["results"]
    return {result["customer"]: result["model_version"] for result in results}


def test_a_canary_gets_its_share(server, models):
    status, answer = server.activate(models["two"].name, 0.3)
    serving = [answer[name] for name in ("active", "canary", "share")]
    assert (status, serving) == (200, [models["one"].name, models["two"].name, 0.3])
    assert versions(server) == {customer: "two" if in_share(customer, 0.3) else "one" for customer in CUSTOMERS}


def test_a_canary_becomes_the_only_one(server, models):
    server.activate(models["two"].name, 0.3)
    answer = server.activate(models["two"].name)[1]
    assert (answer["previous"], answer["canary"]) == (models["one"].name, None)
    assert server.serving() == [models["two"].name]


def test_a_rollback_is_a_swap_to_the_previous_bundle(server, models):
    previous = server.activate(models["two"].name)[1]["previous"]
    assert server.activate(previous)[1]["active"] == models["one"].name


def test_the_pointer_says_what_is_served(server, models, folder):
    server.activate(models["two"].name)
    assert json.loads((folder / "serving" / "active.json").read_text())["active"] == models["two"].name


def test_the_server_follows_the_pointer(server, models, folder):
    (folder / "next.json").write_text(json.dumps({"active": models["two"].name}))
    os.replace(folder / "next.json", folder / "serving" / "active.json")
    wait_for(lambda: server.serving() == [models["two"].name])


# What cannot be served


def truncate(bundle):
    file = bundle / "users.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


def flip_a_bit(bundle):
    file = bundle / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def make_newer(bundle):
    manifest = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps({**manifest, "schema": 99}))


def empty_manifest(bundle):
    (bundle / "manifest.json").write_text("{}")


SPOILED = {
    "truncated": (truncate, "truncated"),
    "damaged": (flip_a_bit, "damaged"),
    "newer": (make_newer, "newer gnn_ecommerce"),
    "foreign": (empty_manifest, "foreign"),
}


@pytest.fixture
def copied(models, folder):
    "A copy of the first bundle, that may be written to."
    path = folder / "bundles" / "copied"
    shutil.copytree(models["one"].bundle.path, path)
    for file in path.iterdir():
        file.chmod(0o644)
    yield path
    shutil.rmtree(path)


@pytest.mark.parametrize("spoil, reason", named(SPOILED))
def test_a_spoiled_bundle_is_refused_and_the_running_one_stays(server, models, copied, spoil, reason):
    spoil(copied)
    status, answer = server.activate(copied.name)
    assert status == 409
    assert reason in answer["detail"]
    assert server.serving() == [models["one"].name]


@pytest.mark.parametrize("name", ["../../etc", "/etc", "..", "", "a/b", "%2e%2e", "x" * 300])
def test_what_is_no_name_of_a_bundle(server, name):
    assert server.activate(name)[0] == 422


def test_a_bundle_that_is_not_there(server):
    assert server.activate("no-such")[0] == 404


ACTIVATIONS = {
    "nothing": (b"{}", 422),
    "a number": (b'{"bundle": 3}', 422),
    "a share above 1": (b'{"bundle": "x", "share": 2}', 422),
    "half a body": (b"{", 400),
}


@pytest.mark.parametrize("body, status", named(ACTIVATIONS))
def test_a_wrong_activation(server, body, status):
    assert server.status("POST", "/admin/activate", body) == status


def test_an_activation_of_another_content_type(server):
    assert server.status("POST", "/admin/activate", b"{}", headers={"Content-Type": "text/plain"}) == 415


# Abuse

BIG = "x" * 900_000
WRONG_BODIES = {
    "empty": b"",
    "half a body": b"{",
    "a list": b"[]",
    "null": b"null",
    "no requests": b'{"requests": []}',
    "not closed": b'{"requests": [{}]',
    "not UTF-8": b"\xff\xfe",
    "deep requests": b'{"requests": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep": b"[" * 500_000,
    "NaN": b'{"requests": [{"k": NaN}]}',
    "infinity": b'{"requests": [{"filters": {"min_price": Infinity}}]}',
    "long customer": json.dumps({"requests": [{"customer": BIG}]}),
    "long product": json.dumps({"requests": [{"basket": [BIG]}]}),
    "half a surrogate": b'{"requests": [{"customer": "\\ud800"}]}',
    "5,000 digits": b'{"requests": [{"customer": 1' + b"0" * 5000 + b"}]}",
    "too many": {"requests": [{}] * 1001},
}
WRONG_REQUESTS = [
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
]
ODD_REQUESTS = [
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


@pytest.fixture(scope="module", autouse=True)
def no_server_error(running):
    "No test of this file makes the server fail."
    yield
    assert re.findall(r'.*status="5xx"} [1-9].*', running.ask("GET", "/metrics")[1]) == []


def is_refused(server, body):
    status, answer = server.ask("POST", "/recommend", body)
    assert status in (400, 422)
    assert answer["detail"]


@pytest.mark.parametrize("body", named(WRONG_BODIES))
def test_wrong_bodies(server, body):
    is_refused(server, body)


@pytest.mark.parametrize("request_", WRONG_REQUESTS, ids=lambda request: str(request)[:40])
def test_wrong_requests(server, request_):
    is_refused(server, {"requests": [request_]})


@pytest.mark.parametrize("request_", ODD_REQUESTS, ids=lambda request: ascii(request)[:40])
def test_odd_requests_are_answered(server, request_):
    assert len(server.recommend(request_)["results"]) == 1


def test_a_thousand_requests_in_a_body(server):
    requests = [{"customer": n % 600, "k": 2, "exclude": "none"} for n in range(1000)]
    assert len(server.recommend(*requests)["results"]) == 1000


@pytest.mark.parametrize(
    "method, path, status",
    [
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
    ],
)
def test_wrong_addresses(server, method, path, status):
    assert server.status(method, path) == status


WRONG_TENSORS = {
    "none": {"inputs": []},
    "another name": {"inputs": [tensor("x")]},
    "another shape": {"inputs": [tensor(shape=[2])]},
    "half a basket": {"inputs": [tensor("basket", "BYTES", ["{"])]},
    "an object": {"inputs": [tensor(data=[{}])]},
    "k is text": {"inputs": [tensor()], "parameters": {"k": "x"}},
}


@pytest.mark.parametrize("body", named(WRONG_TENSORS))
def test_wrong_tensors(server, body):
    assert server.status("POST", "/v2/models/recommender/infer", body) == 422


def raw(server, data):
    "Send bytes; the status of the answer, 0 for none."
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as s:
        try:
            s.sendall(data)
            answer = s.recv(65536)
        except (TimeoutError, ConnectionError):
            return 0
    return int(answer.split()[1]) if answer.startswith(b"HTTP/1.1 ") else 0


NO_REQUESTS = {
    "an announced body": (b"POST /recommend HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n", {413}),
    "noise": (b"\x16" + random.Random(1).randbytes(300), {400, 0}),
    "HTTP/9.9": (b"GET / HTTP/9.9\r\n\r\n", {400, 404, 505}),
}


@pytest.mark.parametrize("data, statuses", named(NO_REQUESTS))
def test_what_is_no_request(server, data, statuses):
    assert raw(server, data) in statuses


@contextmanager
def sockets(server, n):
    opened = [socket.create_connection(("127.0.0.1", server.port), timeout=30) for _ in range(n)]
    try:
        yield opened
    finally:
        for s in opened:
            s.close()


def test_others_are_answered_beside_five_hundred_idle_and_slow_connections(server):
    with sockets(server, 500) as opened:
        for n, s in enumerate(opened[:100]):
            s.sendall(b"POST /recommend HTTP/1.1\r\nContent-Length: 100\r\n\r\n{"[: 10 + n % 50])
        wait_for(lambda: counter(server, "gnn_model_connections") >= 400)
        assert len([server.recommend({"customer": 4, "k": 3}) for _ in range(50)]) == 50


def test_a_killed_worker_is_replaced(server):
    victim = server.ask("GET", "/version")[1]["worker"]
    with Clients(server, [server.connect() for _ in range(4)]) as clients:
        wait_for(lambda: clients.answers > 10)
        os.kill(victim, signal.SIGKILL)
        wait_for(lambda: victim not in server.workers())
        before = clients.answers
        wait_for(lambda: clients.answers > before + 10)
    assert len(clients.errors) <= 4  # one for each connection that the worker had


# Start

HEAVY = {"duckdb", "ibis", "papermill", "matplotlib", "nbformat", "IPython", "dvc", "networkx", "fastapi"}


def test_what_importing_the_server_loads():
    code = "import sys, gnn_ecommerce.model_server; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert HEAVY & set(done.stdout.split()) == set()


@pytest.fixture
def logging_stays(monkeypatch):
    monkeypatch.setattr("logging.basicConfig", lambda **settings: None)


def test_a_taken_port_ends_with_a_message(server, models, tmp_path, capsys, logging_stays):
    options = {"bundle": models["one"].bundle.path, "pointer": tmp_path / "active.json", "port": server.port}
    assert main([f"--{name}={value}" for name, value in options.items()]) == 1
    assert f"port: expected {server.port}" in capsys.readouterr().err


def test_a_missing_bundle_ends_with_a_message(tmp_path, capsys, logging_stays):
    assert main(["--folder", str(tmp_path)]) == 1
    assert "run `make demo`" in capsys.readouterr().err
