"""The stage as a whole: splits without leaks, targets and products against slow pandas versions, real shops, the same bytes twice."""

import hashlib
import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import ibis
import numpy as np
import pandas as pd
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
)
from gnn_ecommerce.data.events import (
    EVENTS,
    PRODUCTS,
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
    assert (
        m["rows_read"] == m["rows_kept"] + m["rows_rejected"] + m["rows_duplicate"]
        and m["rows_kept"] == m["events_train"] + m["events_val"] + m["events_test"]
    )
    return result


def tables(root):
    return {
        name: read_table(root / "data" / place, "targets" if name in ("val", "test") else name, "data_prep")
        for name, place in OUTPUTS.items()
    }


def hashes(root):
    return {
        f.relative_to(root).as_posix(): hashlib.sha256(f.read_bytes()).hexdigest()
        for f in sorted(root.glob("data/**/*.*"))
    }


@pytest.fixture(autouse=True)
def no_plots(monkeypatch, request):
    "The report is written in its own test only."
    if "report" not in request.node.name:
        monkeypatch.setattr(stage, "write_report", lambda result, folder: None)


def slow_targets(events, part):
    "First-time purchases of a part, a pair at a time."
    earlier = {"val": ["train"], "test": ["train", "val"]}[part]
    train, out = events[events.split == "train"], []
    for (user, item), g in events[events.event_type == "purchase"].groupby(["user_id", "product_id"]):
        now = g[g.split == part]
        if len(now) and not g.split.isin(earlier).any():
            out.append(
                (
                    user,
                    item,
                    now.event_time.min(),
                    len(now),
                    bool((train.user_id == user).any()),
                    bool((train.product_id == item).any()),
                )
            )
    return sorted(out, key=lambda r: (r[0], r[2], r[1]))


@pytest.mark.parametrize(
    "settings",
    [{}, {"split": "random_pairs"}, {"val_days": 5, "test_days": 10.5}, {"val_share": 0.3, "test_share": 0.02}],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_split_lets_nothing_of_val_and_test_into_train(tmp_path, settings, seed):
    result = prepare(tmp_path, random_events(seed), seed=seed, **settings)
    t, split = tables(tmp_path), read_json(tmp_path / "data/processed/split.json", "data_prep")
    events, train, val, test = t["events"], t["train_events"], t["val"], t["test"]
    pairs = lambda df: set(zip(df.user_id, df.product_id))
    bought = pairs(train[train.event_type == "purchase"])
    assert not pairs(val) & bought and not pairs(test) & bought and not pairs(val) & pairs(test)
    columns = ["user_id", "product_id", "event_type", "event_time", "price"]
    pd.testing.assert_frame_equal(train[columns], events[events.split == "train"][columns].reset_index(drop=True))
    for part, df in (("val", val), ("test", test)):
        assert list(df.itertuples(index=False, name=None)) == slow_targets(events, part)
    if split["kind"] == "temporal":
        begin, end = pd.Timestamp(split["val_start"]), pd.Timestamp(split["test_start"])
        assert (
            train.event_time.max() < begin <= events[events.split == "val"].event_time.min()
            and events[events.split == "val"].event_time.max() < end <= events[events.split == "test"].event_time.min()
        )
        assert pd.Timestamp(split["start"]) <= events.event_time.min() and events.event_time.max() < pd.Timestamp(
            split["end"]
        )
    else:
        assert events.groupby(["user_id", "product_id"]).split.nunique().max() == 1
        assert abs((events.drop_duplicates(["user_id", "product_id"]).split == "test").mean() - 0.1) < 0.04
    assert (
        split["events_train"] == len(train)
        and split["targets_test"] == len(test) == result.parts.loc["test", "targets"]
    )


def test_temporal_windows_of_days(tmp_path):
    prepare(tmp_path, random_events(), val_days=7, test_days=14)
    split = read_json(tmp_path / "data/processed/split.json", "data_prep")
    assert (split["val_start"], split["test_start"]) == ("2020-03-10 00:00:00 UTC", "2020-03-17 00:00:00 UTC")


def test_windows_that_leave_nothing_to_learn_from(tmp_path):
    with pytest.raises(DataError, match="make data_prep.val_days and test_days smaller"):
        prepare(tmp_path, random_events(), val_days=60, test_days=60)
    with pytest.raises(SettingsError, match="data_prep.val_days and test_days: expected both or none"):
        prepare(tmp_path, random_events(), val_days=60)


def test_cold_users_and_items_are_counted(tmp_path):
    r = prepare(tmp_path, random_events())
    t = tables(tmp_path)
    for part in ("val", "test"):
        df, row = t[part], r.parts.loc[part]
        assert (
            row.cold_users == df[~df.known_user].user_id.nunique()
            and row.cold_items == df[~df.known_item].product_id.nunique()
            and row.warm_targets == (df.known_user & df.known_item).sum()
        )
        assert row.target_users == df.user_id.nunique() and r.metrics[f"cold_users_{part}"] == row.cold_users
    assert (
        r.metrics["users"] == t["events"].user_id.nunique() and r.metrics["items"] == t["events"].product_id.nunique()
    )


def test_targets_of_other_event_types(tmp_path):
    prepare(tmp_path, random_events(), targets=["cart", "purchase"])
    t = tables(tmp_path)
    train = t["train_events"][t["train_events"].event_type.isin(["cart", "purchase"])]
    assert not set(zip(t["test"].user_id, t["test"].product_id)) & set(zip(train.user_id, train.product_id))
    assert set(t["test"].first_time) <= set(t["events"][t["events"].event_type.isin(["cart", "purchase"])].event_time)


@pytest.mark.parametrize("with_catalogue", [True, False])
def test_products_against_pandas(tmp_path, with_catalogue):
    catalogue = pd.DataFrame(
        {
            "product_id": [1000, 1003, 9999],
            "name": ["Soap", None, "Comb"],
            "category_id": ["c9", "", ""],
            "brand": ["", "made", ""],
            "price": [1.0, 2.0, 3.0],
        }
    )
    prepare(tmp_path, random_events(), catalogue=catalogue if with_catalogue else None)
    t = tables(tmp_path)
    products, events = t["products"].set_index("product_id"), t["events"]
    assert list(products.index) == sorted(set(events.product_id) | ({1000, 1003, 9999} if with_catalogue else set()))
    train = events[events.split == "train"]
    for item, row in products.iterrows():
        mine = train[train.product_id == item]
        listed = (
            catalogue[catalogue.product_id == item].iloc[0] if with_catalogue and item in (1000, 1003, 9999) else None
        )
        for column in ("category_id", "brand", "price"):
            last = mine.dropna(subset=column)
            last = last[last.event_time == last.event_time.max()][column].max() if len(last) else None
            other = listed[column] if listed is not None and listed[column] not in ("", None) else None
            expected = (
                (last if last is not None else other) if column == "price" else (other if other is not None else last)
            )
            assert (pd.isna(row[column]) and expected is None) or row[column] == expected, (item, column)
        assert row.n_events == len(mine)
    assert products.n_events.dtype == "int64" and t["products"].columns.tolist() == [*PRODUCTS.columns, "n_events"]


def test_catalogue_with_names_of_its_own_and_bad_rows(tmp_path):
    catalogue = pd.DataFrame(
        {"sku": ["1000", "x", "", "1003"], "title": list("abcd"), "price": ["1", "2", "3", "free"]}
    )
    r = prepare(tmp_path, random_events(), catalogue=catalogue, product_columns={"product_id": "sku", "name": "title"})
    products = tables(tmp_path)["products"].set_index("product_id")
    assert (
        products.name[1000] == "a"
        and products.name[1003] == "d"
        and r.metrics["catalogue_rejected"] == 2
        and r.metrics["rows_rejected"] == 0
    )
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
    for name, t in tables(tmp_path).items():
        if name != "rejects":
            assert t.product_id.str.startswith("p0").all() and (
                "user_id" not in t or t.user_id.str.startswith("u").all()
            )


def test_one_file_a_folder_and_a_glob(tmp_path):
    df = random_events()
    prepare(tmp_path, df)
    first = hashes(tmp_path)
    (tmp_path / "shop" / "notes.txt.md").write_text("no events")
    for events in ("shop/events.csv", "shop/*.csv", str(tmp_path / "shop")):
        run(tmp_path, events=events)
        assert hashes(tmp_path) == first
    (tmp_path / "shop" / "deep").mkdir()
    df[::2].to_csv(tmp_path / "shop" / "deep" / "a.csv", index=False)
    r = run(tmp_path, events="shop", pattern="**/*.csv")
    assert r.by_file.file.tolist() == ["deep/a.csv", "events.csv"] and r.metrics["rows_kept"] == len(
        read_table(tmp_path / "data/interim/events.parquet", "events", "data_prep")
    )


@pytest.mark.parametrize("split", ["temporal", "random_pairs"])
def test_same_settings_same_bytes(tmp_path, split):
    df = random_events(n=30_000)
    prepare(tmp_path / "a", df, split=split, threads=2)
    prepare(tmp_path / "b", df.sample(frac=1, random_state=3), split=split, threads=1, memory_limit="200MB")
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")
    prepare(tmp_path / "b", df, split=split, seed=1)
    assert (hashes(tmp_path / "a") == hashes(tmp_path / "b")) is False


def test_random_pairs_keep_their_part_when_events_are_added(tmp_path):
    df = random_events()
    prepare(tmp_path, df[:1500], split="random_pairs")
    first = tables(tmp_path)["events"].groupby(["user_id", "product_id"]).split.first()
    prepare(tmp_path, df, split="random_pairs")
    assert tables(tmp_path)["events"].groupby(["user_id", "product_id"]).split.first()[first.index].equals(first)


def test_report_and_plots(tmp_path):
    r = prepare(tmp_path, pd.concat([random_events(), random_events(1)[:30].assign(price="-1")]))
    folder = tmp_path / "reports/data_prep"
    assert {f.name for f in folder.iterdir()} == {
        "metrics.json",
        *(f"{n}.csv" for n in ("by_month", "by_day", "by_file", "reasons", "warnings", "parts", "activity")),
        *(f"{n}.png" for n in ("events", "rejects", "targets", "activity")),
    }
    metrics = json.loads((folder / "metrics.json").read_text())
    assert all(isinstance(v, int | float) for v in metrics.values()) and metrics["rejected: price is negative"] == 30
    month = pd.read_csv(folder / "by_month.csv", index_col=0)
    events = tables(tmp_path)["events"]
    assert (
        month.sum().sum() == len(events)
        and month.loc["2020-02", "cart"] == ((events.event_time.dt.month == 2) & (events.event_type == "cart")).sum()
    )
    assert "30 rejected" in str(r) and "rejected 30: price is negative (first: events.csv line " in str(r)


def test_expressions_are_not_bound_to_duckdb(monkeypatch):
    "Everything that is done to events can be written in Spark's SQL. (Without Spark its one option has to be given by hand.)"

    class Spark(ibis.config.Config):
        treat_nan_as_null: bool = False

    monkeypatch.setattr(ibis.options, "pyspark", Spark())
    text = dict.fromkeys(("file", "problem", "raw", *EVENTS.columns), "string")
    rows, kinds = (
        ibis.table({**text, "line": "int64", "first": "int64"}, name="rows"),
        {"user_id": "integer", "product_id": "string"},
    )
    checked = check_events(rows, kinds, {"buy": "purchase"}, decimal=",", now=NOW)
    catalogue = check_products(
        ibis.table(
            {
                **dict.fromkeys(("file", "problem", "raw", *PRODUCTS.columns), "string"),
                "line": "int64",
                "first": "int64",
            },
            name="catalogue",
        ),
        "string",
    )
    for settings, points in (
        (DataPrepSettings(), (pd.Timestamp("2020-01-01"), pd.Timestamp("2020-02-01"))),
        (DataPrepSettings(split="random_pairs"), None),
    ):
        events = clean_events(checked, settings, points)
        written = ibis.table(events.schema(), name="events")
        train, val, test = (
            written.filter(written.split == "train"),
            target_pairs(written, "val", ["purchase"]),
            target_pairs(written, "test", ["purchase"]),
        )
        products = product_table(
            written.select("product_id").distinct(), attributes_seen(written), one_row_a_product(catalogue)
        )
        for e in (
            events,
            count_events(checked),
            rejects(checked),
            val,
            test,
            products,
            *stage.leaks(train, val, test, settings, points).values(),
        ):
            assert ibis.to_sql(e, dialect="pyspark").startswith(("SELECT", "WITH"))


def test_little_memory_says_what_to_do(tmp_path):
    with pytest.raises(DataError, match="expected data_prep.memory_limit 4MB to suffice, found it too small: raise it"):
        prepare(tmp_path, random_events(n=200_000), memory_limit="4MB")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from Linux' /proc")
def test_memory_stays_flat(tmp_path):
    "A million events with half a gigabyte for DuckDB: the process stays below a gigabyte and a quarter."
    df = random_events(n=1_000_000, users=80_000, items=20_000)
    (tmp_path / "shop").mkdir()
    for k in range(2):
        df[k::2].to_csv(tmp_path / "shop" / f"{k}.csv", index=False)
    (tmp_path / "params.yaml").write_text(
        yaml.safe_dump({"data_prep": {"events": "shop", "memory_limit": "500MB", "threads": 2}})
    )
    # not ru_maxrss: on Linux a child starts with its parent's peak, here that of the whole test run
    code = f"from pathlib import Path; from gnn_ecommerce.data_prep import run_data_prep; run_data_prep({str(tmp_path / 'params.yaml')!r}); print(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])"
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(stage.__file__).parents[1], check=True, capture_output=True, text=True
    ).stdout
    assert int(out.split()[-1]) < 1.25e6 and "1,050,000 rows in 2 files" in out


# real shops


def test_cosmetics_sample_keeps_and_reports_the_stray_row(tmp_path, real_data):
    r = run(tmp_path, events=str(real_data / "cosmetics_sample"))
    m, events = r.metrics, tables(tmp_path)["events"]
    assert (m["rows_read"], m["files"], m["rows_rejected"], m["users"], m["items"]) == (4995, 5, 0, 893, 2832)
    raw = pd.concat([pd.read_csv(f, dtype=str) for f in sorted((real_data / "cosmetics_sample").glob("20*.csv"))])
    assert m["rows_duplicate"] == raw.duplicated().sum() > 0
    assert events.event_type.value_counts().to_dict() == raw.drop_duplicates().event_type.value_counts().to_dict()
    stray = r.warnings.set_index("warning").loc["user_session is no UUID, as the others are"]
    assert (
        stray.rows == 1
        and stray.example == "'091e110c-f7bd-47b5-bed8-3a3aba4232ddgg' in 2020-Jan.csv line 1000"
        and (events.user_session == "091e110c-f7bd-47b5-bed8-3a3aba4232ddgg").sum() == 1
    )
    products = tables(tmp_path)["products"]
    assert m["products"] == len(products) == 54043 and m["catalogue_rejected"] == 0 and products.brand.nunique() == 273


def test_retailrocket_by_column_map_alone(tmp_path, real_data):
    r = run(
        tmp_path,
        events=str(real_data / "retailrocket" / "train_events.csv"),
        columns={"event_time": "timestamp", "event_type": "behavior", "product_id": "item", "user_id": "user"},
        event_types={"buy": "purchase"},
    )
    raw, events = pd.read_csv(real_data / "retailrocket" / "train_events.csv"), tables(tmp_path)["events"]
    assert (r.metrics["rows_kept"], r.metrics["rows_rejected"]) == (
        97381,
        0,
    ) and events.event_type.value_counts().to_dict() == {"view": 75374, "cart": 12456, "purchase": 9551}
    assert events.event_time.min() == pd.Timestamp(
        int(raw.timestamp.min()), unit="s", tz="UTC"
    ) and events.event_time.max() == pd.Timestamp(int(raw.timestamp.max()), unit="s", tz="UTC")
    assert r.metrics["users"] == raw.user.nunique() and r.metrics["targets_test"] > 500
