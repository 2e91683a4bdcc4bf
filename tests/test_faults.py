"""What breaks behind the API server, under load: killed, slow and broken servers, a killed database, full disks."""

import os
import resource
import signal
import subprocess
import threading

import psutil
import pytest
from shop import Api, Load, Model, wait_for

from gnn_ecommerce.run.processes import ProcessRunner, Program
from gnn_ecommerce.shop.stores import Event

GET = "/v1/customers/17/recommendations"


@pytest.fixture(scope="module")
def model():
    "A model server under a supervisor, as `make serve` has it."
    server, messages = Model(), []
    server.program = Program("model server", server.command, server.env, server.ready)
    watch = ProcessRunner([server.program], messages.append)
    watch.start()
    thread = threading.Thread(target=watch.run)
    thread.start()
    yield server
    watch.stop()
    thread.join()
    watch.end()
    assert len(messages) == server.program.starts - 1


@pytest.fixture(scope="module")
def api(model, postgres, tmp_path_factory):
    server = Api(tmp_path_factory.mktemp("faults"), model.url, postgres.database(), MODEL_TIMEOUT=0.3).start()
    yield server
    server.stop()
    assert "Traceback" not in server.text() and '"event": "failed"' not in server.text(), server.text()[-3000:]


@pytest.fixture(autouse=True)
def repaired(request):
    "Whatever a test has broken works again for the next one."
    yield
    if "postgres" in request.fixturenames and not (server := request.getfixturevalue("postgres")).answers():
        server.start()


def all_there(api, load):
    "Every acknowledged event is stored, each once, and nothing that was not sent."
    wait_for(lambda: api.state()["spool"] == 0)
    names = [e for e in api.store.table("events", columns=["event_id"]).event_id if e.startswith(load.name)]
    assert len(names) == len(set(names))
    assert load.acknowledged <= set(names) <= load.sent


def back(api):
    "Database and model server are there again, and nothing waits."
    state = api.state()
    return [state[key] for key in ("store", "model", "circuit", "spool")] == ["up", "up", "closed", 0]


def products(answer):
    return [i["product_id"] for i in answer.json()["items"]]


def post_event(shop, name, event_type, product, customer):
    event = {"event_id": name, "event_type": event_type, "product_id": product, "customer_id": customer}
    return shop.post("/v1/events", json={"events": [event]})


def test_model_server_killed_under_load_with_a_supervisor(api, model, record_property):
    wait_for(lambda: api.state()["popular"] == 200)
    with Load(api) as load:
        wait_for(lambda: load.sources["model"] > 10)
        model.program.process.send_signal(signal.SIGKILL)
        model.program.process.wait()
        assert api.state()["model"] == "down" or model.program.starts == 2
        wait_for(lambda: load.sources["fallback"] > 10)
        wait_for(lambda: model.program.starts == 2 and model.program.is_ready() and api.state()["circuit"] == "closed")
        before = load.sources["model"]
        wait_for(lambda: load.sources["model"] > before + 10)
    load.report(record_property)
    all_there(api, load)
    assert load.failed == []


@pytest.fixture
def repaired_model(api, model):
    wait_for(lambda: api.state()["popular"] == 200)
    yield model
    model.control(delay=0, status=200, garbage=False)
    with api.client() as shop:
        wait_for(lambda: shop.get(GET).json()["source"] == "model")


FAULTS = {"slow": {"delay": 5}, "500": {"status": 500}, "404": {"status": 404}, "nonsense": {"garbage": True}}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_model_server_is_answered_for(api, repaired_model, fault):
    "By a marked fallback; and the circuit breaker spares most requests the wait."
    repaired_model.control(**FAULTS[fault])
    with api.client() as shop:
        refused = shop.get("/v1/admin/status").json()["model_calls"]["refused"]
        answers = [shop.get(GET, params={"k": 4}) for _ in range(8)] + [
            shop.get("/v1/products/5/similar", params={"k": 4}),
            shop.post("/v1/sessions/recommendations", json={"basket": [1], "k": 4}),
            shop.get("/v1/customers/17/explanations", params={"k": 4}),
        ]
        bodies = [a.json() for a in answers]
        assert [(b["source"], b["fallback"], len(b["items"])) for b in bodies] == [("fallback", True, 4)] * 11
        assert shop.get("/v1/admin/status").json()["model_calls"]["refused"] > refused


def test_the_fallback_filters_and_hides_what_was_bought(api, repaired_model):
    repaired_model.control(status=500)
    with api.client() as shop:
        wait_for(lambda: shop.get(GET).json()["source"] == "fallback")
        assert products(shop.get(GET, params={"category": "lips", "max_price": 9, "k": 5})) == [1, 3, 5, 7, 9]
        post_event(shop, "b", "purchase", 3, 17)
        assert products(shop.get(GET, params={"category": "lips", "max_price": 9, "k": 5})) == [1, 5, 7, 9]


def test_model_server_that_was_never_there(tmp_path):
    api = Api(tmp_path, "http://127.0.0.1:1")
    api.store.add_events([Event(f"{i}-{n}", "purchase", i, n) for i in range(1, 6) for n in range(i)])
    api.start()
    try:
        with api.client() as shop:
            wait_for(lambda: api.state()["popular"] == 5)
            answer = shop.get(GET, params={"k": 3})
            assert (answer.json()["source"], products(answer)) == ("fallback", [5, 4, 3])
            assert "model_version" not in answer.json()
    finally:
        api.stop()


