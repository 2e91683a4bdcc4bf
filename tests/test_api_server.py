"""The API server in a process of its own: keys, limits, odd and hostile requests. No request may be answered with a 500, whatever it is."""

import asyncio
import json
import re
import resource
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest
from conftest import ROOT
from shop import Api, Load, Model, wait_for

from gnn_ecommerce.api_server import api_settings, create_app, main
from gnn_ecommerce.shop.stores import Store

GET, SESSION = "/v1/customers/17/recommendations", "/v1/sessions/recommendations"


@pytest.fixture(scope="module")
def model():
    server = Model().start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def api(model, tmp_path_factory):
    server = Api(
        tmp_path_factory.mktemp("api"), model.url, BODY_SECONDS=1, HEAD_SECONDS=1, CORS_ORIGINS="https://shop.example"
    ).start()
    yield server
    server.stop()
    assert "Traceback" not in server.text() and '"event": "failed"' not in server.text(), server.text()[-3000:]


@pytest.fixture
def shop(api):
    with api.client() as client:
        yield client


def ids(answer):
    return [i["product_id"] for i in answer.json()["items"]]


def event(i, product=501, customer=17, kind="purchase", **more):
    return {"event_id": i, "event_type": kind, "product_id": product, "customer_id": customer, **more}


def is_problem(answer, *statuses):
    assert answer.status_code in statuses, (answer.status_code, answer.text[:300])
    assert answer.headers["content-type"] == "application/problem+json"
    found = answer.json()
    assert (
        found["status"] == answer.status_code
        and found["title"]
        and found["detail"]
        and found["instance"] == answer.headers["x-request-id"]
    )
    return found


# What it is for


def test_lists_events_and_deletion(shop, api):
    first = shop.get(GET, params={"k": 5})
    assert first.status_code == 200 and first.json()["source"] == "model" and len(ids(first)) == 5
    bought = ids(first)[0]
    body = {
        "events": [
            event(
                "buy-1",
                bought,
                recommendation_id=first.json()["recommendation_id"],
                event_time="2024-05-01T12:00:00Z",
                price=3,
            )
        ]
    }
    assert shop.post("/v1/events", json=body).json() == {
        "state": "stored",
        "received": 1,
        "stored": 1,
        "duplicates": 0,
        "ignored": 0,
    }
    assert shop.post("/v1/events", json=body).json()["duplicates"] == 1
    assert ids(shop.get(GET, params={"k": 5})) == [*ids(first)[1:], ids(first)[-1] + 1]
    assert bought in ids(shop.get(GET, params={"k": 5, "exclude": "none"}))
    basket = shop.post(SESSION, json={"basket": [5, {"product_id": 6, "event_type": "view"}], "k": 3}).json()
    assert basket["source"] == "fold_in" and [i["product_id"] for i in basket["items"]] == [7, 8, 9]
    assert ids(shop.get("/v1/products/5/similar", params={"k": 2})) == [1, 2]
    is_problem(shop.get("/v1/products/unknown/similar"), 404)
    wait_for(lambda: first.json()["recommendation_id"] in set(api.store.table("served").recommendation_id))
    assert shop.delete("/v1/customers/17").json() == {"customer_id": "17", "state": "stored"}
    after = shop.get(GET, params={"k": 5})
    assert after.json()["source"] == "popular" and bought in ids(shop.get(GET, params={"k": 300}))
    assert shop.post("/v1/events", json={"events": [event("late")]}).json()["ignored"] == 1
    for name in ("events", "served", "interactions"):
        assert "17" not in set(api.store.table(name).user_id), name


def test_newcomer_is_asked_for_again_with_what_she_looked_at(shop):
    assert shop.get("/v1/customers/new/recommendations", params={"k": 2}).json()["source"] == "popular"
    shop.post("/v1/events", json={"events": [event("look-1", 40, "new", "view")]})
    found = shop.get("/v1/customers/new/recommendations", params={"k": 2}).json()
    assert found["source"] == "fold_in" and [i["product_id"] for i in found["items"]] == [41, 42]


def test_a_purchase_is_hidden_while_others_call(api):
    with Load(api, clients=4), api.client() as shop:
        for i in range(20):
            customer, product = 500 + i, 501 + i
            product = ids(shop.get(f"/v1/customers/{customer}/recommendations"))[0]
            shop.post("/v1/events", json={"events": [event(f"hide-{i}", product, customer)]})
            assert product not in ids(shop.get(f"/v1/customers/{customer}/recommendations"))


