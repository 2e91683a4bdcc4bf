"""The spool and its replay: limit, full disk, kill, damage; records that the store never takes; keys and deletions."""

import asyncio
import json
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import ExitStack, closing
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from conftest import ROOT

from gnn_ecommerce.core import ArtifactError, DataError
from gnn_ecommerce.shop.recorder import Recorder, to_json
from gnn_ecommerce.shop.spool import Spool, SpoolCounts, SpoolFull, spool_counts
from gnn_ecommerce.shop.stores import CustomerHistory, Event, Served, Store, StoreDown, deleted_customers

LIMIT = 1 << 16  # bytes, a dozen pages of SQLite


def number(i):
    return {"n": f"{i:08d}"}


def numbers(first, last):
    return [number(i) for i in range(first, last)]


@pytest.fixture
def open_spool(tmp_path):
    "Opens spools in the test's folder; at the end they are closed."
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(closing(Spool(tmp_path, **options)))


def everything(spool):
    return [record for part in spool.pending() for record in part]


# The file


def test_the_file_stays_within_its_limit_while_it_never_gets_empty(open_spool):
    spool, largest = open_spool(limit=LIMIT), 0
    spool.append(numbers(0, 200))
    for i in range(200, 1200, 10):
        records, last = spool.peek(10)
        assert records == numbers(i - 200, i - 190)
        spool.done(last)
        spool.append(numbers(i, i + 10))
        largest = max(largest, os.path.getsize(spool.path))
    assert largest <= LIMIT
    assert everything(spool) == numbers(1000, 1200)


def test_a_second_process_is_refused(tmp_path, open_spool):
    spool = open_spool()
    with pytest.raises(ArtifactError, match="another process"):
        Spool(tmp_path)
    spool.close()
    Spool(tmp_path).close()


def test_what_is_there_comes_again_after_a_reopening(open_spool):
    spool = open_spool()
    spool.append(numbers(0, 50))
    spool.done(spool.peek(20)[1])
    spool.close()
    again = open_spool()
    assert (len(again), everything(again)) == (30, numbers(20, 50))


def fill(spool):
    "Append until there is no room; how many records there are."
    n = 0
    with pytest.raises(SpoolFull, match=f"limit of {spool.limit:,}"):
        while True:
            spool.append([number(n)] * 100)
            n += 100
    return n


def test_a_full_spool_refuses_and_keeps_what_it_has(open_spool):
    spool = open_spool(limit=LIMIT)
    n = fill(spool)
    assert 0 < n == len(spool) == len(everything(spool))
    assert os.path.getsize(spool.path) <= LIMIT


