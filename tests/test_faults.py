"""What breaks behind the API server, under load: killed, slow and broken model servers, a killed database, full disks. Each test prints what it counted."""

import os
import resource
import signal
import subprocess
import threading
import time

import psutil
import pytest
from shop import Api, Load, Model, wait_for

from gnn_ecommerce.shop.stores import Event
from gnn_ecommerce.run.processes import Program, Supervisor

GET = "/v1/customers/17/recommendations"


@pytest.fixture(scope="module")
def model():
    "A model server under a supervisor, as `make serve` has it."
    server, said = Model(), []
    server.program = Program("model server", server.command, server.env, server.ready)
    watch = Supervisor([server.program], said.append)
    watch.start()
    thread = threading.Thread(target=watch.run)
    thread.start()
    yield server
    watch.stop()
    thread.join()
    watch.end()
    assert len(said) == server.program.starts - 1


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
    until = time.monotonic() + 120
    while (state := api.state())["spool"]:
        assert time.monotonic() < until, (state, [line for line in api.text().splitlines() if "failed" in line][-3:])
        time.sleep(0.02)
    found = [e for e in api.store.table("events", columns=["event_id"]).event_id if e.startswith(load.name)]
    assert len(found) == len(set(found)) and load.acknowledged <= set(found) <= load.sent
    return len(found)


def says(name, load, stored=None):
    print(
        f"\n{name}: {load.requests} requests, {len(load.failed)} failed, lists {dict(load.sources)}, status {dict(load.status)}, slowest {load.slowest:.2f} s"
        + (
            f"; events acknowledged {len(load.acknowledged)}, stored {stored}, lost 0, twice 0"
            if stored is not None
            else ""
        )
    )


def test_model_server_killed_under_load_with_a_supervisor(api, model):
    wait_for(lambda: api.state()["popular"] == 200)
    with Load(api) as load:
        wait_for(lambda: load.sources["model"] > 10)
        model.program.process.send_signal(signal.SIGKILL)
        wait_for(lambda: load.sources["fallback"] > 10)
        wait_for(lambda: model.program.starts == 2 and model.program.is_ready() and api.state()["model"] == "closed")
        before = load.sources["model"]
        wait_for(lambda: load.sources["model"] > before + 10)
    says("kill -9 of the model server", load, all_there(api, load))
    assert not load.failed and set(load.status) == {200} and load.slowest < 10


def test_model_server_slow_broken_or_talking_nonsense(api, model):
    with api.client() as shop:
        wait_for(lambda: api.state()["popular"] == 200)
        figures = []
        for name, fault in (
            ("slow", {"delay": 5}),
            ("status 500", {"status": 500}),
            ("status 404", {"status": 404}),
            ("nonsense", {"garbage": True}),
        ):
            model.control(**fault)
            start = time.monotonic()
            answers = [shop.get(GET, params={"k": 4}) for _ in range(8)] + [
                shop.get("/v1/products/5/similar", params={"k": 4}),
                shop.post("/v1/sessions/recommendations", json={"basket": [1], "k": 4}),
                shop.get("/v1/customers/17/explanations", params={"k": 4}),
            ]
            seconds = time.monotonic() - start
            assert [
                (a.status_code, a.json()["source"], a.json()["fallback"], len(a.json()["items"])) for a in answers
            ] == [(200, "fallback", True, 4)] * len(answers)
            assert seconds < 8
            model.control(delay=0, status=200, garbage=False)
            wait_for(lambda: shop.get(GET).json()["source"] == "model")
            figures.append(f"{name}: {len(answers)} requests, 0 failed, all marked fallback, {seconds:.1f} s")
        model.control(status=500)
        wait_for(lambda: shop.get(GET).json()["source"] == "fallback")
        filtered = shop.get(GET, params={"category": "lips", "max_price": 9, "k": 5}).json()
        assert [i["product_id"] for i in filtered["items"]] == [1, 3, 5, 7, 9] and filtered["source"] == "fallback"
        shop.post(
            "/v1/events",
            json={"events": [{"event_id": "b", "event_type": "purchase", "product_id": 3, "customer_id": 17}]},
        )
        assert 3 not in [i["product_id"] for i in shop.get(GET).json()["items"]]
        model.control(status=200)
        wait_for(lambda: shop.get(GET).json()["source"] == "model")
    print("\n" + "\n".join(figures))


def test_model_server_that_was_never_there(tmp_path):
    api = Api(tmp_path, "http://127.0.0.1:1")
    api.store.add_events([Event(f"{i}-{n}", "purchase", i, n) for i in range(1, 6) for n in range(i)])
    api.start()
    try:
        with api.client() as shop:
            wait_for(lambda: api.state()["popular"] == 5)
            found = shop.get(GET, params={"k": 3}).json()
            assert (
                [i["product_id"] for i in found["items"]] == [5, 4, 3]
                and found["source"] == "fallback"
                and "model_version" not in found
            )
    finally:
        api.stop()


