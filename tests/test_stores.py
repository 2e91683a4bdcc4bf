"""The stores on SQLite and on a real PostgreSQL: what two processes, a crash or a full disk do to them."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pandas as pd
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from conftest import ROOT
from shop import wait_for

from gnn_ecommerce.shop import stores
from gnn_ecommerce.core import DataError
from gnn_ecommerce.shop.stores import Added, Event, CustomerHistory, Served, Store, StoreDown

WHEN, TABLES = datetime(2024, 5, 1, 12, tzinfo=UTC), stores.STORE_SCHEMA.sorted_tables
ODD = [
    "Zoë",
    "'; DROP TABLE events; --",
    "日本語",
    "👩‍🚀",
    "a b\tc",
    "\\x00",
    "%s %(x)s {x}",
    "x" * 256,
    "NaN7",
    "ﷺ\u202e",
]


def reopened(store, **options):
    return Store(store.url.render_as_string(hide_password=False), **options)


@pytest.fixture
def patient(store):
    "A store that waits long for its turn: SQLite has no queue, so a writer among others may have bad luck."
    opened = reopened(store, timeout=120)
    yield opened
    opened.close()


def events(n, user=lambda i: i % 20, first=0, **more):
    return [
        Event(f"e{i}", "purchase" if i % 7 == 0 else "view", i % 50, user(i), WHEN + timedelta(seconds=i), **more)
        for i in range(first, first + n)
    ]


def stored(store):
    return set(store.table("events", columns=["event_id"]).event_id)


# Schema


def test_migrations_build_what_the_tables_say(store):
    store.migrate()
    with store.engine.connect() as con:
        assert compare_metadata(MigrationContext.configure(con), stores.STORE_SCHEMA) == []


@pytest.fixture
def newer_schema(store, monkeypatch):
    "A store with rows and a key, opened again by a program with one more migration."
    store.add_events(events(100))
    store.add_served([Served("r1", "customer", "model", "v1", [1, 2], "3", WHEN)])
    key, _ = store.create_key("shop", ["recommend"])
    before = {name: store.table(name) for name in ("events", "interactions", "served")}
    store.close()
    add_page = ("0002", lambda op: op.add_column("served", sa.Column("page", sa.Text)))
    with monkeypatch.context() as patch:
        patch.setattr(stores, "MIGRATIONS", [*stores.MIGRATIONS, add_page])
        newer = reopened(store)
        assert newer.migrate() == ["0002"]
    yield newer, before, key
    newer.close()


def test_rows_survive_a_reopening_and_a_new_schema(newer_schema):
    newer, before, _ = newer_schema
    for name, rows in before.items():
        pd.testing.assert_frame_equal(newer.table(name), rows)


def test_keys_survive_a_reopening_and_a_new_schema(newer_schema):
    newer, _, key = newer_schema
    assert stores.check_key(key, newer.keys()).name == "shop"


def test_an_older_program_leaves_a_newer_database_alone(newer_schema):
    with pytest.raises(StoreDown, match="newer version"):
        newer_schema[0].migrate()


def test_servers_that_start_at_once_build_the_tables_once(store_url):
    opened = [Store(store_url) for _ in range(6)]
    with ThreadPoolExecutor(6) as threads:
        revisions = list(threads.map(lambda s: s.migrate(), opened))
    assert sorted(revisions, key=len) == [[]] * 5 + [["0001"]]
    for s in opened:
        s.close()


# What is stored


@pytest.fixture
def odd_store(store):
    "A store with odd ids and texts."
    texts = ("brand", "category_code", "user_session")
    batch = [
        Event(f"{i} {text}"[:256], "purchase", text, text, WHEN, price=1e300, **dict.fromkeys(texts, text))
        for i, text in enumerate(ODD)
    ]
    assert store.add_events(batch) == Added(len(ODD), 0, 0)
    return store


def test_odd_ids_are_found(odd_store):
    assert [odd_store.history(text) for text in ODD] == [CustomerHistory(bought=(text,)) for text in ODD]


def test_odd_texts_are_exported_as_they_came(odd_store, tmp_path):
    assert odd_store.export_events(tmp_path / "out.parquet", batch=3) == len(ODD)
    frame = pd.read_parquet(tmp_path / "out.parquet")
    columns = ("product_id", "user_id", "brand", "category_code", "user_session", "price", "event_time")
    expected = [ODD] * 5 + [[1e300] * len(ODD), [WHEN] * len(ODD)]
    assert [frame[column].tolist() for column in columns] == expected


def one(event_id, event_type, minutes):
    return Event(event_id, event_type, 1, "u", WHEN + timedelta(minutes=minutes))


def test_time_decides_what_was_seen_last(store):
    store.add_events([one("b", "cart", 5), one("a", "view", 1)])
    assert store.history("u") == CustomerHistory(seen=(("1", "cart"),))
    store.add_events([one("c", "remove_from_cart", 7)])
    store.add_events([one("d", "view", 6)])
    assert store.history("u") == CustomerHistory(seen=(("1", "remove_from_cart"),))


def test_a_purchase_stays_bought(store):
    store.add_events([one("e", "purchase", 0)])
    store.add_events([one("f", "view", 9)])
    assert store.history("u") == CustomerHistory(bought=("1",))


def test_a_history_begins_with_the_newest(store):
    store.add_events([Event(f"g{i}", "purchase", i, "many", WHEN + timedelta(seconds=i)) for i in range(700)])
    assert store.history("many").bought == tuple(str(i) for i in reversed(range(700)))
    assert store.history("many", limit=3).bought == ("699", "698", "697")


@pytest.fixture
def store_without(store):
    "A store whose customer `gone` was deleted, and sent events and got a list afterwards."
    store.add_events(events(200, user=lambda i: "gone" if i % 4 == 0 else i % 5, user_session="session of 4711"))
    store.add_served(
        [Served(f"r{i}", "customer", "model", "v1", [1], user, WHEN) for i, user in enumerate(("gone", "3"))]
    )
    assert store.delete_customer("gone") == {"events": 50, "interactions": 25, "served": 1}
    assert store.add_events(events(200, user=lambda i: "gone")) == Added(0, 0, 200)
    store.add_served([Served("late", "customer", "model", "v1", [1], "gone", WHEN)])
    return store


def test_deleted_customers_are_only_in_the_list_of_the_deleted(store_without):
    with store_without.engine.connect() as con:
        rows = {t.name: [row for row in con.execute(t.select()) if "gone" in map(str, row)] for t in TABLES}
    assert {name: len(found) for name, found in rows.items() if found} == {"deleted_customers": 1}
    assert store_without.history("gone") == CustomerHistory(deleted=True)


def test_deleted_customers_are_not_exported(store_without, tmp_path):
    store_without.export_events(tmp_path / "out.parquet")
    assert "gone" not in set(pd.read_parquet(tmp_path / "out.parquet").user_id)


def test_sqlite_overwrites_what_is_deleted(tmp_path):
    store = Store(f"sqlite:///{tmp_path}/store.db")
    store.add_events(events(300, user=lambda i: "x", user_session="secret of 4711"))
    store.delete_customer("x")
    store.close()
    assert not [f.name for f in tmp_path.iterdir() if b"secret of 4711" in f.read_bytes()]


# Several writers


def test_writers_that_send_the_same_events_store_each_once(patient):
    batch = events(1200, user=lambda i: i % 7)

    def send(turn):
        order = batch if turn % 2 else batch[::-1]
        return [patient.add_events(order[i : i + 100]) for i in range(0, len(order), 100)]

    with ThreadPoolExecutor(4) as threads:
        results = [added for part in threads.map(send, range(4)) for added in part]
    assert sum(results, Added(0, 0, 0)) == Added(1200, 3600, 0)
    assert len(stored(patient)) == 1200


def test_no_event_slips_in_behind_a_deletion(patient):
    patient.migrate()
    stop, written = threading.Event(), [0, 0, 0]

    def write(turn):
        while not stop.is_set():
            patient.add_events([Event(f"{turn}-{written[turn]}", "view", 1, "x", WHEN)])
            written[turn] += 1

    with ThreadPoolExecutor(3) as threads:
        writing = [threads.submit(write, turn) for turn in range(3)]
        try:
            wait_for(lambda: sum(written) > 9)
            removed, before = patient.delete_customer("x")["events"], sum(written)
            wait_for(lambda: sum(written) > before + 9)
        finally:
            stop.set()
        for w in writing:
            w.result()
    assert removed > 0
    assert [patient.table(name).empty for name in ("events", "interactions")] == [True, True]


WRITER = """
import sys
from datetime import UTC, datetime
from gnn_ecommerce.shop.stores import Event, Store
store = Store(sys.argv[1])
for i in range(100_000):
    store.add_events([Event(f'{sys.argv[2]}-{i}', 'view', i % 50, i % 20)])
    print(f'{sys.argv[2]}-{i}', flush=True)