def test_openapi_describes_it(shop):
    found = shop.get("/openapi.json").json()
    assert found["openapi"].startswith("3.1") and "HTTPValidationError" not in json.dumps(found)
    assert {"/v1/customers/{customer_id}/recommendations", "/v1/events", "/v1/sessions/recommendations"} <= set(
        found["paths"]
    )
    for path in ("/v1/events", SESSION):
        assert found["paths"][path]["post"]["requestBody"]["content"]["application/json"]["examples"]


def test_logs_and_figures_name_no_customer(api, shop):
    secret = "customer-4711-of-nowhere"
    shop.get(f"/v1/customers/{secret}/recommendations", headers={"X-Request-ID": "trace-me-1"})
    shop.post("/v1/events", json={"events": [event("log-1", 1, secret, brand="x" * 300)]})
    shop.get(f"/{secret}")
    wait_for(lambda: "trace-me-1" in api.text())
    assert secret not in api.text() + shop.get("/metrics").text and api.key not in api.text()
    line = next(json.loads(x) for x in api.text().splitlines() if "trace-me-1" in x)
    assert (
        line["route"] == "/v1/customers/{customer_id}/recommendations"
        and line["status"] == 200
        and line["key"] in api.key
    )
    assert re.search(
        r'gnn_api_requests_total\{method="GET",route="/v1/customers/\{customer_id\}/recommendations",status="200"\} [1-9]',
        shop.get("/metrics").text,
    )


def test_request_ids_come_back(shop):
    assert shop.get("/livez", headers={"X-Request-ID": "abc-1"}).headers["x-request-id"] == "abc-1"
    for odd in ("x" * 500, "a b", "{}", ""):
        assert re.fullmatch("[0-9a-f]{32}", shop.get("/livez", headers={"X-Request-ID": odd}).headers["x-request-id"])


def test_pages_of_other_origins_may_call_only_if_named(shop):
    head = {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "authorization"}
    assert (
        shop.options(GET, headers={"Origin": "https://shop.example", **head}).headers["access-control-allow-origin"]
        == "https://shop.example"
    )
    assert (
        "access-control-allow-origin"
        not in shop.options(GET, headers={"Origin": "https://evil.example", **head}).headers
    )


# Keys


def test_keys_and_scopes(api):
    only = {scope: api.store.create_key(scope, [scope])[0] for scope in ("recommend", "events", "customers", "admin")}
    calls = {
        ("GET", GET): "recommend",
        ("POST", SESSION): "recommend",
        ("GET", "/v1/products/5/similar"): "recommend",
        ("GET", "/v1/customers/3/explanations"): "recommend",
        ("POST", "/v1/events"): "events",
        ("DELETE", "/v1/customers/keys-test"): "customers",
        ("GET", "/v1/admin/keys"): "admin",
        ("POST", "/v1/admin/keys"): "admin",
        ("DELETE", "/v1/admin/keys/x"): "admin",
        ("GET", "/v1/admin/status"): "admin",
    }
    bodies = {
        SESSION: {},
        "/v1/events": {"events": [event("scope-1")]},
        "/v1/admin/keys": {"name": "x", "scopes": ["events"]},
    }
    time.sleep(1.1)
    n = 0
    for (method, path), scope in calls.items():
        body = {"json": bodies[path]} if method == "POST" else {}
        for key, expected in [
            ("", 401),
            ("nonsense", 401),
            ("gk_x_y", 401),
            (api.key[:-1] + "!", 401),
            *((k, None if s == scope else 403) for s, k in only.items()),
        ]:
            with api.client(key) as client:
                answer = client.request(method, path, **body)
            n += 1
            if expected:
                is_problem(answer, expected)
            else:
                assert answer.status_code in (200, 201, 404), (path, answer.text)
            if expected == 401:
                assert answer.headers["www-authenticate"] == "Bearer"
    print(f"\n{n} requests with no key, wrong keys and each scope: as expected")