def test_postgres_killed_under_load(api, postgres):
    customer = "/v1/customers/717/recommendations"

    def buys(shop, name, product):
        return shop.post(
            "/v1/events",
            json={"events": [{"event_id": name, "event_type": "purchase", "product_id": product, "customer_id": 717}]},
        )

    with api.client() as shop:
        buys(shop, "before", 118)
        shop.get(customer)
        with Load(api) as load:
            wait_for(lambda: len(load.acknowledged) > 20)
            postgres.kill()
            wait_for(lambda: load.status[202] > 20 and api.state()["store"] == "down")
            answer = buys(shop, "during", 119)
            assert answer.status_code == 202 and answer.json() == {"state": "spooled", "received": 1}
            assert shop.delete("/v1/customers/716").status_code == 202
            assert [i["product_id"] for i in shop.get(customer, params={"k": 2}).json()["items"]] == [120, 121]
            assert shop.get("/v1/customers/716/recommendations").json()["source"] == "popular"
            postgres.start()
            wait_for(lambda: api.state()["store"] == "up" and api.state()["spool"] == 0)
            at = load.status[200]
            wait_for(lambda: load.status[200] > at + 20)
        says("kill -9 of PostgreSQL", load, all_there(api, load))
        assert not load.failed and set(load.status) == {200, 202}
        assert [i["product_id"] for i in shop.get(customer, params={"k": 2}).json()["items"]] == [120, 121]
        assert "716" in api.store.deleted() and {"before", "during"} <= set(api.store.table("events").event_id)


def test_postgres_that_hangs(api, postgres):
    "Neither dead nor alive: connections are open, and nothing comes back."
    processes = [psutil.Process(postgres.process.pid), *psutil.Process(postgres.process.pid).children(recursive=True)]
    try:
        with api.client() as shop, Load(api, clients=4) as load:
            wait_for(lambda: len(load.acknowledged) > 20)
            processes = [
                psutil.Process(postgres.process.pid),
                *psutil.Process(postgres.process.pid).children(recursive=True),
            ]
            for p in processes:
                p.suspend()
            wait_for(lambda: load.status[202] > 10 and load.sources["model"] > 10)
            assert shop.get(GET).status_code == 200
            for p in processes:
                p.resume()
            wait_for(lambda: api.state()["store"] == "up" and api.state()["spool"] == 0, 30)
        says("PostgreSQL that hangs", load, all_there(api, load))
        assert not load.failed and load.slowest < 9
    finally:
        for p in processes:
            if p.is_running():
                p.resume()


def test_api_server_killed_and_started_in_an_outage_loses_nothing(api, postgres):
    with Load(api, clients=4) as load:
        wait_for(lambda: len(load.acknowledged) > 10)
        postgres.kill()
        wait_for(lambda: load.status[202] > 10)
        api.kill()
        time.sleep(0.1)
    assert not [f for f in load.failed if not f.startswith(("Connect", "Read", "Remote"))]
    api.start()
    with api.client() as shop:
        assert shop.get(GET).status_code == 200 and api.state()["spool"] >= 10
        postgres.start()
        n = all_there(api, load)
        assert shop.get(GET).status_code == 200
    print(
        f"\nkill -9 of database, then of the API server, started without the database: {len(load.acknowledged)} events acknowledged, {n} stored, lost 0, twice 0"
    )


def test_disk_full_at_the_spool(postgres, model, tmp_path):
    "No file may grow beyond 64 kB, as on a disk without room: events are refused while the database is away, lists go on, and what was acknowledged is there."
    small = tmp_path / "small"
    small.mkdir()
    mounted = (
        os.getuid() == 0
        and subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", small], capture_output=True).returncode
        == 0
    )
    limits = (
        None
        if mounted
        else lambda: (
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN),
            resource.setrlimit(resource.RLIMIT_FSIZE, (65536, resource.RLIM_INFINITY)),
        )
    )
    api = Api(tmp_path, model.url, postgres.database(), limits=limits, SPOOL=small).start()
    counts = {}
    try:
        with api.client() as shop:
            shop.get(GET)
            postgres.kill()
            acknowledged, refused, i = set(), 0, 0
            while refused < 5:
                batch = [
                    {
                        "event_id": f"load-{i}-{n}",
                        "event_type": "view",
                        "product_id": n + 1,
                        "customer_id": 1,
                        "brand": "b" * 200,
                    }
                    for n in range(20)
                ]
                answer, i = shop.post("/v1/events", json={"events": batch}), i + 1
                counts[answer.status_code] = counts.get(answer.status_code, 0) + 1
                if answer.status_code == 202:
                    acknowledged |= {e["event_id"] for e in batch}
                else:
                    assert answer.status_code == 503 and answer.headers["retry-after"] == "5" and answer.json()["title"]
                    refused += 1
                assert shop.get(GET).status_code == 200
            assert acknowledged
            postgres.start()
            wait_for(lambda: api.state()["store"] == "up" and api.state()["spool"] == 0)
            found = [e for e in api.store.table("events").event_id if e.startswith("load-")]
            assert len(found) == len(set(found)) and set(found) == acknowledged
            assert shop.post("/v1/events", json={"events": batch}).json()["stored"] == 20
        print(
            f"\ndisk full at the spool ({'tmpfs of 128 kB' if mounted else 'files of at most 64 kB'}): status {counts}, lists failed 0, events acknowledged {len(acknowledged)}, stored {len(found)}, lost 0, twice 0"
        )
    finally:
        api.stop()
        if mounted:
            subprocess.run(["umount", small], check=True)


@pytest.mark.slow
def test_everything_killed_again_and_again(api, model, postgres):
    "Model server and database are killed in turns, under load."
    wait_for(lambda: api.state()["popular"] == 200)
    with Load(api) as load:
        for turn in range(6):
            time.sleep(0.5)
            if turn % 2:
                model.program.process.kill()
            else:
                postgres.kill()
            time.sleep(1)
            if turn % 2 == 0:
                postgres.start()
            wait_for(lambda: api.state()["store"] == "up" and api.state()["model"] == "closed", 40)
    says("three kills of the database, three of the model server", load, all_there(api, load))
    assert not load.failed and load.sources["fallback"] and load.status[202]
