"""The stores on SQLite and on a real PostgreSQL: what two processes, a crash or a full disk do to them."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pandas as pd
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from conftest import ROOT

from gnn_ecommerce.shop import stores
from gnn_ecommerce.core import DataError
from gnn_ecommerce.shop.stores import Added, Event, History, Served, Store, StoreDown

WHEN = datetime(2024, 5, 1, 12, tzinfo=UTC)
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
        assert compare_metadata(MigrationContext.configure(con), stores.SCHEMA) == []


def test_rows_survive_a_reopening_and_a_new_schema(store, monkeypatch):
    store.add_events(events(100))
    store.add_served([Served("r1", "customer", "model", "v1", [1, 2], "3", WHEN)])
    key, _ = store.create_key("shop", ["recommend"])
    before = {name: store.table(name) for name in ("events", "interactions", "served")}
    store.close()
    monkeypatch.setattr(
        stores,
        "MIGRATIONS",
        [*stores.MIGRATIONS, ("0002", lambda op: op.add_column("served", sa.Column("page", sa.Text)))],
    )
    again = Store(store.url.render_as_string(hide_password=False))
    assert again.migrate() == ["0002"] and again.migrate() == []
    for name, rows in before.items():
        pd.testing.assert_frame_equal(again.table(name), rows)
    assert stores.check_key(key, again.keys()).name == "shop"
    monkeypatch.undo()
    with pytest.raises(StoreDown, match="newer version"):
        again.migrate()
    again.close()


def test_servers_that_start_at_once_build_the_tables_once(store_url):
    opened = [Store(store_url) for _ in range(6)]
    with ThreadPoolExecutor(6) as threads:
        done = list(threads.map(lambda s: s.migrate(), opened))
    assert sorted(done, key=len) == [[]] * 5 + [["0001"]]
    with ThreadPoolExecutor(6) as threads:
        list(threads.map(lambda s: s.add_events(events(50)), opened))
    assert stored(opened[0]) == {f"e{i}" for i in range(50)}
    for s in opened:
        s.close()


# What is stored


def test_odd_texts_come_back_as_they_went_in(store, tmp_path):
    batch = [
        Event(
            f"{i} {text}"[:256],
            "purchase",
            text,
            text,
            WHEN,
            brand=text,
            category_code=text,
            user_session=text,
            price=1e300,
        )
        for i, text in enumerate(ODD)
    ]
    assert store.add_events(batch) == Added(len(ODD), 0, 0)
    for text in ODD:
        assert store.history(text) == History(bought=(text,))
    assert store.export_events(tmp_path / "out.parquet", batch=3) == len(ODD)
    frame = pd.read_parquet(tmp_path / "out.parquet")
    for column in ("product_id", "user_id", "brand", "category_code", "user_session"):
        assert frame[column].tolist() == ODD
    assert (frame.price == 1e300).all() and frame.event_time.tolist() == [WHEN] * len(ODD)


def test_a_purchase_stays_bought_and_time_decides_the_rest(store):
    def one(event_id, kind, minutes):
        return Event(event_id, kind, 1, "u", WHEN + timedelta(minutes=minutes))

    store.add_events([one("b", "cart", 5), one("a", "view", 1)])
    assert store.history("u") == History(seen=(("1", "cart"),))
    store.add_events([one("c", "remove_from_cart", 7)])
    store.add_events([one("d", "view", 6)])
    assert store.history("u") == History(seen=(("1", "remove_from_cart"),))
    store.add_events([one("e", "purchase", 0)])
    store.add_events([one("f", "view", 9)])
    assert store.history("u") == History(bought=("1",))
    store.add_events([Event(f"g{i}", "purchase", i, "many", WHEN + timedelta(seconds=i)) for i in range(700)])
    assert store.history("many", limit=3).bought == ("699", "698", "697") and len(store.history("many").bought) == 700


def test_deleted_customers_are_nowhere(store, tmp_path):
    store.add_events(events(200, user=lambda i: "gone" if i % 4 == 0 else i % 5, user_session="session of 4711"))
    store.add_served(
        [
            Served("r1", "customer", "model", "v1", [1], "gone", WHEN),
            Served("r2", "customer", "model", "v1", [1], "3", WHEN),
        ]
    )
    assert store.delete_customer("gone") == {"events": 50, "interactions": 25, "served": 1}
    assert store.add_events(events(200, user=lambda i: "gone")) == Added(0, 0, 200)
    store.add_served([Served("late", "customer", "model", "v1", [1], "gone", WHEN)])
    assert store.history("gone").deleted and store.deleted() == ["gone"]
    store.export_events(tmp_path / "out.parquet")
    assert "gone" not in set(pd.read_parquet(tmp_path / "out.parquet").user_id)
    with store.engine.connect() as con:
        for table in stores.SCHEMA.sorted_tables:
            found = [row for row in con.execute(table.select()) if "gone" in map(str, row)]
            assert len(found) == (table.name == "deleted_customers"), table.name


def test_sqlite_overwrites_what_is_deleted(tmp_path):
    store = Store(f"sqlite:///{tmp_path}/store.db")
    store.add_events(events(300, user=lambda i: "x", user_session="secret of 4711"))
    store.delete_customer("x")
    store.close()
    assert not [f.name for f in tmp_path.iterdir() if b"secret of 4711" in f.read_bytes()]


# Several writers


def test_writers_that_send_the_same_events_store_each_once(store):
    batch, found = events(1200, user=lambda i: i % 7), []

    def send(turn):
        order = batch if turn % 2 else batch[::-1]
        for i in range(0, len(order), 100):
            found.append(store.add_events(order[i : i + 100]))

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(send, range(4)))
    assert (sum(a.added for a in found), sum(a.duplicates for a in found)) == (1200, 3600)
    assert len(stored(store)) == 1200
    print(
        f"\n4 writers, 4,800 events sent, {sum(a.added for a in found)} stored, {sum(a.duplicates for a in found)} known before"
    )


def test_no_event_slips_in_behind_a_deletion(store):
    store.migrate()
    stop, n = threading.Event(), [0, 0, 0]

    def write(turn):
        while not stop.is_set():
            store.add_events([Event(f"{turn}-{n[turn]}", "view", 1, "x", WHEN)])
            n[turn] += 1

    with ThreadPoolExecutor(3) as threads:
        writing = [threads.submit(write, turn) for turn in range(3)]
        time.sleep(0.2)
        removed = store.delete_customer("x")["events"]
        time.sleep(0.1)
        stop.set()
        for w in writing:
            w.result()
    assert removed > 0 and store.table("events").empty and store.table("interactions").empty
    print(f"\n{sum(n)} events written beside a deletion, {removed} of them before it, 0 are left")


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
    first = [w.stdout.readline().strip() for w in writers]
    time.sleep(0.2)
    for w in writers:
        w.send_signal(signal.SIGKILL)
    acknowledged = set(first) | {line for w in writers for line in w.communicate()[0].split("\n") if line}
    found = stored(store)
    assert len(acknowledged) > 10 and acknowledged <= found and len(found - acknowledged) <= 2
    print(f"\n{len(acknowledged)} events acknowledged before kill -9, 0 of them lost")


# When the database cannot


def test_postgres_killed_and_started_again(postgres):
    store = Store(postgres.database())
    store.add_events(events(500))
    postgres.kill()
    start = time.monotonic()
    try:
        with pytest.raises(StoreDown, match="expected postgresql"):
            store.add_events(events(10, first=500))
        assert time.monotonic() - start < 3
    finally:
        postgres.start()
    assert store.add_events(events(510)) == Added(10, 500, 0)
    assert len(stored(store)) == 510
    store.close()


def test_addresses_and_messages_hide_passwords(tmp_path):
    store = Store("postgresql://shop:secret@127.0.0.1:1/x", timeout=1)
    with pytest.raises(StoreDown) as err:
        store.ping()
    assert "secret" not in str(err.value) + repr(store)
    (tmp_path / "store.db").write_bytes(b"no database" * 1000)
    with pytest.raises(StoreDown, match="not a database"):
        Store(f"sqlite:///{tmp_path}/store.db").ping()
    for url in ("", "x", "sqlite://", "sqlite:///:memory:", "mysql://secret@x/y"):
        with pytest.raises(DataError) as err:
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
    assert acknowledged and stored(store) == acknowledged
    give_room()
    assert store.add_events(events(sent, brand="b" * 250)) == Added(100, sent - 100, 0)
    print(
        f"\n{len(acknowledged)} events acknowledged until the disk was full, {len(acknowledged)} stored, and {len(stored(store))} of {sent} once there was room"
    )


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
    code = "import sys, gnn_ecommerce.shop.stores; print([m for m in ('duckdb', 'ibis', 'papermill', 'matplotlib', 'torch') if m in sys.modules])"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )
