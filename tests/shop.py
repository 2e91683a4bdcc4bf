"""Servers for the tests, in processes of their own: a small model server, the API server, and clients that count."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections import Counter
from pathlib import Path

import httpx
import pytest
from postgres import free_port

from gnn_ecommerce.shop.stores import SCOPES, Store

ROOT = Path(__file__).resolve().parents[1]

MODEL = """
import asyncio, json, os, sys
import msgspec, uvicorn
from gnn_ecommerce.serving.protocol import *

N, state = 300, {"delay": 0.0, "status": 200, "garbage": False}
CATALOGUE = {p: ("lips.gloss" if p % 2 else "nails", "brand%d" % (p % 5), float(p)) for p in range(1, N + 1)}

def item(p, n):
    category, brand, price = CATALOGUE[p]
    name = "<script>document.title = 'run'</script>" if p == 19 else "product %d" % p
    return Item(p, n, 1 / n, name, brand, category, price)

def items(ranked): return [item(p, n) for n, p in enumerate(ranked, 1)]

def explained(items, product, event_type):
    for i in items:
        own = ReasonItem("product", i.score + .25, product, "product %d" % product, event_type)
        i.reasons = [own, ReasonItem("self", -.25)]
        i.sentence = "Because of product %d." % product
    return items

def customer(c): return KnownCustomer(c, 3, 2, items([c % N + 1, (c + 1) % N + 1]))

def result(r):
    basket = [b if isinstance(b, int | str) else b.product_id for b in r.basket]
    basket = [p for p in basket if isinstance(p, int)]
    known = isinstance(r.customer, int) and 0 < r.customer <= 1000
    start = r.customer % N if known else basket[-1] % N if basket else 0
    hidden = r.hide if r.purpose in ("auto", "discover") else []
    out = set(r.exclude_products) | set(hidden) | (set(basket) if r.exclude != "none" else set())
    ranked = [p for p in ((start + i) % N + 1 for i in range(N)) if p not in out and p in CATALOGUE]
    listed = items(ranked[:r.k])
    if r.explain and (known or basket):
        listed = explained(listed, *((basket[-1], "view") if basket else (r.customer % N + 1, "purchase")))
    return Result(r.customer, "model" if known else "fold_in" if basket else "popular", "test-1", listed)

async def answer(path, query, body):
    if path == "/control": state.update(json.loads(body)); return 200, b"{}"
    if path == "/livez": return 200, b"{}"
    await asyncio.sleep(state["delay"])
    if state["garbage"]: return 200, b'{"model_version": '
    if state["status"] != 200: return state["status"], b"oops"
    if path == "/recommend":
        asked = decode(body, RecommendRequest)
        return 200, encode(RecommendResponse("test-1", [result(r) for r in asked.requests]))
    if path.startswith("/products/"):
        name, k = path.split("/")[2], int(query.split("k=")[1])
        if not name.isdigit() or int(name) not in CATALOGUE: raise ProblemError(404, "no such product")
        return 200, encode(SimilarResponse(int(name), "test-1", items([p for p in CATALOGUE if p != int(name)][:k])))
    if path == "/customers":
        prefix = query.partition("prefix=")[2].partition("&")[0]
        found = [customer(c) for c in range(1, 1001) if str(c).startswith(prefix)][:10]
        return 200, encode(CustomersResponse("test-1", found))
    raise ProblemError(404, path)

async def app(scope, receive, send):
    if scope["type"] != "http": return
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    kind = b"application/json"
    try: status, out = await answer(scope["path"], scope["query_string"].decode(), body)
    except ProblemError as err: status, out, kind = err.status, encode(err.problem()), b"application/problem+json"
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", kind)]})
    await send({"type": "http.response.body", "body": out})

