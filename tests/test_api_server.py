"""The API server in a process of its own: keys, limits, odd and hostile requests. No answer may be a 500."""

import asyncio
import json
import re
import resource
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest
from conftest import ROOT
from shop import Api, Load, Model, wait_for

from gnn_ecommerce.api_server import api_settings, create_app, main
from gnn_ecommerce.shop.stores import SCOPES, Store

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
    problem_free(server)


@pytest.fixture
def shop(api):
    with api.client() as client:
        yield client


def ids(answer):
    return [i["product_id"] for i in answer.json()["items"]]


def event(i, product=501, customer=17, kind="purchase", **more):
    return {"event_id": i, "event_type": kind, "product_id": product, "customer_id": customer, **more}


def is_problem(answer, *statuses):
    "The body of a problem with one of these statuses."
    assert answer.status_code in statuses, (answer.status_code, answer.text[:300])
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert (body["status"], body["instance"]) == (answer.status_code, answer.headers["x-request-id"])
    assert body["title"] and body["detail"], body
    return body


def problem_free(api):
    "Nothing went wrong inside that the answers did not show."
    assert "Traceback" not in api.text() and '"event": "failed"' not in api.text(), api.text()[-3000:]


# What it is for


def list_of(shop, customer, **params):
    "Source and products of a customer's list."
    body = shop.get(f"/v1/customers/{customer}/recommendations", params={"k": 5, **params}).json()
    return body["source"], [i["product_id"] for i in body["items"]]


def send(shop, *events):
    return shop.post("/v1/events", json={"events": list(events)}).json()


def test_a_customer_gets_a_list_of_the_model(shop):
    assert list_of(shop, 17) == ("model", [18, 19, 20, 21, 22])


def test_events_are_stored_each_once(shop):
    body = {"state": "stored", "received": 1, "ignored": 0}
    bought = event("buy-1", 40, 18, event_time="2024-05-01T12:00:00Z", price=3, recommendation_id="r")
    assert send(shop, bought) == {**body, "stored": 1, "duplicates": 0}
    assert send(shop, bought) == {**body, "stored": 0, "duplicates": 1}


def test_what_was_bought_is_hidden_unless_asked_for(shop):
    send(shop, event("buy-2", 22, 21))
    assert list_of(shop, 21) == ("model", [23, 24, 25, 26, 27])
    assert list_of(shop, 21, exclude="none") == ("model", [22, 23, 24, 25, 26])


@pytest.mark.parametrize("purpose", ["buy_again", "all"])
def test_what_was_bought_may_come_again_if_the_purpose_says_so(shop, purpose):
    send(shop, event(f"again-{purpose}", 24, 21))
    ask = lambda value: shop.get("/v1/customers/21/recommendations", params={"purpose": value, "k": 100})  # noqa: E731
    assert 24 in ids(ask(purpose)) and 24 not in ids(ask("discover"))


def test_an_unknown_purpose_is_refused(shop):
    problem = is_problem(shop.get("/v1/customers/21/recommendations", params={"purpose": "sell"}), 422)
    assert "buy_again" in problem["detail"]


def test_a_session_is_folded_in(shop):
    body = shop.post(SESSION, json={"basket": [5, {"product_id": 6, "event_type": "view"}], "k": 3}).json()
    assert (body["source"], [i["product_id"] for i in body["items"]]) == ("fold_in", [7, 8, 9])


def test_similar_products(shop):
    assert ids(shop.get("/v1/products/5/similar", params={"k": 2})) == [1, 2]
    is_problem(shop.get("/v1/products/unknown/similar"), 404)


@pytest.mark.parametrize(("query", "fix"), [("n=3", ""), ("exlude=seen", "did you mean exclude?"), ("K=3", "")])
def test_an_unknown_parameter_is_named_with_the_near_one(shop, query, fix):
    answer = shop.get(f"/v1/customers/1/recommendations?{query}")
    assert answer.status_code == 422 and f"found '{query.split('=')[0]}'" in answer.json()["detail"]
    assert fix in answer.json()["detail"]


def test_lists_are_recorded(shop, api):
    given = shop.get(GET).json()["recommendation_id"]
    wait_for(lambda: given in set(api.store.table("served").recommendation_id))


