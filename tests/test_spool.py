"""The spool and its replay: the file's limit, damaged lines, records that the store will never take, deletions that are looked at."""

import asyncio
import json
import os
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from gnn_ecommerce.core import ArtifactError, DataError
from gnn_ecommerce.shop.recorder import Recorder, to_json
from gnn_ecommerce.shop.spool import Spool, SpoolFull
from gnn_ecommerce.shop.stores import Added, Event, Store, StoreDown, deleted_customers


LINE = 26  # bytes of a record in the file


def number(i):
    return {"n": f"{i:08d}"}


def test_the_file_stays_within_its_limit_while_it_never_gets_empty(tmp_path):
    spool, limit, largest, expected = Spool(tmp_path, limit=1 << 14), 1 << 14, 0, 0
    for i in range(200):
        spool.append([number(i)])
    for i in range(200, 2_500):
        records, size = spool.peek(1)
        assert records == [number(expected)]
        expected += 1
        spool.done(1, size)
        spool.append([number(i)])
        largest = max(largest, os.path.getsize(spool.path))
    assert largest <= limit and len(spool) == 200 and expected == 2_300
    assert [r for part in spool.pending() for r in part] == [number(i) for i in range(2_300, 2_500)]
    with pytest.raises(ArtifactError, match="another process"):
        Spool(tmp_path)
    spool.close()
    again = Spool(tmp_path)
    assert again.peek(10_000)[0][-200:] == [number(i) for i in range(2_300, 2_500)]
    print(f"\n2,500 records of {size} bytes through a file of at most {largest:,} (limit {limit:,})")


