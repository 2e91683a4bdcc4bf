"""The stage as a whole.

Splits without leaks, targets and products against slow pandas versions, real shops, the same bytes twice."""

import functools
import hashlib
import json
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import ibis
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pytest
import yaml

import gnn_ecommerce.data_prep as stage
from gnn_ecommerce.core import DataError, SettingsError, read_json, read_table
from gnn_ecommerce.data_prep import (
    OUTPUTS,
    DataPrepSettings,
    attributes_seen,
    clean_events,
    product_table,
    run_data_prep,
    target_pairs,
    bought_pairs,
)
from gnn_ecommerce.data.events import (
    EVENT_LAYOUT,
    PRODUCTS,
    Meaning,
    check_events,
    check_products,
    count_events,
    one_row_a_product,
    rejects,
)

NOW = datetime(2021, 1, 1, tzinfo=UTC)


def random_events(seed=0, n=3000, users=120, items=40, days=90):
    "Events of a shop as text columns: repeated pairs, changing prices, missing values, exact duplicates."
    r = np.random.default_rng(seed)
    df = pd.DataFrame(
        {
            "event_time": pd.Timestamp("2020-01-01")
            + pd.to_timedelta(np.sort(r.integers(0, days * 86400 // 600, n)) * 600, unit="s"),
            "event_type": r.choice(["view", "cart", "remove_from_cart", "purchase"], n, p=[0.5, 0.2, 0.1, 0.2]),
            "product_id": (r.random(n) ** 2 * items).astype(int) * 3 + 1000,
            "category_id": r.choice(["c1", "c2", ""], n),
            "category_code": "",
            "brand": r.choice(["acme", "best", ""], n),
            "price": np.where(r.random(n) < 0.1, "", (r.integers(1, 900, n) / 100).astype(str)),
            "user_id": (r.random(n) ** 2 * users).astype(int) * 7 + 1,
            "user_session": r.choice(["s1", "s2", ""], n),
        }
    )
    df["event_time"] = df.event_time.dt.strftime("%Y-%m-%d %H:%M:%S UTC")
    return pd.concat([df, df.sample(n // 20, random_state=seed)]).sample(frac=1, random_state=seed, ignore_index=True)


def prepare(root, df, name="events.csv", catalogue=None, **settings):
    (root / "shop").mkdir(parents=True, exist_ok=True)
    df.to_csv(root / "shop" / name, index=False)
    if catalogue is not None:
        catalogue.to_csv(root / "shop" / "products.csv", index=False)
    return run(root, events="shop", **settings)


def run(root, seed=0, **settings):
    root.mkdir(parents=True, exist_ok=True)
    (root / "params.yaml").write_text(yaml.safe_dump({"seed": seed, "data_prep": {"threads": 2, **settings}}))
    result = run_data_prep(root / "params.yaml", NOW)
    m = result.metrics
    assert m["rows_read"] == m["rows_kept"] + m["rows_rejected"] + m["rows_duplicate"]
    assert m["rows_kept"] == m["events_train"] + m["events_val"] + m["events_test"]
    return result


def tables(root):
    return {
        name: read_table(root / "data" / place, "targets" if name.startswith(("val", "test")) else name, "data_prep")
        for name, place in OUTPUTS.items()
    }


def hashes(root):
    files = sorted(root.glob("data/**/*.*"))
    return {f.relative_to(root).as_posix(): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


@pytest.fixture(autouse=True)
def no_plots(monkeypatch, request):
    "The report is written in its own test only."
    if "report" not in request.node.name:
        monkeypatch.setattr(stage, "write_prep_report", lambda result, folder: None)


def slow_targets(events, part, again=False):
    "First-time (or repeated) purchases of a part, a pair at a time."
    earlier = {"val": ["train"], "test": ["train", "val"]}[part]
    train, targets = events[events.split == "train"], []
    users, items = set(train.user_id), set(train.product_id)
    for (user, item), pair in events[events.event_type == "purchase"].groupby(["user_id", "product_id"]):
        now = pair[pair.split == part]
        if len(now) and pair.split.isin(earlier).any() == again:
            targets.append((user, item, now.event_time.min(), len(now), user in users, item in items))
    return sorted(targets, key=lambda r: (r[0], r[2], r[1]))


def pairs(df):
    return set(zip(df.user_id, df.product_id))


def split_of(root):
    return read_json(root / "data" / "processed" / "split.json", "data_prep")


SPLITS = {
    "temporal": {},
    "random_pairs": {"split": "random_pairs"},
    "days": {"val_days": 5, "test_days": 10.5},
    "shares": {"val_share": 0.3, "test_share": 0.02},
}


class Prepared(NamedTuple):
    "A shop of random events after a run of the stage."

    root: Path
    result: stage.DataPrep
    tables: dict
    split: dict


@pytest.fixture(scope="module")
def prepared_shop(tmp_path_factory):
    "A function that prepares a shop of random events, split in one of the `SPLITS`, and remembers it."

    @functools.cache
    def make(name, seed=0):
        root = tmp_path_factory.mktemp(name)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(stage, "write_prep_report", lambda result, folder: None)
            result = prepare(root, random_events(seed), seed=seed, **SPLITS[name])
        return Prepared(root, result, tables(root), split_of(root))

    return make


@pytest.fixture(params=[f"{name} {seed}" for name in SPLITS for seed in (0, 1)])
def prepared(request, prepared_shop):
    name, seed = request.param.split()
    return prepared_shop(name, int(seed))


def test_no_pair_to_be_predicted_is_known_before(prepared):
    train, val, test = (prepared.tables[name] for name in ("train_events", "val", "test"))
    bought = pairs(train[train.event_type == "purchase"])
    assert [pairs(val) & bought, pairs(test) & bought, pairs(val) & pairs(test)] == [set()] * 3


def test_train_events_are_the_events_of_train(prepared):
    events, columns = prepared.tables["events"], ["user_id", "product_id", "event_type", "event_time", "price"]
    expected = events[events.split == "train"][columns].reset_index(drop=True)
    pd.testing.assert_frame_equal(prepared.tables["train_events"][columns], expected)


@pytest.mark.parametrize("part", ["val", "test"])
def test_targets_against_pandas(prepared, part):
    targets = prepared.tables[part].itertuples(index=False, name=None)
    assert list(targets) == slow_targets(prepared.tables["events"], part)
    repeated = prepared.tables[f"{part}_again"].itertuples(index=False, name=None)
    assert list(repeated) == slow_targets(prepared.tables["events"], part, again=True)


def test_parts_do_not_overlap(prepared):
    events, split = prepared.tables["events"], prepared.split
    if split["kind"] == "random_pairs":
        assert events.groupby(["user_id", "product_id"]).split.nunique().max() == 1
        share = (events.drop_duplicates(["user_id", "product_id"]).split == "test").mean()
        assert share == pytest.approx(0.1, abs=0.04)
        return
    edges = [pd.Timestamp(split[name]) for name in ("start", "val_start", "test_start", "end")]
    for part, begin, end in zip(("train", "val", "test"), edges, edges[1:]):
        assert events[events.split == part].event_time.between(begin, end, inclusive="left").all(), part


def test_split_counts_its_parts(prepared):
    n_train, n_test = len(prepared.tables["train_events"]), len(prepared.tables["test"])
    assert (prepared.split["events_train"], prepared.split["targets_test"]) == (n_train, n_test)
    assert prepared.result.parts.loc["test", "targets"] == n_test


def test_cold_users_and_items_are_counted(prepared):
    for part in ("val", "test"):
        targets, counted = prepared.tables[part], prepared.result.parts.loc[part]
        assert counted[["target_users", "cold_users", "cold_items", "warm_targets"]].tolist() == [
            targets.user_id.nunique(),
            targets[~targets.known_user].user_id.nunique(),
            targets[~targets.known_item].product_id.nunique(),
            (targets.known_user & targets.known_item).sum(),
        ]
        assert prepared.result.metrics[f"cold_users_{part}"] == counted.cold_users


def test_users_and_items_are_counted(prepared):
    events, m = prepared.tables["events"], prepared.result.metrics
    assert (m["users"], m["items"]) == (events.user_id.nunique(), events.product_id.nunique())


def test_temporal_windows_of_days(tmp_path):
    prepare(tmp_path, random_events(), val_days=7, test_days=14)
    split = split_of(tmp_path)
    assert (split["val_start"], split["test_start"]) == ("2020-03-10 00:00:00 UTC", "2020-03-17 00:00:00 UTC")


def test_windows_that_leave_nothing_to_learn_from(tmp_path):
    with pytest.raises(DataError, match="make data_prep.val_days and test_days smaller"):
        prepare(tmp_path, random_events(), val_days=60, test_days=60)
    with pytest.raises(SettingsError, match="data_prep.val_days and test_days: expected both or none"):
        prepare(tmp_path, random_events(), val_days=60)


def test_targets_of_other_event_types(tmp_path):
    prepare(tmp_path, random_events(), targets=["cart", "purchase"])
    t = tables(tmp_path)
    train = t["train_events"][t["train_events"].event_type.isin(["cart", "purchase"])]
    assert pairs(t["test"]) & pairs(train) == set()
    assert set(t["test"].first_time) <= set(t["events"][t["events"].event_type.isin(["cart", "purchase"])].event_time)


CATALOGUE = pd.DataFrame(
    {
        "product_id": [1000, 1003, 9999],
        "name": ["Soap", None, "Comb"],
        "category_id": ["c9", "", ""],
        "brand": ["", "made", ""],
        "price": [1.0, 2.0, 3.0],
    }
)


def slow_attribute(seen, listed, column):
    "A product's attribute: that of the catalogue, else the last one seen; a price the other way round."
    values = seen.dropna(subset=column)
    last = values[values.event_time == values.event_time.max()][column].max() if len(values) else None
    named = listed[column] if listed is not None and listed[column] != "" else None
    first, second = (last, named) if column == "price" else (named, last)
    return second if first is None else first


@pytest.mark.parametrize("catalogue", [CATALOGUE, None], ids=["with catalogue", "without"])
def test_products_against_pandas(tmp_path, prepared_shop, catalogue):
    if catalogue is None:
        t = prepared_shop("temporal").tables
    else:
        prepare(tmp_path, random_events(), catalogue=catalogue)
        t = tables(tmp_path)
    assert t["products"].columns.tolist() == [*PRODUCTS.columns, "n_events"]
    assert t["products"].n_events.dtype == "int64"
    products, events = t["products"].set_index("product_id"), t["events"]
    train = events[events.split == "train"]
    listed = {} if catalogue is None else catalogue.set_index("product_id").to_dict("index")
    assert list(products.index) == sorted(set(events.product_id) | set(listed))
    for item, product in products.iterrows():
        seen = train[train.product_id == item]
        expected = [slow_attribute(seen, listed.get(item), c) for c in ("category_id", "brand", "price")]
        values = [None if pd.isna(value) else value for value in product[["category_id", "brand", "price"]]]
        assert [*values, product.n_events] == [*expected, len(seen)], item


def test_catalogue_with_names_of_its_own_and_bad_rows(tmp_path):
    catalogue = pd.DataFrame(
        {"sku": ["1000", "x", "", "1003"], "title": list("abcd"), "price": ["1", "2", "3", "free"]}
    )
    r = prepare(tmp_path, random_events(), catalogue=catalogue, product_columns={"product_id": "sku", "name": "title"})
    products = tables(tmp_path)["products"].set_index("product_id")
    assert products.name[[1000, 1003]].tolist() == ["a", "d"]
    assert (r.metrics["catalogue_rejected"], r.metrics["rows_rejected"]) == (2, 0)
    assert tables(tmp_path)["rejects"][["file", "line", "reason"]].values.tolist() == [
        ["products.csv", 3, "product_id is not an integer"],
        ["products.csv", 4, "product_id is missing"],
    ]
    with pytest.raises(DataError, match="set data_prep.product_columns: {product_id: sku}"):
        run(tmp_path, events="shop")


def test_text_ids_reach_every_table(tmp_path):
    df = random_events()
    df = df.assign(user_id="u" + df.user_id.astype(str), product_id="p0" + df.product_id.astype(str))
    prepare(tmp_path, df)
    for name in set(OUTPUTS) - {"rejects"}:
        t = tables(tmp_path)[name]
        assert t.product_id.str.startswith("p0").all(), name
        assert name == "products" or t.user_id.str.startswith("u").all(), name


def test_one_file_a_folder_and_a_glob(tmp_path, prepared_shop):
    df, first = random_events(), hashes(prepared_shop("temporal").root)
    shutil.copytree(prepared_shop("temporal").root, tmp_path, dirs_exist_ok=True)
    (tmp_path / "shop" / "notes.txt.md").write_text("no events")
    for events in ("shop/events.csv", "shop/*.csv", str(tmp_path / "shop")):
        run(tmp_path, events=events)
        assert hashes(tmp_path) == first
    (tmp_path / "shop" / "deep").mkdir()
    df[::2].to_csv(tmp_path / "shop" / "deep" / "a.csv", index=False)
    r = run(tmp_path, events="shop", pattern="**/*.csv")
    assert r.by_file.file.tolist() == ["deep/a.csv", "events.csv"]
    assert r.metrics["rows_kept"] == len(tables(tmp_path)["events"])


@pytest.mark.parametrize("split", ["temporal", "random_pairs"])
def test_same_settings_same_bytes(tmp_path, split):
    df = random_events(n=20_000)
    prepare(tmp_path / "a", df, split=split, threads=2)
    prepare(tmp_path / "b", df.sample(frac=1, random_state=3), split=split, threads=1, memory_limit="200MB")
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")


@pytest.mark.parametrize("split", ["temporal", "random_pairs"])
def test_another_seed_gives_other_bytes(tmp_path, prepared_shop, split):
    prepare(tmp_path, random_events(), split=split, seed=1)
    assert hashes(tmp_path) != hashes(prepared_shop(split).root)


def part_of_pairs(events):
    return events.groupby(["user_id", "product_id"]).split.first()


def test_random_pairs_keep_their_part_when_events_are_added(tmp_path, prepared_shop):
    prepare(tmp_path, random_events()[:1500], split="random_pairs")
    some = part_of_pairs(tables(tmp_path)["events"])
    assert part_of_pairs(prepared_shop("random_pairs").tables["events"])[some.index].equals(some)


def test_report_and_plots(tmp_path):
    r = prepare(tmp_path, pd.concat([random_events(), random_events(1)[:30].assign(price="-1")]))
    folder = tmp_path / "reports/data_prep"
    assert {f.name for f in folder.iterdir()} == {
        "metrics.json",
        *(f"{n}.csv" for n in ("by_month", "by_day", "by_file", "reasons", "warnings", "parts", "activity")),
        *(f"{n}.png" for n in ("events", "rejects", "targets", "activity")),
    }
    metrics = json.loads((folder / "metrics.json").read_text())
    assert {type(value) for value in metrics.values()} <= {int, float}
    assert metrics["rejected: price is negative"] == 30
    month = pd.read_csv(folder / "by_month.csv", index_col=0)
    events = tables(tmp_path)["events"]
    carts = (events.event_time.dt.month == 2) & (events.event_type == "cart")
    assert (month.sum().sum(), month.loc["2020-02", "cart"]) == (len(events), carts.sum())
    facts = "30 rejected", "rejected 30: price is negative (first: events.csv line "
    assert [fact for fact in facts if fact not in str(r)] == []


def counted_events(n=400, seed=5):
    "Purchases of a few pairs with quantities, some of which are given back."
    r, minutes = np.random.default_rng(seed), pd.to_timedelta(np.arange(n), unit="h")
    df = pd.DataFrame({"event_time": pd.Timestamp("2020-01-01") + minutes, "event_type": "purchase"})
    df["quantity"] = np.where(r.random(n) < 0.25, -r.integers(0, 4, n), r.integers(1, 5, n))
    return df.assign(product_id=r.integers(0, 5, n), user_id=r.integers(0, 6, n), price=12.0)


def units_left(events):
    "Which purchases keep a unit if each return takes off the latest ones: a stack for each pair."
    kept = set()
    for _, pair in events.groupby(["user_id", "product_id"]):
        stack = []
        for row in pair.sort_values("event_time").itertuples():
            units, left = row.quantity, -row.quantity
            if units > 0:
                stack.append([row.Index, units])
            while left > 0 and stack:
                taken = min(left, stack[-1][1])
                stack[-1][1], left = stack[-1][1] - taken, left - taken
                if not stack[-1][1]:
                    stack.pop()
        kept |= {index for index, _ in stack}
    return events.loc[sorted(kept)]


def when(events):
    return set(pd.to_datetime(events.event_time, utc=True))


def test_returns_are_set_aside(tmp_path):
    df = counted_events()
    result = prepare(tmp_path, df, max_rejected_share=1.0)
    assert when(tables(tmp_path)["events"]) == when(df[df.quantity > 0])
    assert result.metrics["rejected: a return: quantity is not above 0"] == (df.quantity <= 0).sum()


def test_returns_take_the_latest_purchases_off(tmp_path):
    df = counted_events()
    result = prepare(tmp_path, df, max_rejected_share=1.0, returns="take_off")
    kept = units_left(df)
    assert when(tables(tmp_path)["events"]) == when(kept)
    taken = (df.quantity > 0).sum() - len(kept)
    assert result.metrics["rejected: a purchase that was given back"] == taken > 20


def test_a_price_may_be_that_of_the_row(tmp_path):
    df = counted_events()
    df = df[df.quantity > 0]
    prepare(tmp_path, df, price_per="row")
    prices = tables(tmp_path)["events"].sort_values("event_time").price
    np.testing.assert_allclose(prices, df.price / df.quantity)


def test_a_quantity_that_is_not_there_is_one_and_views_may_have_none(tmp_path):
    df = counted_events(40).assign(quantity="", price="6")
    df.loc[:9, ["event_type", "quantity"]] = ["view", "0"]
    df.loc[10, "quantity"] = "many"
    result = prepare(tmp_path, df, price_per="row", max_rejected_share=1.0)
    assert (result.metrics["rows_kept"], result.metrics["rejected: quantity is not a number"]) == (39, 1)
    assert (tables(tmp_path)["events"].price == 6).all()


@pytest.fixture
def spark(monkeypatch):
    "The one option of Spark's compiler, which is kept in the package that talks to Spark, is set by hand."

    class Spark(ibis.config.Config):
        treat_nan_as_null: bool = False

    monkeypatch.setattr(ibis.options, "pyspark", Spark())


def unchecked(layout):
    "A table as `read_rows` gives it."
    texts = dict.fromkeys(("file", "problem", "raw", *layout.read), "string")
    return ibis.table({**texts, "line": "int64", "first": "int64", "row": "int64"}, name=layout.name)


JANUARY = (pd.Timestamp("2020-01-01"), pd.Timestamp("2020-02-01"))


@pytest.mark.parametrize("split", ["temporal", "random_pairs"])
def test_expressions_are_not_bound_to_duckdb(spark, split):
    "Everything that is done to events can be written in Spark's SQL."
    settings, points = DataPrepSettings(split=split), JANUARY if split == "temporal" else None
    id_types = {"user_id": "integer", "product_id": "string"}
    checked = check_events(unchecked(EVENT_LAYOUT), id_types, Meaning({"buy": "purchase"}, decimal=","), now=NOW)
    catalogue = one_row_a_product(check_products(unchecked(PRODUCTS), "string").mutate(row=ibis.row_number()))
    events = clean_events(checked, settings, points)
    written = ibis.table(events.schema(), name="written")
    train = written.filter(written.split == "train")
    val, test = (target_pairs(bought_pairs(written, part, ["purchase"])) for part in ("val", "test"))
    products = product_table(written.select("product_id").distinct(), attributes_seen(written), catalogue)
    tables = [events, count_events(checked), rejects(checked), val, test, products]
    for table in (*tables, *stage.leaks(train, val, test, settings, points).values()):
        assert ibis.to_sql(table, dialect="pyspark").startswith(("SELECT", "WITH"))


def test_little_memory_says_what_to_do(tmp_path):
    with pytest.raises(DataError, match="expected data_prep.memory_limit 4MB to suffice, found it too small: raise it"):
        prepare(tmp_path, random_events(n=200_000), memory_limit="4MB")


MEASURE = """
import re, sys
from pathlib import Path
from gnn_ecommerce.data_prep import run_data_prep
rows = run_data_prep(sys.argv[1]).metrics["rows_read"]
print(rows, re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from Linux' /proc")
def test_memory_stays_flat(tmp_path):
    "A million events with half a gigabyte for DuckDB: the process stays below a gigabyte and a quarter."
    # not ru_maxrss: on Linux a child starts with its parent's peak, here that of the whole test run
    df = random_events(n=200_000, users=80_000, items=20_000)
    (tmp_path / "shop").mkdir()
    for k in range(5):
        others = pa.Table.from_pandas(df.assign(user_id=df.user_id + 1_000_000 * k), preserve_index=False)
        pa.csv.write_csv(others, tmp_path / "shop" / f"{k}.csv")
    params = tmp_path / "params.yaml"
    params.write_text(yaml.safe_dump({"data_prep": {"events": "shop", "memory_limit": "500MB", "threads": 2}}))
    command = [sys.executable, "-c", MEASURE, params]
    printed = subprocess.run(command, cwd=Path(stage.__file__).parents[1], check=True, capture_output=True, text=True)
    rows, peak = map(int, printed.stdout.split()[-2:])
    assert (rows, peak < 1.25e6) == (1_050_000, True), f"peak of {peak:,} kB"


# real shops


def test_cosmetics_sample_keeps_and_reports_the_stray_row(tmp_path, real_data):
    r = run(tmp_path, events=str(real_data / "cosmetics_sample"))
    m, events = r.metrics, tables(tmp_path)["events"]
    assert (m["rows_read"], m["files"], m["rows_rejected"], m["users"], m["items"]) == (4995, 5, 0, 893, 2832)
    raw = pd.concat([pd.read_csv(f, dtype=str) for f in sorted((real_data / "cosmetics_sample").glob("20*.csv"))])
    assert m["rows_duplicate"] == raw.duplicated().sum() > 0
    assert events.event_type.value_counts().to_dict() == raw.drop_duplicates().event_type.value_counts().to_dict()
    stray = r.warnings.set_index("warning").loc["user_session is no UUID, as the others are"]
    session = "091e110c-f7bd-47b5-bed8-3a3aba4232ddgg"
    assert stray.tolist()[:2] == [1, f"'{session}' in 2020-Jan.csv line 1000"]
    assert (events.user_session == session).sum() == 1
    products = tables(tmp_path)["products"]
    assert (m["products"], len(products), m["catalogue_rejected"]) == (54043, 54043, 0)
    assert products.brand.nunique() == 273


def test_retailrocket_by_column_map_alone(tmp_path, real_data):
    r = run(
        tmp_path,
        events=str(real_data / "retailrocket" / "train_events.csv"),
        columns={"event_time": "timestamp", "event_type": "behavior", "product_id": "item", "user_id": "user"},
        event_types={"buy": "purchase"},
    )
    raw, events = pd.read_csv(real_data / "retailrocket" / "train_events.csv"), tables(tmp_path)["events"]
    assert (r.metrics["rows_kept"], r.metrics["rows_rejected"]) == (97381, 0)
    assert events.event_type.value_counts().to_dict() == {"view": 75374, "cart": 12456, "purchase": 9551}
    first, last = (pd.Timestamp(int(t), unit="s", tz="UTC") for t in (raw.timestamp.min(), raw.timestamp.max()))
    assert (events.event_time.min(), events.event_time.max()) == (first, last)
    assert r.metrics["users"] == raw.user.nunique()
    assert r.metrics["targets_test"] > 500