"""


def test_two_processes_write_and_a_killed_one_loses_nothing(store):
    store.migrate()
    url = store.url.render_as_string(hide_password=False)
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, url, name], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for name in ("a", "b")
    ]
    first = [w.stdout.readline().strip() for _ in range(10) for w in writers]
    for w in writers:
        w.send_signal(signal.SIGKILL)
    acknowledged = set(first) | {line for w in writers for line in w.communicate()[0].split("\n") if line}
    assert acknowledged <= stored(store)
    assert len(stored(store) - acknowledged) <= 2  # stored, and killed before it was printed


# When the database cannot


def test_postgres_killed_and_started_again(postgres):
    store = Store(postgres.database())
    store.add_events(events(500))
    postgres.kill()
    try:
        with pytest.raises(StoreDown, match="expected postgresql"):
            store.add_events(events(10, first=500))
    finally:
        postgres.start()
    assert store.add_events(events(510)) == Added(10, 500, 0)
    assert len(stored(store)) == 510
    store.close()


def test_messages_hide_passwords():
    store = Store("postgresql://shop:secret@127.0.0.1:1/x", timeout=1)
    with pytest.raises(StoreDown) as err:
        store.ping()
    assert "secret" not in str(err.value) + repr(store)


def test_a_file_that_is_no_database_is_told(tmp_path):
    (tmp_path / "store.db").write_bytes(b"no database" * 1000)
    with pytest.raises(StoreDown, match="not a database"):
        Store(f"sqlite:///{tmp_path}/store.db").ping()


@pytest.mark.parametrize("url", ["", "x", "sqlite://", "sqlite:///:memory:", "mysql://secret@x/y"])
def test_wrong_addresses_are_refused_without_being_repeated(url):
    with pytest.raises(DataError, match="DATABASE_URL: expected") as err:
        Store(url)
    assert "secret" not in str(err.value)


def fill(store, give_room):
    "Write until there is no room, then go on with room: what was acknowledged is there, and nothing else is."
    acknowledged, sent = set(), 0
    with pytest.raises(StoreDown, match="full|No space"):
        for turn in range(2000):
            batch = events(100, first=turn * 100, brand="b" * 250)
            sent += 100
            store.add_events(batch)
            acknowledged |= {e.event_id for e in batch}
    assert acknowledged
    assert stored(store) == acknowledged
    give_room()
    assert store.add_events(events(sent, brand="b" * 250)) == Added(100, sent - 100, 0)


def mount(folder, megabytes):
    if (
        os.getuid() != 0
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", folder], capture_output=True
        ).returncode
    ):
        pytest.skip("a small file system cannot be mounted here")


def test_disk_full_sqlite(tmp_path):
    mount(tmp_path, 2)
    try:
        store = Store(f"sqlite:///{tmp_path}/store.db")
        fill(store, lambda: subprocess.run(["mount", "-o", "remount,size=20m", tmp_path], check=True))
        store.close()
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_disk_full_postgres(postgres):
    import psycopg

    folder = postgres.folder / "small"
    folder.mkdir()
    mount(folder, 9)
    try:
        shutil.chown(folder, "postgres", "postgres")
        admin = psycopg.connect(postgres.url("postgres"), autocommit=True)
        admin.execute(f"CREATE TABLESPACE small LOCATION '{folder}'")
        admin.execute("CREATE DATABASE small TABLESPACE small")
        store = Store(postgres.url("small"))
        fill(store, lambda: subprocess.run(["mount", "-o", "remount,size=60m", folder], check=True))
        store.close()
        admin.execute("DROP DATABASE small")
        admin.execute("DROP TABLESPACE small")
        admin.close()
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_server_gets_no_duckdb_with_it():
    heavy = "('duckdb', 'ibis', 'papermill', 'matplotlib', 'torch')"
    code = f"import sys, gnn_ecommerce.shop.stores; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