def test_postgres_killed_under_load(api, postgres, record_property):
    customer = "/v1/customers/717/recommendations"
    with api.client() as shop:
        post_event(shop, "before", "purchase", 118, 717)
        shop.get(customer)
        with Load(api) as load:
            wait_for(lambda: len(load.acknowledged) > 20)
            postgres.kill()
            wait_for(lambda: load.status[202] > 20 and api.state()["store"] == "down")
            answer = post_event(shop, "during", "purchase", 119, 717)
            assert (answer.status_code, answer.json()) == (202, {"state": "spooled", "received": 1})
            assert shop.delete("/v1/customers/716").status_code == 202
            wait_for(lambda: products(shop.get(customer, params={"k": 2})) == [120, 121])
            wait_for(lambda: shop.get("/v1/customers/716/recommendations").json()["source"] == "popular")
            postgres.start()
            wait_for(lambda: back(api))
            at = load.status[200]
            wait_for(lambda: load.status[200] > at + 20)
        load.report(record_property)
        all_there(api, load)
        assert load.failed == []
        assert set(load.status) == {200, 202}
        wait_for(lambda: products(shop.get(customer, params={"k": 2})) == [120, 121])
    assert "716" in api.store.deleted()
    assert {"before", "during"} <= set(api.store.table("events").event_id)


def processes_of(postgres):
    server = psutil.Process(postgres.process.pid)
    return [server, *server.children(recursive=True)]


def test_postgres_that_hangs(api, postgres, record_property):
    "Neither dead nor alive: connections are open, and nothing comes back."
    processes = []
    try:
        with api.client() as shop, Load(api, clients=4) as load:
            wait_for(lambda: len(load.acknowledged) > 20)
            processes = processes_of(postgres)
            for p in processes:
                p.suspend()
            wait_for(lambda: load.status[202] > 10 and load.sources["model"] > 10)
            assert shop.get(GET).status_code == 200
            for p in processes:
                p.resume()
            wait_for(lambda: back(api))
        load.report(record_property)
        all_there(api, load)
        assert load.failed == []
    finally:
        for p in processes:
            if p.is_running():
                p.resume()


def test_api_server_killed_and_started_in_an_outage_loses_nothing(api, postgres, record_property):
    with Load(api, clients=4) as load:
        wait_for(lambda: len(load.acknowledged) > 10)
        postgres.kill()
        wait_for(lambda: load.status[202] > 10)
        api.kill()
        wait_for(lambda: load.failed)
    assert [f for f in load.failed if not f.startswith(("Connect", "Read", "Remote"))] == []
    api.start()
    with api.client() as shop:
        assert shop.get(GET).status_code == 200
        assert api.state()["spool"] >= 10
        postgres.start()
        all_there(api, load)
        assert shop.get(GET).status_code == 200
    load.report(record_property)


@pytest.fixture
def small_disk(tmp_path):
    "A folder on a disk of 256 kB, and None; if nothing can be mounted, what limits a process's files to 64 kB."
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder]
    if os.getuid() == 0 and subprocess.run(mount, capture_output=True).returncode == 0:
        yield folder, None
        subprocess.run(["umount", folder], check=True)
        return

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (65536, resource.RLIM_INFINITY))

    yield folder, limit


def test_disk_full_at_the_spool(postgres, model, tmp_path, small_disk, record_property):
    "Events are refused while the database is away, lists go on, and what was acknowledged is there."
    folder, limits = small_disk
    api = Api(tmp_path, model.url, postgres.database(), limits=limits, SPOOL=folder).start()
    common = {"event_type": "view", "customer_id": 1, "brand": "b" * 200}
    acknowledged, refused = set(), []
    try:
        with api.client() as shop:
            shop.get(GET)
            postgres.kill()
            while len(refused) < 5:
                names = [f"load-{len(acknowledged)}-{len(refused)}-{n}" for n in range(20)]
                batch = [{"event_id": name, "product_id": n + 1, **common} for n, name in enumerate(names)]
                answer = shop.post("/v1/events", json={"events": batch})
                if answer.status_code == 202:
                    acknowledged |= set(names)
                else:
                    refused.append((answer.status_code, answer.headers["retry-after"]))
                assert shop.get(GET).status_code == 200
            assert refused == [(503, "5")] * 5
            record_property("events acknowledged", len(acknowledged))
            assert acknowledged
            postgres.start()
            wait_for(lambda: api.state()["store"] == "up" and api.state()["spool"] == 0)
            stored = [e for e in api.store.table("events").event_id if e.startswith("load-")]
            assert sorted(stored) == sorted(acknowledged)
            assert shop.post("/v1/events", json={"events": batch}).json()["stored"] == 20
    finally:
        api.stop()


@pytest.mark.slow
def test_everything_killed_again_and_again(api, model, postgres, record_property):
    "Model server and database are killed in turns, under load."
    wait_for(lambda: api.state()["popular"] == 200)
    with Load(api) as load:
        for _ in range(2):
            before = load.status[202]
            postgres.kill()
            wait_for(lambda at=before: load.status[202] > at + 10)
            postgres.start()
            wait_for(lambda: back(api))
            before = load.sources["fallback"]
            model.program.process.kill()
            wait_for(lambda at=before: load.sources["fallback"] > at + 10)
            wait_for(lambda: back(api))
    load.report(record_property)
    all_there(api, load)
    assert load.failed == []