def test_a_deleted_customer_is_forgotten(shop, api):
    send(shop, event("del-1", 30, 27))
    assert shop.delete("/v1/customers/27").json() == {"customer_id": "27", "state": "stored"}
    assert list_of(shop, 27)[0] == "popular"
    assert send(shop, event("del-2", 30, 27))["ignored"] == 1
    assert [t for t in ("events", "served", "interactions") if "27" in set(api.store.table(t).user_id)] == []


def test_a_newcomer_is_asked_for_again_with_what_they_looked_at(shop):
    assert list_of(shop, "new")[0] == "popular"
    send(shop, event("look-1", 40, "new", "view"))
    assert list_of(shop, "new", k=2) == ("fold_in", [41, 42])


def test_a_purchase_is_hidden_while_others_call(api):
    with Load(api, clients=4), api.client() as shop:
        for customer in range(500, 520):
            product = list_of(shop, customer)[1][0]
            send(shop, event(f"hide-{customer}", product, customer))
            assert product not in list_of(shop, customer)[1]


def test_openapi_describes_it(shop):
    schema = shop.get("/openapi.json").json()
    assert schema["openapi"].startswith("3.1")
    assert "HTTPValidationError" not in json.dumps(schema)
    paths = {"/v1/customers/{customer_id}/recommendations", "/v1/events", SESSION, "/v1/admin/keys", "/metrics"}
    assert paths <= set(schema["paths"])
    assert schema["servers"] == [{"url": "/", "description": "this server"}]
    errors = schema["paths"][SESSION]["post"]["responses"]
    assert {"200", "401", "403", "422", "429", "503", "default"} <= set(errors)
    assert (
        list(errors["429"]["content"]) == ["application/problem+json"] and "Retry-After" in errors["429"]["description"]
    )


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_a_page_shows_the_routes_without_key_and_network(shop, path):
    page = shop.get(path)
    assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
    assert "/openapi.json" in page.text and "https:" not in page.text and "http:" not in page.text


@pytest.mark.parametrize("path", ["/v1/events", SESSION])
def test_openapi_has_examples(shop, path):
    route = shop.get("/openapi.json").json()["paths"][path]["post"]
    assert route["requestBody"]["content"]["application/json"]["examples"]


SECRET = "customer-4711-of-nowhere"


@pytest.fixture(scope="module")
def traced(api):
    "The log's line about a request, after requests with a customer's id in path and body."
    with api.client() as shop:
        shop.post("/v1/events", json={"events": [event("log-1", 1, SECRET, brand="x" * 300)]})
        shop.get(f"/{SECRET}")
        shop.get(f"/v1/customers/{SECRET}/recommendations", headers={"X-Request-ID": "trace-me-1"})
    wait_for(lambda: "trace-me-1" in api.text())
    return next(json.loads(line) for line in api.text().splitlines() if "trace-me-1" in line)


def test_log_and_metrics_name_no_customer(api, shop, traced):
    assert SECRET not in api.text() + shop.get("/metrics").text
    assert api.key not in api.text()


def test_a_line_of_the_log(api, traced):
    line = {name: traced[name] for name in ("route", "status", "source")}
    route = "/v1/customers/{customer_id}/recommendations"
    assert line == {"route": route, "status": 200, "source": "popular"}
    assert traced["key"] == api.key.split("_")[1]


def test_metrics_count_by_route(shop, traced):
    labels = 'method="GET",route="/v1/customers/{customer_id}/recommendations",status="200"'
    assert re.search(rf"gnn_api_requests_total\{{{re.escape(labels)}\}} [1-9]", shop.get("/metrics").text)


def test_request_ids_come_back(shop):
    assert shop.get("/livez", headers={"X-Request-ID": "abc-1"}).headers["x-request-id"] == "abc-1"
    for odd in ("x" * 500, "a b", "{}", ""):
        assert re.fullmatch("[0-9a-f]{32}", shop.get("/livez", headers={"X-Request-ID": odd}).headers["x-request-id"])