port = int(os.environ["MODEL_PORT"])
uvicorn.run(app, host="127.0.0.1", port=port, log_level="error", lifespan="off", http="httptools")
"""


def post(url, value):
    "POST JSON with the standard library; the answer."
    request = urllib.request.Request(url, json.dumps(value).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def wait_for(what, seconds=300, step=0.02):
    "Until `what()` is true."
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, f"waited {seconds} s in vain"
        time.sleep(step)


def named(cases):
    "Parameters of a test, and their names, of a dict: a tuple holds several."
    return [pytest.param(*(case if isinstance(case, tuple) else (case,)), id=name) for name, case in cases.items()]


def answers(url):
    try:
        with urllib.request.urlopen(url, timeout=1) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


class Process:
    "A server in a process of its own."

    def __init__(self, command, env, ready, limits=None):
        self.command, self.env, self.ready, self.limits, self.process = command, env, ready, limits, None
        self.log = Path(tempfile.mkdtemp(prefix="gnn_server_")) / "log"

    def start(self, wait=True):
        env = {**os.environ, **self.env}
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                self.command, env=env, cwd=ROOT, stdout=log, stderr=log, preexec_fn=self.limits
            )
        if wait:
            self.wait_until(lambda: answers(self.ready))
        assert self.process.poll() is None, self.text()[-3000:]
        return self

    def wait_until(self, is_ready):
        "Until it is ready, or has ended; it does not outlive a wait in vain."
        try:
            wait_for(lambda: is_ready() or self.process.poll() is not None)
        except BaseException:
            self.kill()
            raise

    def text(self):
        return self.log.read_text()

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self):
        if self.process and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        return self.process.returncode if self.process else None


class Model(Process):
    def __init__(self):
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        super().__init__([sys.executable, "-c", MODEL], {"MODEL_PORT": str(self.port)}, f"{self.url}/livez")

    def control(self, **values):
        post(f"{self.url}/control", values)


class Api(Process):
    "The API server, with a key that may do everything."

    def __init__(self, folder, model_url, database_url=None, limits=None, **env):
        self.folder, self.port = Path(folder), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.database_url = database_url or f"sqlite:///{folder}/shop.db"
        self.store = Store(self.database_url)
        self.key, _ = self.store.create_key("test", SCOPES)
        settings = {
            "PORT": self.port,
            "MODEL_URL": model_url,
            "DATABASE_URL": self.database_url,
            "SPOOL": f"{folder}/spool",
            "RATE": 1e6,
            "BURST": 1e6,
            "FAILED_RATE": 1e6,
            "REFRESH_SECONDS": 0.5,
            **env,
        }
        super().__init__(
            [sys.executable, "-m", "gnn_ecommerce.api_server"],
            {k: str(v) for k, v in settings.items()},
            f"{self.url}/readyz",
            limits,
        )

    def client_options(self, key=None):
        key = self.key if key is None else key
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return {"base_url": self.url, "headers": headers, "timeout": 30, "trust_env": False, "verify": False}

    def client(self, key=None):
        return httpx.Client(**self.client_options(key))

    def state(self):
        return httpx.get(f"{self.url}/readyz", trust_env=False).json()

    def stop(self):
        code = super().stop()
        self.store.close()
        return code


class Load:
    "Clients that go on calling until they are told to stop, and count what came back."

    def __init__(self, api, clients=8, events=True):
        self.api, self.clients, self.events, self.name = api, clients, events, f"load-{uuid.uuid4().hex[:6]}"
        self.status, self.sources, self.failed = Counter(), Counter(), []
        self.sent, self.acknowledged, self.running = set(), set(), True

    async def _one(self, http, turn):
        n = 0
        while self.running:
            n += 1
            try:
                answer = await (self._send(http, turn, n) if self.events and n % 2 else self._ask(http, n))
                self.status[answer.status_code] += 1
                if answer.status_code >= 400:
                    self.failed.append(answer.text[:200])
            except httpx.HTTPError as err:
                self.failed.append(repr(err)[:200])

    async def _send(self, http, turn, n):
        name = f"{self.name}-{turn}-{n}"
        event = {"event_id": name, "event_type": "view", "product_id": n % 50 + 1, "customer_id": turn * 1000 + n}
        self.sent.add(name)
        answer = await http.post("/v1/events", json={"events": [event]})
        if answer.status_code in (200, 202):
            self.acknowledged.add(name)
        return answer

    async def _ask(self, http, n):
        answer = await http.get(f"/v1/customers/{n % 900 + 1}/recommendations", params={"k": 5})
        if answer.status_code == 200:
            self.sources[answer.json()["source"]] += 1
        return answer

    async def _all(self):
        async with httpx.AsyncClient(**self.api.client_options()) as http:
            await asyncio.gather(*(self._one(http, turn) for turn in range(self.clients)))

    def __enter__(self):
        self.thread = threading.Thread(target=lambda: asyncio.run(self._all()))
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.running = False
        self.thread.join()

    def report(self, record_property, **more):
        "What came back, in the test report."
        record_property("status", dict(self.status))
        record_property("lists", dict(self.sources))
        for name, value in {"events acknowledged": len(self.acknowledged), **more}.items():
            record_property(name, value)