def test_a_full_spool_refuses_and_has_room_again(tmp_path):
    spool, n = Spool(tmp_path, limit=1000), 0
    with pytest.raises(SpoolFull, match="limit of 1,000"):
        while True:
            spool.append([number(n)])
            n += 1
    assert n == 1000 // LINE == len(spool) and os.path.getsize(spool.path) <= 1000
    records, size = spool.peek(n // 2)
    spool.done(len(records), size)
    for i in range(n // 2):
        spool.append([number(n + i)])
    assert (
        os.path.getsize(spool.path) <= 1000
        and [r["n"] for r in spool.peek(n)[0]] == [number(i)["n"] for i in range(n // 2, n + n // 2)][:n]
    )


def test_no_room_to_cut_off_is_no_error(tmp_path, monkeypatch):
    spool = Spool(tmp_path, limit=1000)
    spool.append([number(i) for i in range(38)])
    spool.done(20, spool.peek(20)[1])

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as m:
        m.setattr(os, "replace", full)
        with pytest.raises(SpoolFull):
            spool.append([number(38)])
    assert sorted(f.name for f in tmp_path.iterdir()) == ["spool.log"] and [r["n"] for r in spool.peek(99)[0]] == [
        number(i)["n"] for i in range(20, 38)
    ]
    spool.append([number(38)])
    assert os.path.getsize(spool.path) == 19 * LINE and spool.peek(99)[0][-1] == number(38)


def test_a_damaged_line_is_set_aside_once(tmp_path):
    spool = Spool(tmp_path)
    spool.append([number(i) for i in range(3)])
    data = bytearray(spool.path.read_bytes())
    data[len(data) // 2] ^= 1
    spool.path.write_bytes(data)
    for _ in range(5):
        assert spool.peek()[0] == [number(0), None, number(2)]
    assert spool.damaged == 1
    spool.close()
    for _ in range(3):
        spool = Spool(tmp_path)
        spool.peek()
        spool.close()
    assert (tmp_path / "damaged").read_bytes() == bytes(data[LINE : 2 * LINE])


def event(name, **more):
    return Event(name, "view", "p", f"u-{name}", **more)


def spooled(folder, names):
    "A spool that holds events from an outage."
    spool = Spool(folder)
    spool.append([to_json(event(n)) for n in names])
    spool.close()
    return folder


async def until(what, seconds=20):
    async with asyncio.timeout(seconds):
        while not what():
            await asyncio.sleep(0.02)


class Poisoned(Store):
    "Cannot take some events, for a reason that nobody thought of."

    bad, tried = (), 0

    def add_events(self, batch):
        batch = list(batch)
        self.tried += 1
        if any(e.event_id in self.bad for e in batch):
            raise OverflowError("secret of the customer")
        return super().add_events(batch)


def test_one_record_that_the_store_never_takes_is_set_aside_and_the_rest_goes_on(tmp_path):
    store = Poisoned(f"sqlite:///{tmp_path}/x.db")
    store.bad = ("bad",)
    names = [f"a{i}" for i in range(20)] + ["bad"] + [f"b{i}" for i in range(20)]

    async def run():
        recorder = Recorder(store, spooled(tmp_path / "spool", names), refresh=0.05)
        await recorder.start()
        await until(lambda: not len(recorder.spool))
        assert await recorder.record([event("later")]) == ("stored", Added(1, 0, 0))
        await recorder.stop(1)
        return recorder.counts

    counts = asyncio.run(run())
    assert (counts["stored"], counts["set_aside"]) == (41, 1), counts
    assert set(Store(store.url.render_as_string(hide_password=False)).table("events").event_id) == {*names, "later"} - {
        "bad"
    }
    kept = [json.loads(line) for line in (tmp_path / "spool" / "refused.jsonl").read_text().splitlines()]
    assert [(k["event"]["event_id"], k["why"]) for k in kept] == [("bad", "OverflowError")]


def test_a_store_that_takes_nothing_for_an_odd_reason_is_waited_for(tmp_path):
    "Then it is not the records: none is set aside, and all are stored when it works again."
    store, names = Poisoned(f"sqlite:///{tmp_path}/x.db"), [f"a{i}" for i in range(10)]
    store.bad = tuple(names)

    async def run():
        recorder = Recorder(store, spooled(tmp_path / "spool", names), refresh=0.05)
        await recorder.start()
        await until(lambda: store.tried > 11)
        assert len(recorder.spool) == 10 and recorder.counts["set_aside"] == 0
        store.bad = ()
        await until(lambda: not len(recorder.spool))
        await recorder.stop(1)
        return recorder.counts

    counts = asyncio.run(run())
    assert counts["stored"] == 10 and counts["set_aside"] == 0
    assert not (tmp_path / "spool" / "refused.jsonl").exists()


def test_a_row_that_breaks_a_rule_of_the_table_is_a_matter_of_the_data(store):
    with pytest.raises(DataError, match="expected values that"):
        store.run(
            lambda con: con.execute(deleted_customers.insert().values(user_id=None, deleted_at=datetime.now(UTC))),
            write=True,
        )
    with pytest.raises(StoreDown):
        store.run(lambda con: con.execute(sa.text("SELECT * FROM no_such_table")))


def test_only_new_deletions_are_read(store, tmp_path):
    old, asked = datetime.now(UTC) - timedelta(days=3), []
    store.run(
        lambda con: con.execute(
            deleted_customers.insert().values([{"user_id": f"old{i}", "deleted_at": old} for i in range(50)])
        ),
        write=True,
    )
    assert len(store.deleted()) == 50 and store.deleted(datetime.now(UTC) - timedelta(hours=1)) == []
    real = store.deleted

    def deleted(since=None):
        asked.append((since, len(found := real(since))))
        return found

    store.deleted = deleted

    async def run():
        recorder = Recorder(store, tmp_path / "spool", refresh=0.05)
        await recorder.start()
        await until(lambda: len(asked) >= 4)
        other = Store(store.url.render_as_string(hide_password=False))
        other.delete_customer("new")  # by another server
        other.close()
        await until(lambda: "new" in recorder.deleted)
        assert recorder.deleted == {"new", *(f"old{i}" for i in range(50))}
        n = len(asked)
        recorder._looked_at_all -= 301
        await until(lambda: len(asked) >= n + 3)
        await recorder.stop(1)

    asyncio.run(run())
    assert (
        asked[0] == (None, 50)
        and all(since is not None and n <= 1 for since, n in asked[1:4])
        and [n for since, n in asked if since is None] == [50, 51]
    )