@pytest.mark.parametrize(
    "origin,allowed", [("https://shop.example", "https://shop.example"), ("https://evil.example", None)]
)
def test_pages_of_other_origins_may_call_only_if_named(shop, origin, allowed):
    head = {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "authorization"}
    answer = shop.options(GET, headers={"Origin": origin, **head})
    assert answer.headers.get("access-control-allow-origin") == allowed


# Keys


CALLS = {
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
    ("GET", "/v1/admin/monitor"): "admin",
}
BODIES = {
    SESSION: {},
    "/v1/events": {"events": [event("scope-1")]},
    "/v1/admin/keys": {"name": "x", "scopes": ["events"]},
}


@pytest.fixture(scope="module")
def scoped(api):
    "A key for each scope, which the server knows."
    keys = {scope: api.store.create_key(scope, [scope])[0] for scope in SCOPES}
    for key in keys.values():
        with api.client(key) as client:
            wait_for(lambda: client.get(GET).status_code != 401)
    return keys


def call(api, key, method, path):
    with api.client(key) as client:
        return client.request(method, path, **({"json": BODIES[path]} if method == "POST" else {}))


@pytest.mark.parametrize("method,path", CALLS)
def test_a_key_needs_the_scope_of_the_route(api, scoped, method, path):
    for scope, key in scoped.items():
        answer = call(api, key, method, path)
        if scope == CALLS[method, path]:
            assert answer.status_code in (200, 201, 404), answer.text
        else:
            is_problem(answer, 403)


@pytest.mark.parametrize("key", ["", "nonsense", "gk_x_y", None])
def test_no_route_answers_without_a_valid_key(api, key):
    for method, path in CALLS:
        answer = call(api, api.key[:-1] + "!" if key is None else key, method, path)
        is_problem(answer, 401)
        assert answer.headers["www-authenticate"] == "Bearer"


@pytest.fixture
def made(shop):
    "A new key, as the answer to its making has it."
    return shop.post("/v1/admin/keys", json={"name": "page", "scopes": ["recommend"]}).json()


def test_a_new_key_is_valid_at_once_and_a_revoked_one_no_more(api, shop, made):
    with api.client(made["key"]) as page:
        assert page.get(GET).status_code == 200
        assert shop.delete(f"/v1/admin/keys/{made['key_id']}").status_code == 204
        is_problem(page.get(GET), 401)
    is_problem(shop.delete(f"/v1/admin/keys/{made['key_id']}"), 404)


def test_a_key_is_shown_once(shop, made):
    listed = shop.get("/v1/admin/keys").text
    assert made["key_id"] in listed
    assert made["key"].split("_", 2)[2] not in listed


@pytest.fixture(scope="module")
def limited(tmp_path_factory):
    "Answers to 20 requests with a key, 20 without one, and one that needs none, in this process."
    folder = tmp_path_factory.mktemp("rates")
    settings = api_settings(
        rate=1e-3,
        burst=10,
        failed_rate=1e-3,
        database_url=f"sqlite:///{folder}/x.db",
        spool=str(folder),
        model_url="http://127.0.0.1:1",
    )
    key, _ = Store(settings.database_url).create_key("x", ["admin"])

    async def calls():
        app = create_app(settings)
        http = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x")
        async with app.router.lifespan_context(app), http:
            by_key = {
                k: [await http.get("/v1/admin/status", headers={"Authorization": f"Bearer {k}"}) for _ in range(20)]
                for k in (key, "gk_x_y")
            }
            return [*by_key.values(), [await http.get("/livez")]]

    return asyncio.run(calls())


def test_requests_with_a_key_are_limited(limited):
    assert [a.status_code for a in limited[0]] == [200] * 10 + [429] * 10
    assert int(limited[0][-1].headers["retry-after"]) >= 1


def test_attempts_without_a_key_are_limited(limited):
    assert [a.status_code for a in limited[1]] == [401] + [429] * 19
    is_problem(limited[1][-1], 429)


def test_probes_are_not_limited(limited):
    assert [a.status_code for a in limited[2]] == [200]


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


JSON = {"Content-Type": "application/json"}
TAKE_BODIES = (SESSION, "/v1/events", "/v1/admin/keys")


@pytest.mark.parametrize("path", TAKE_BODIES)
def test_wrong_bodies(shop, path):
    for body in WRONG:
        is_problem(shop.post(path, content=body, headers=JSON), 400, 413, 422)