def test_a_full_spool_has_room_again_when_half_of_it_is_done(open_spool):
    spool = open_spool(limit=LIMIT)
    n = fill(spool)
    spool.done(spool.peek(n // 2)[1])
    spool.append([number(7)] * 100)
    assert everything(spool)[-100:] == [number(7)] * 100


def test_an_empty_spool_gives_its_room_back(tmp_path, open_spool):
    spool = open_spool()
    empty = spool.bytes
    spool.append([{"text": "x" * 1000}] * 5000)
    assert sum(f.stat().st_size for f in tmp_path.iterdir()) > 5_000_000
    spool.done(spool.peek(5000)[1])
    assert spool.bytes == empty


@pytest.fixture
def small_files():
    "No file may grow beyond 64 kB, as on a disk without room."
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_refuses_and_loses_nothing(open_spool, small_files):
    spool = open_spool()
    assert fill(spool) == len(spool) == len(everything(spool))


def test_a_full_disk_does_not_keep_the_spool_from_getting_empty(open_spool, small_files):
    spool, records = open_spool(), []
    n = fill(spool)
    while len(spool):
        part, last = spool.peek(30)
        records += part
        spool.done(last)
    assert len(records) == n
    spool.append(numbers(0, 100))
    assert everything(spool) == numbers(0, 100)


APPENDS = """
import sys
from gnn_ecommerce.shop.spool import Spool
spool = Spool(sys.argv[1])
for i in range(100_000):
    spool.append([{"n": i}])
    print(i, flush=True)
"""


def test_kill_loses_nothing_that_was_acknowledged(tmp_path, open_spool):
    writer = subprocess.Popen([sys.executable, "-c", APPENDS, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    for _ in range(30):
        writer.stdout.readline()
    writer.send_signal(signal.SIGKILL)
    acknowledged = 30 + writer.communicate()[0].count("\n")
    records = [record["n"] for record in everything(open_spool())]
    assert records == list(range(len(records)))
    assert len(records) in (acknowledged, acknowledged + 1)


def damaged(folder):
    "A spool with three records whose file is damaged."
    spool = Spool(folder)
    spool.append([{"text": "x" * 4000}] * 3)
    spool.close()
    data = bytearray(spool.path.read_bytes())
    data[4096:] = b"\xff" * (len(data) - 4096)  # all pages but the first one
    spool.path.write_bytes(data)
    return data


def test_a_damaged_file_is_kept_and_a_new_one_begun(tmp_path, open_spool):
    data = damaged(tmp_path)
    spool = open_spool()
    spool.append(numbers(0, 3))
    assert everything(spool) == numbers(0, 3)
    assert [f.read_bytes() for f in tmp_path.glob("damaged-*.db")] == [bytes(data)]


def test_counts_are_read_while_a_server_has_the_spool(tmp_path, open_spool):
    spool = open_spool()
    spool.append(numbers(0, 5))
    spool.done(spool.peek(2)[1])
    assert spool_counts(tmp_path) == SpoolCounts(records=3, damaged=0)


# The replay


def event(name, **more):
    return Event(name, "view", "p", f"u-{name}", **more)


def spooled(folder, operations):
    "A spool that holds operations from an outage."
    spool = Spool(folder)
    spool.append([to_json(op) for op in operations])
    spool.close()
    return folder


async def until(what, seconds=300):
    async with asyncio.timeout(seconds):
        while not what():
            await asyncio.sleep(0.02)


async def replayed(store, folder, **options):
    "A recorder's counts after it has emptied the spool in a folder."
    recorder = Recorder(store, folder, refresh=0.05, **options)
    await recorder.start()
    await until(lambda: not len(recorder.spool) and not recorder._turn.locked())
    await recorder.stop()
    return recorder.counts


class Poisoned(Store):
    "Cannot take some events, for a reason that nobody thought of."

    bad, failed = (), 0

    def add_events(self, batch):
        batch = list(batch)
        if any(e.event_id in self.bad for e in batch):
            self.failed += 1
            raise OverflowError("secret of the customer")
        return super().add_events(batch)


def test_one_record_that_the_store_never_takes_is_set_aside_and_the_rest_goes_on(tmp_path):
    store, names = Poisoned(f"sqlite:///{tmp_path}/x.db"), [f"a{i}" for i in range(20)]
    store.bad = ("bad",)
    operations = map(event, [*names[:10], "bad", *names[10:]])
    counts = asyncio.run(replayed(store, spooled(tmp_path / "spool", operations)))
    assert (counts["stored"], counts["set_aside"]) == (20, 1)
    assert set(Store(str(store.url)).table("events").event_id) == set(names)
    refused = [json.loads(line) for line in (tmp_path / "spool" / "refused.jsonl").read_text().splitlines()]
    assert [(r["event"]["event_id"], r["why"]) for r in refused] == [("bad", "OverflowError")]


def test_a_record_that_is_no_operation_is_set_aside(tmp_path):
    spool = Spool(tmp_path / "spool")
    spool.append([to_json(event("a")), {"event": {}}, ["nothing"], to_json(event("b"))])
    spool.close()
    counts = asyncio.run(replayed(Store(f"sqlite:///{tmp_path}/x.db"), tmp_path / "spool"))
    assert (counts["stored"], counts["set_aside"]) == (2, 2)


def test_a_store_that_takes_nothing_for_an_odd_reason_is_waited_for(tmp_path):
    "Then it is not the records: none is set aside, and all are stored when it works again."
    store, names = Poisoned(f"sqlite:///{tmp_path}/x.db"), [f"a{i}" for i in range(10)]
    store.bad = tuple(names)

    async def run():
        recorder = Recorder(store, spooled(tmp_path / "spool", map(event, names)), refresh=0.05)
        await recorder.start()
        await until(lambda: store.failed == 11)  # all together, and one by one
        waiting = len(recorder.spool)
        store.bad = ()
        await until(lambda: not len(recorder.spool) and not recorder._turn.locked())
        await recorder.stop()
        return waiting, recorder.counts["stored"], recorder.counts["set_aside"]

    assert asyncio.run(run()) == (10, 10, 0)


class Slow(Store):
    "Takes its time for each operation, and counts transactions."

    seconds, transactions = 0.0, 0

    def add_events(self, batch):
        self.transactions += 1
        time.sleep(self.seconds * len(batch))
        return super().add_events(batch)

    def add_served(self, batch):
        self.transactions += 1
        return super().add_served(batch)


def test_lists_and_events_that_come_by_turns_make_two_transactions(tmp_path):
    store, when = Slow(f"sqlite:///{tmp_path}/x.db"), datetime(2024, 5, 1, tzinfo=UTC)
    lists = [Served(f"r{i}", "customer", "model", "v1", [1], "dan", when) for i in range(300)]
    mixed = [op for i in range(300) for op in (event(f"e{i}"), lists[i])]
    asyncio.run(replayed(store, spooled(tmp_path / "spool", mixed), write_patience=30.0))
    assert store.transactions == 2


def test_what_the_store_does_not_take_in_time_is_tried_in_smaller_pieces(tmp_path):
    store = Slow(f"sqlite:///{tmp_path}/x.db")
    store.seconds = 0.002
    events = [event(f"e{i}") for i in range(400)]
    asyncio.run(replayed(store, spooled(tmp_path / "spool", events), write_patience=0.4))
    assert store.transactions > 3  # all at once would take twice the patience


def test_a_row_that_breaks_a_rule_of_the_table_is_a_matter_of_the_data(store):
    row = deleted_customers.insert().values(user_id=None, deleted_at=datetime.now(UTC))
    with pytest.raises(DataError, match="expected values that"):
        store.run(lambda con: con.execute(row), write=True)


def test_a_table_that_is_missing_is_a_matter_of_the_store(store):
    with pytest.raises(StoreDown):
        store.run(lambda con: con.execute(sa.text("SELECT * FROM no_such_table")))


# Outages, deletions and keys


class Moody(Store):
    away = False

    def run(self, *args, **kwargs):
        if self.away:
            raise StoreDown("away")
        return super().run(*args, **kwargs)


def test_what_was_stored_a_moment_ago_hides_a_product_in_an_outage(tmp_path):
    store = Moody(f"sqlite:///{tmp_path}/x.db")

    async def run():
        recorder = Recorder(store, tmp_path / "spool")
        await recorder.start()
        await recorder.record([Event("e1", "purchase", 77, "eve")])
        store.away = True
        history = await recorder.history("eve")
        await recorder.stop()
        return history

    assert asyncio.run(run()) == CustomerHistory(bought=("77",))


def test_a_deletion_stays_one_whatever_an_earlier_look_says(tmp_path):
    async def run():
        recorder = Recorder(Store(f"sqlite:///{tmp_path}/x.db"), tmp_path / "spool")
        await recorder.start()
        earlier = recorder.cache.read()
        await recorder.delete("eve")
        recorder.cache.take(earlier)
        history = await recorder.history("eve")
        await recorder.stop()
        return history

    assert asyncio.run(run()) == CustomerHistory(deleted=True)


def test_a_start_in_an_outage_knows_keys_deletions_and_purchases(tmp_path):
    key, _ = Store(f"sqlite:///{tmp_path}/x.db").create_key("shop", ["recommend"])

    async def run(away_from_the_start):
        recorder = Recorder(Moody(f"sqlite:///{tmp_path}/x.db"), tmp_path / "spool")
        recorder.store.away = away_from_the_start
        await recorder.start()
        if not away_from_the_start:
            await recorder.delete("bob")
            await recorder.refresh_keys()
            recorder.store.away = True
            await recorder.record([Event("e99", "purchase", 99, "ana")])
        state = recorder.cache.find(key).name, recorder.cache.deleted, (await recorder.history("ana")).bought
        await recorder.stop(0.1)
        return state

    asyncio.run(run(False))
    assert asyncio.run(run(True)) == ("shop", {"bob"}, ("99",))


@pytest.fixture
def asked(store):
    "Since when deletions were asked for, and how many came back, look by look; 50 are three days old."
    old, looks = datetime.now(UTC) - timedelta(days=3), []
    rows = deleted_customers.insert().values([{"user_id": f"old{i}", "deleted_at": old} for i in range(50)])
    store.run(lambda con: con.execute(rows), write=True)
    real = store.deleted

    def deleted(since=None):
        users = real(since)
        looks.append((since, len(users)))
        return users

    store.deleted = deleted
    return looks


def test_only_new_deletions_are_read(store, asked, tmp_path):
    async def run():
        recorder = Recorder(store, tmp_path / "spool", refresh=0.05)
        await recorder.start()
        await until(lambda: len(asked) >= 4)
        await recorder.stop()

    asyncio.run(run())
    assert asked[0] == (None, 50)
    assert [n for since, n in asked[1:4] if since is not None] == [0, 0, 0]


def test_a_deletion_by_another_server_is_seen(store, asked, tmp_path):
    async def run():
        recorder = Recorder(store, tmp_path / "spool", refresh=0.05)
        await recorder.start()
        other = Store(store.url.render_as_string(hide_password=False))
        other.delete_customer("new")
        other.close()
        await until(lambda: "new" in recorder.cache.deleted)
        await recorder.stop()

    asyncio.run(run())
    assert [n for since, n in asked if since is None] == [50]


def test_all_deletions_are_read_again_after_five_minutes(store, asked, tmp_path):
    async def run():
        recorder = Recorder(store, tmp_path / "spool", refresh=0.05)
        await recorder.start()
        recorder.cache._complete_at -= timedelta(minutes=6)
        await until(lambda: len(asked) >= 4)
        await recorder.stop()

    asyncio.run(run())
    assert [n for since, n in asked if since is None] == [50, 50]


def test_a_database_of_sqlite_is_what_a_damaged_file_is_kept_as(tmp_path):
    "So that `sqlite3 FILE .recover` can be tried on it."
    damaged(tmp_path)
    Spool(tmp_path).close()
    (kept,) = tmp_path.glob("damaged-*.db")
    with closing(sqlite3.connect(kept)) as db, pytest.raises(sqlite3.DatabaseError, match="malformed"):
        db.execute("SELECT * FROM records").fetchall()