def test_a_key_is_made_shown_once_and_revoked(api, shop):
    made = shop.post("/v1/admin/keys", json={"name": "page", "scopes": ["recommend"]}).json()
    with api.client(made["key"]) as page:
        assert page.get(GET).status_code == 200
    listed = shop.get("/v1/admin/keys").text
    assert made["key_id"] in listed and made["key"] not in listed and made["key"].split("_", 2)[2] not in listed
    assert shop.delete(f"/v1/admin/keys/{made['key_id']}").status_code == 204
    with api.client(made["key"]) as page:
        is_problem(page.get(GET), 401)
    is_problem(shop.delete(f"/v1/admin/keys/{made['key_id']}"), 404)


def test_rates_are_limited(tmp_path):
    "In this process: nothing behind it is asked."
    settings = api_settings(
        rate=5,
        burst=10,
        failed_rate=1,
        database_url=f"sqlite:///{tmp_path}/x.db",
        spool=str(tmp_path),
        model_url="http://127.0.0.1:1",
    )
    key, _ = Store(settings.database_url).create_key("x", ["admin"])

    async def calls():
        app = create_app(settings)
        async with (
            app.api.router.lifespan_context(app.api),
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as http,
        ):
            return [
                [await http.get("/v1/admin/status", headers={"Authorization": f"Bearer {k}"}) for _ in range(20)]
                for k in (key, "gk_x_y")
            ] + [[await http.get("/livez")]]

    good, bad, free = asyncio.run(calls())
    assert [a.status_code for a in good].count(200) in (10, 11, 12) and [a.status_code for a in bad].count(401) in (
        10,
        11,
    )
    assert (
        int(is_problem(good[-1], 429) and good[-1].headers["retry-after"]) >= 1
        and is_problem(bad[-1], 429)
        and free[0].status_code == 200
    )


# Abuse

WRONG = [
    b"",
    b"{",
    b"[]",
    b"null",
    b'"x"',
    b"1e999",
    b"\xff\xfe",
    b"[" * 100_000,
    b'{"a":' * 50_000,
    b'{"basket": ' + b"[" * 20_000 + b"]" * 20_000 + b"}",
    b'{"k": ' + b"9" * 5000 + b"}",
    b'{"k": NaN}',
    b'{"k": 1e3}',
    b'{"k": -1}',
    b'{"k": 1000000000}',
    b'{"k": true}',
    b'{"k": "5"}',
    b'{"basket": {"a": 1}}',
    b'{"basket": [null]}',
    b'{"basket": [1.5]}',
    b'{"basket": [NaN]}',
    b'{"basket": [""]}',
    b'{"basket": ["a\\u0000"]}',
    b'{"basket": ["\\ud800"]}',
    b'{"basket": [99999999999999999999999]}',
    b'{"min_price": Infinity}',
    b'{"min_price": -1}',
    b'{"unknown": 1}',
    b'{"category": "x"}',
    b'{"category": ["%s"]}' % (b"x" * 300),
    b'{"seed": -1}',
    json.dumps({"basket": list(range(2000))}).encode(),
    json.dumps({"basket": ["x" * 300]}).encode(),
    json.dumps({"exclude_products": list(range(10_001))}).encode(),
]


def test_wrong_bodies(shop):
    counts = {}
    for path in (SESSION, "/v1/events", "/v1/admin/keys"):
        for body in WRONG:
            answer = shop.post(path, content=body, headers={"Content-Type": "application/json"})
            is_problem(answer, 400, 413, 422)
            counts[answer.status_code] = counts.get(answer.status_code, 0) + 1
        is_problem(shop.post(path, content=b"x" * (1 << 20) + b"x", headers={"Content-Type": "application/json"}), 413)
        is_problem(
            shop.post(path, content=iter([b"x" * 65536] * 20), headers={"Content-Type": "application/json"}), 413
        )
        is_problem(shop.post(path, content=b"{}", headers={"Content-Type": "text/plain"}), 400, 415, 422)
    for bad in (
        {"event_type": "buy"},
        {"price": -1},
        {"price": "NaN"},
        {"event_time": "9999-12-31T23:59:59Z"},
        {"event_time": "0001-01-01T00:00:00+23:59"},
        {"event_time": 5},
        {"customer_id": None},
        {"event_id": 5},
        {"event_id": "nan"},
        {"x": 1},
    ):
        is_problem(shop.post("/v1/events", json={"events": [{**event("bad"), **bad}]}), 422)
    print(f"\n{sum(counts.values())} wrong bodies: {counts}, 0 of them 500")