@pytest.mark.parametrize("path", TAKE_BODIES)
def test_bodies_that_are_too_large(shop, path):
    is_problem(shop.post(path, content=b"x" * (1 << 20) + b"x", headers=JSON), 413)
    is_problem(shop.post(path, content=iter([b"x" * 65536] * 20), headers=JSON), 413)


@pytest.mark.parametrize("path", TAKE_BODIES)
def test_bodies_of_another_type(shop, path):
    is_problem(shop.post(path, content=b"{}", headers={"Content-Type": "text/plain"}), 400, 415, 422)


@pytest.mark.parametrize(
    "wrong",
    [
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
    ],
)
def test_wrong_events(shop, wrong):
    is_problem(shop.post("/v1/events", json={"events": [{**event("bad"), **wrong}]}), 422)


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


def read_all(s):
    "What a socket gets until it is closed; then it is closed here too."
    out = b""
    with s:
        while part := s.recv(65536):
            out += part
    return out


def raw(api, data):
    "What comes back for bytes on a socket; b'' if the connection is closed without a word."
    s = socket.create_connection(("127.0.0.1", api.port), timeout=30)
    s.sendall(data)
    return read_all(s)


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


def drip(api, data, more):
    "Send something, then byte after byte (none if `more` is empty) until the server has enough: its answer."
    out = b""
    with socket.create_connection(("127.0.0.1", api.port), timeout=30) as s:
        s.sendall(data)
        s.settimeout(0.1 if more else 30)
        while True:
            try:
                if not (part := s.recv(65536)):
                    return out
                out += part
            except TimeoutError:
                s.send(more)
            except ConnectionError:
                return out


BODY, HEAD = b"POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{", b"GET /livez HTTP/1.1\r\nHost"


@pytest.fixture(scope="module")
def dripped(api):
    "What 40 clients got that send byte by byte, or stop half-way; and the status of 20 requests beside them."
    slow = [(BODY, b" "), (HEAD, b"x"), (BODY, b""), (HEAD, b"")] * 10
    with ThreadPoolExecutor(len(slow)) as threads, api.client() as shop:
        running = [threads.submit(drip, api, *what) for what in slow]
        beside = [shop.get(GET).status_code for _ in range(20)]
        return [r.result() for r in running], beside


def test_slow_clients_are_let_go(dripped):
    "408 as a problem when their time is over (1 s here), whatever they send slowly."
    for answer in dripped[0]:
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.splitlines()[0].split()[1] == b"408"
        assert {b"content-type: application/problem+json", b"connection: close"} <= set(head.lower().splitlines())
        assert json.loads(body)["status"] == 408


def test_others_are_answered_beside_slow_clients(dripped):
    assert dripped[1] == [200] * 20


@pytest.fixture(scope="module")
def patient(model, tmp_path_factory):
    "A server that waits three seconds for a head, a second for the next one, and five minutes for a body."
    server = Api(
        tmp_path_factory.mktemp("patient"), model.url, IDLE_SECONDS=1, HEAD_SECONDS=3, BODY_SECONDS=300
    ).start()
    yield server
    server.stop()
    problem_free(server)


def open_sockets(api, n, data=b""):
    "n connections, on each of which some bytes are sent."
    opened = []
    for _ in range(n):
        opened.append(socket.create_connection(("127.0.0.1", api.port), timeout=30))
        opened[-1].sendall(data)
    return opened


def status_of(answer):
    return int(answer.split()[1])


def test_slow_clients_that_are_in_time_are_served_while_others_are_let_go(patient):
    body = json.dumps({"basket": [5], "k": 1}).encode()
    names = {"Host": "x", "Authorization": f"Bearer {patient.key}", "Content-Type": "application/json"}
    names |= {"Content-Length": len(body), "Connection": "close"}
    head = "\r\n".join([f"POST {SESSION} HTTP/1.1", *(f"{name}: {value}" for name, value in names.items()), "\r\n"])
    in_time, late = open_sockets(patient, 20, head.encode() + body[:10]), open_sockets(patient, 20, HEAD)
    refused = [status_of(read_all(s)) for s in late]
    for s in in_time:
        s.sendall(body[10:])
    assert [refused, [status_of(read_all(s)) for s in in_time]] == [[408] * 20, [200] * 20]


def rss(pid):
    return psutil.Process(pid).memory_info().rss


def connected(api):
    "How many clients are connected. (The server is a client of the model server.)"
    connections = psutil.Process(api.process.pid).net_connections("tcp")
    return sum(con.status == "ESTABLISHED" and con.laddr.port == api.port for con in connections)


def connect(api, n):
    "Connections of which every second one has asked once, and the others have never said a word."
    opened = open_sockets(api, n)
    for s in opened[1::2]:
        s.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
    for s in opened[1::2]:
        out = b""
        while not out.endswith(b'{"status":"ok"}'):
            out += s.recv(4096) or pytest.fail(f"closed too early, after {out}")
    return opened


@pytest.fixture
def open_files():
    "As many open files as two thousand connections need."
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2500:
        pytest.skip(f"expected 2,500 open files to be allowed, found {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2500) if soft != resource.RLIM_INFINITY else soft, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_two_thousand_idle_connections(model, tmp_path, open_files, record_property):
    "Others are answered beside them, and memory is bounded."
    n, opened = 2000, []
    api = Api(tmp_path, model.url, IDLE_SECONDS=300, HEAD_SECONDS=300).start()
    try:
        with api.client() as shop:
            assert [shop.get(GET).status_code for _ in range(100)] == [200] * 100
            before = rss(api.process.pid)
            opened = connect(api, n)
            assert connected(api) >= n
            record_property("bytes a connection", (rss(api.process.pid) - before) // n)
            assert rss(api.process.pid) - before < 64 << 20
            assert [shop.get(GET).status_code for _ in range(20)] == [200] * 20
            assert not re.search(r'gnn_api_requests_total\{[^}]*status="5\d\d"\}', shop.get("/metrics").text)
    finally:
        for s in opened:
            s.close()
        api.stop()
    problem_free(api)


def test_idle_connections_are_closed_without_a_word(patient):
    assert [read_all(s) for s in connect(patient, 20)] == [b""] * 20
    wait_for(lambda: connected(patient) == 0)


@pytest.mark.slow
def test_schemathesis_finds_no_server_error(api, tmp_path):
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    options = {
        "header": f"Authorization: Bearer {api.key}",
        "checks": f"{checks},negative_data_rejection",
        "max-examples": "10",
        "seed": "1",
        "phases": "examples,coverage,fuzzing",
        "generation-database": "none",
    }
    command = ["schemathesis", "run", f"{api.url}/openapi.json", "--no-color"]
    command += [word for name, value in options.items() for word in (f"--{name}", value)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


# Start and stop


def test_stop_ends_what_runs_and_keeps_what_was_taken(model, tmp_path):
    api = Api(tmp_path, model.url, MODEL_TIMEOUT=5).start()
    model.control(delay=2)
    try:
        with ThreadPoolExecutor(9) as threads, api.client() as shop:
            running = [threads.submit(shop.get, f"/v1/customers/{i}/recommendations") for i in range(1, 9)]
            wait_for(lambda: "gnn_api_requests_running 9.0" in shop.get("/metrics").text)  # 8, and this one
            api.process.terminate()
            answers = [r.result() for r in running]
        assert [(a.status_code, a.json()["source"]) for a in answers] == [(200, "model")] * 8
        api.process.wait(30)
        assert len(api.store.table("served")) == 8
    finally:
        model.control(delay=0)
        api.stop()


def test_a_wrong_setting_stops_it_with_its_name(monkeypatch, capsys):
    monkeypatch.setenv("PORT", "http")
    assert main() == 1
    assert "PORT: expected" in capsys.readouterr().err


def test_a_wrong_address_of_the_database_is_not_repeated(monkeypatch, capsys):
    monkeypatch.setenv("DATABASE_URL", "mysql://user:secret@host/x")
    assert main() == 1
    assert "secret" not in capsys.readouterr().err


def test_it_brings_no_duckdb():
    heavy = "('duckdb', 'ibis', 'papermill', 'matplotlib', 'torch', 'numba')"
    code = f"import sys, gnn_ecommerce.api_server; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