def test_wrong_addresses(shop):
    for k in ("0", "-1", "1001", "1e9", "x", "NaN", "9" * 5000, ""):
        is_problem(shop.get(GET, params={"k": k}), 422)
    for bad in (
        {"min_price": "inf"},
        {"max_price": "nan"},
        {"exclude": "all"},
        {"category": "x" * 300},
        {"brand": ["b"] * 101},
    ):
        is_problem(shop.get(GET, params=bad), 422)
    for path in (
        "/",
        "/v1",
        "/v2/customers/1",
        "/v1/customers",
        "/v1/customers//recommendations",
        "/v1/../etc/passwd",
        "/%00",
        "/v1/products/5",
    ):
        is_problem(shop.get(path), 404, 405, 422)
    is_problem(shop.put(GET), 405)
    is_problem(shop.get("/v1/customers/" + "x" * 300 + "/recommendations"), 422)
    is_problem(shop.get("/v1/customers/" + "x" * 9000 + "/recommendations"), 414)
    for odd in (
        "日本語",
        "👩‍🚀",
        "a/b",
        "..",
        "%2e%2e%2f",
        "'; DROP TABLE events; --",
        "-0",
        "007",
        "9" * 30,
        "²",
        "null0",
        "x" * 256,
    ):
        answer = shop.get(
            "/v1/customers/" + "".join(f"%{b:02x}" for b in odd.encode()) + "/recommendations", params={"k": 1}
        )
        assert answer.status_code == 200, (odd, answer.text)
    for none in ("%00", "nan", "None", "%ff%00", "%20"):
        is_problem(shop.get(f"/v1/customers/{none}/recommendations"), 422)


def raw(api, data, wait=3.0):
    "What comes back for bytes on a socket; b'' if the connection is closed without a word."
    with socket.create_connection(("127.0.0.1", api.port), timeout=wait) as s:
        s.sendall(data)
        out = b""
        while part := s.recv(65536):
            out += part
        return out


def test_what_is_no_http(api):
    for data in (
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 20 + b"x" * 200_000 + b"\r\n\r\n",
        b"GET /" + b"x" * 1_000_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
    ):
        try:
            assert raw(api, data).split(b" ")[1:2] in ([b"400"], [])
        except ConnectionError:
            pass
    assert b" 413 " in raw(api, b"POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999999\r\n\r\n")


def drip(api, data, more=b"x", every=0.1):
    "Send something, then byte after byte (none for every=0) until the server has enough: its answer, and after how long."
    start, out = time.monotonic(), b""
    with socket.create_connection(("127.0.0.1", api.port), timeout=5) as s:
        s.sendall(data)
        s.settimeout(every or 5)
        while time.monotonic() - start < 5:
            try:
                if not (part := s.recv(65536)):
                    break
                out += part
            except TimeoutError:
                s.send(more)
            except ConnectionError:
                break
    return out, time.monotonic() - start


def test_slow_clients_are_let_go(api, shop):
    "Heads and bodies that come byte by byte, and such as stop half-way: 408 when their time is over (1 s here), while others are answered."
    body, head = b"POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{", b"GET /livez HTTP/1.1\r\nHost"
    slow = [(body, b" "), (head, b"x"), (body, b" ", 0), (head, b"x", 0)] * 10
    with ThreadPoolExecutor(len(slow)) as threads:
        running = [threads.submit(drip, api, *what) for what in slow]
        answers = [shop.get(GET).status_code for _ in range(20)]
        assert answers == [200] * 20 and not any(r.done() for r in running)
        found = [r.result() for r in running]
    for out, seconds in found:
        first, _, rest = out.partition(b"\r\n\r\n")
        assert (
            b" 408 " in first.splitlines()[0]
            and b"application/problem+json" in first
            and b"connection: close" in first.lower()
            and json.loads(rest)["status"] == 408
        )
        assert 0.9 < seconds < 3
    print(
        f"\n{len(slow)} slow heads and bodies: 408 after {min(t for _, t in found):.2f} to {max(t for _, t in found):.2f} s; meanwhile 20 requests, 0 failed"
    )


def rss(pid):
    return int(re.search(r"VmRSS:\s+(\d+) kB", open(f"/proc/{pid}/status").read())[1]) * 1024


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")
def test_two_thousand_idle_connections(model, tmp_path):
    "Half of them have asked once, half have never said a word. Others are answered beside them, memory is bounded, and all are closed in time."
    n, idle = 2000, 6
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < n + 500:
        pytest.skip(f"expected {n + 500} open files to be allowed, found {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, n + 500) if soft != resource.RLIM_INFINITY else soft, hard))
    api, opened = Api(tmp_path, model.url, IDLE_SECONDS=idle, HEAD_SECONDS=idle).start(), []
    try:
        with api.client() as shop:
            for _ in range(100):
                assert shop.get(GET).status_code == 200
            before, start = rss(api.process.pid), time.monotonic()
            for i in range(n):
                s = socket.create_connection(("127.0.0.1", api.port), timeout=30)
                if i % 2:
                    s.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
                opened.append(s)
            for s in opened[1::2]:
                out = b""
                while not out.endswith(b'{"status":"ok"}'):
                    out += s.recv(4096) or pytest.fail(f"closed too early, after {out}")
            took = time.monotonic() - start
            there = sum(c.status == "ESTABLISHED" for c in psutil.Process(api.process.pid).net_connections("tcp"))
            more, start = rss(api.process.pid) - before, time.monotonic()
            assert [shop.get(GET).status_code for _ in range(20)] == [200] * 20
            seconds = (time.monotonic() - start) / 20
            assert (there >= n or took > idle / 2) and more < 64 << 20 and seconds < 1
            start, left = time.monotonic(), []
            for s in opened:
                s.settimeout(max(0.01, 2 * idle + 5 - (time.monotonic() - start)))
                left.append(s.recv(4096))
            assert left == [b""] * n, "closed without a word"
            closed = time.monotonic() - start
            wait_for(
                lambda: (
                    sum(c.status == "ESTABLISHED" for c in psutil.Process(api.process.pid).net_connections("tcp")) < 20
                ),
                10,
            )
            figures = shop.get("/metrics").text
            assert not re.search(r'gnn_api_requests_total\{[^}]*status="5\d\d"\}', figures), figures
    finally:
        for s in opened:
            s.close()
        api.stop()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert "Traceback" not in api.text() and '"event": "failed"' not in api.text(), api.text()[-3000:]
    print(
        f"\n{there:,} idle connections (opened in {took:.1f} s): {more / n / 1024:.1f} kB each, {before / 2**20:.0f} -> {(before + more) / 2**20:.0f} MB; a request beside them {1000 * seconds:.1f} ms; all closed {closed:.1f} s later, 0 answers 5xx"
    )


@pytest.mark.slow
def test_schemathesis_finds_no_server_error(api, tmp_path):
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,negative_data_rejection"
    done = subprocess.run(
        [
            "schemathesis",
            "run",
            f"{api.url}/openapi.json",
            "--header",
            f"Authorization: Bearer {api.key}",
            "--checks",
            checks,
            "--max-examples",
            "10",
            "--seed",
            "1",
            "--no-color",
            "--phases",
            "examples,coverage,fuzzing",
            "--generation-database",
            "none",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    print(
        "\n" + "\n".join(line.strip() for line in done.stdout.splitlines() if "generated" in line or "Tested:" in line)
    )


# Start and stop


def test_stop_ends_what_runs_and_keeps_what_was_taken(model, tmp_path):
    api = Api(tmp_path, model.url, MODEL_TIMEOUT=5).start()
    model.control(delay=0.5)
    try:
        with ThreadPoolExecutor(9) as threads, api.client() as shop:
            running = [threads.submit(shop.get, f"/v1/customers/{i}/recommendations") for i in range(1, 9)]
            time.sleep(0.25)
            api.process.terminate()
            answers = [r.result() for r in running]
        assert [a.status_code for a in answers] == [200] * 8 and all(a.json()["source"] == "model" for a in answers)
        api.process.wait(10)
        assert len(api.store.table("served")) == 8
    finally:
        model.control(delay=0)
        api.stop()


def test_a_wrong_setting_stops_it_with_its_name(monkeypatch, capsys):
    monkeypatch.setenv("PORT", "http")
    assert main() == 1 and "PORT: expected" in capsys.readouterr().err
    monkeypatch.setenv("PORT", "0")
    monkeypatch.setenv("DATABASE_URL", "mysql://user:secret@host/x")
    assert main() == 1 and "secret" not in capsys.readouterr().err


def test_it_brings_no_duckdb():
    code = "import sys, gnn_ecommerce.api_server; print([m for m in ('duckdb', 'ibis', 'papermill', 'matplotlib', 'torch', 'numba') if m in sys.modules])"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )
