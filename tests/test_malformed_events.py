"""Malformed event files: nothing vanishes; what cannot be read at all says why and leaves earlier results alone."""

import csv
import errno
import gzip
import io
import random
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import yaml

import gnn_ecommerce.data_prep as stage
from gnn_ecommerce.core import ArtifactError, DataError, ProjectPaths, read_table
from gnn_ecommerce.data_prep import OUTPUTS, run_data_prep
from gnn_ecommerce.data.events import (
    AFTER_QUOTE,
    CUT_OFF,
    EVENTS,
    MARK,
    MAX_RAW,
    NOT_UTF8,
    NUL,
    TOO_FEW,
    TOO_LONG,
    TOO_MANY,
    UNTERMINATED,
    connect,
    open_file,
    parse_record,
    read_rows,
    stage_rows,
)

HEADER = "event_time,event_type,product_id,category_id,category_code,brand,price,user_id,user_session\n"
NOW = datetime(2021, 1, 1, tzinfo=UTC)
TYPES = ("view", "view", "cart", "purchase", "remove_from_cart")


def row(i, **fields):
    "A good row; fields replace its values."
    values = {
        "event_time": f"{datetime(2020, 1, 1) + timedelta(hours=7 * (i % 1000)):%Y-%m-%d %H:%M:%S} UTC",
        "event_type": TYPES[i % 5],
        "product_id": 5000 + i % 13,
        "category_id": 1487580000000000000 + i % 3,
        "category_code": "",
        "brand": f"brand{i % 4}",
        "price": f"{i % 9}.50",
        "user_id": 700 + i % 11,
        "user_session": f"{i:08x}-0000-4000-8000-00000000000{i % 10}",
    }
    return ",".join(str(fields.get(k, v)) for k, v in values.items()) + "\n"


GOOD = "".join(map(row, range(100)))


@pytest.fixture
def project(tmp_path, monkeypatch):
    "A function that writes files into a shop's folder and runs the stage on them; plots are left out."
    monkeypatch.setattr(stage, "write_report", lambda result, folder: None)
    return Project(tmp_path)


class Project:
    def __init__(self, root):
        self.root, self.paths = root, ProjectPaths(root)

    def write(self, files):
        for name, data in files.items():
            path = self.root / "shop" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data if isinstance(data, bytes) else data.encode())

    def run(self, files=None, **settings):
        self.write({"events.csv": files} if isinstance(files, (str, bytes)) else files or {})
        (self.root / "params.yaml").write_text(
            yaml.safe_dump({"data_prep": {"events": "shop", "max_rejected_share": 0.5, "threads": 2, **settings}})
        )
        result = run_data_prep(self.root / "params.yaml", NOW)
        m = result.metrics
        assert m["rows_read"] == m["rows_kept"] + m["rows_rejected"] + m["rows_duplicate"]
        assert m["rows_kept"] == len(self.table("events")) and m["rows_rejected"] + m["catalogue_rejected"] == len(
            self.table("rejects")
        )
        assert m["rows_read"] == result.by_file.rows.sum() and result.reasons.rows.sum() == len(self.table("rejects"))
        return result

    def table(self, name):
        kind = "targets" if name in ("val", "test") else name
        return read_table(self.root / "data" / OUTPUTS[name], kind, "data_prep")

    def rejects(self):
        return [
            (r.file, None if pd.isna(r.line) else int(r.line), r.reason) for r in self.table("rejects").itertuples()
        ]

    def outputs(self):
        return {
            f.relative_to(self.root).as_posix(): f.read_bytes()
            for f in sorted((self.root / "data").rglob("*"))
            if f.is_file()
        }


def kept(result, n=100):
    return result.metrics["rows_kept"] == n


# columns


def test_missing_column_in_one_file_rejects_its_rows(project):
    bad = "event_time,event_type,product_id\n2020-01-01,view,1\n\n2020-01-01,view,2\n"
    result = project.run({"a.csv": HEADER + GOOD, "b.csv": bad})
    assert kept(result) and project.rejects() == [("b.csv", 2, "no column user_id"), ("b.csv", 4, "no column user_id")]
    assert "no column user_id" in set(result.warnings.warning)


def test_missing_column_in_every_file_is_an_error(project):
    with pytest.raises(
        DataError,
        match=r"expected columns event_time, event_type, product_id, user_id in events.csv, "
        r"found event_time, event_type, product_id, price \(no column user_id\)",
    ):
        project.run("event_time,event_type,product_id,price\n2020-01-01,view,1,2\n")


def test_missing_optional_column_is_left_empty(project):
    result = project.run(
        "event_time,event_type,product_id,user_id\n"
        + "".join(f"2020-01-{i % 28 + 1:02},view,{i},{i}\n" for i in range(60))
    )
    assert kept(result, 60) and project.table("events")[["price", "brand", "user_session"]].isna().all(axis=None)
    assert "no column category_id, category_code, brand, price, user_session: left empty" in set(
        result.warnings.warning
    )


def test_renamed_column_through_the_map(project):
    text = (HEADER + GOOD).replace("user_id", "customer").replace("event_time", "when")
    assert kept(project.run(text, columns={"user_id": "customer", "event_time": "when"}))
    assert project.table("events").user_id.min() == 700


def test_renamed_column_without_a_map_proposes_one(project):
    with pytest.raises(DataError, match=r"set data_prep.columns: \{event_time: timestamp, user_id: customer_id\}"):
        project.run((HEADER + GOOD).replace("user_id", "customer_id").replace("event_time", "timestamp"))


def test_extra_column_is_not_used_and_reported(project):
    text = "".join(f"x{i},{line}\n" for i, line in enumerate((HEADER + GOOD).splitlines())).replace("x0,", "note,", 1)
    result = project.run(text)
    assert kept(result) and "column note not used" in set(result.warnings.warning)


def test_column_that_stands_twice(project):
    with pytest.raises(DataError, match="column user_id stands twice"):
        project.run("user_id," + HEADER + GOOD)


def test_wrong_delimiter_given(project):
    with pytest.raises(DataError, match="set data_prep.delimiter to what separates the columns"):
        project.run(HEADER + GOOD, delimiter=";")


@pytest.mark.parametrize("delimiter", [";", "\t", "|", "\x01"])
def test_other_delimiters(project, delimiter):
    first = project.run(HEADER + GOOD) and project.outputs()
    project.run((HEADER + GOOD).replace(",", delimiter), **({"delimiter": delimiter} if delimiter == "\x01" else {}))
    assert project.outputs() == first


# bytes


def test_bom(project):
    first = project.run(HEADER + GOOD) and project.outputs()
    project.run(b"\xef\xbb\xbf" + (HEADER + GOOD).encode())
    assert project.outputs() == first


def test_crlf(project):
    first = project.run(HEADER + GOOD) and project.outputs()
    project.run((HEADER + GOOD).replace("\n", "\r\n"))
    assert project.outputs() == first


def test_crlf_with_bom_and_quotes_and_damage(project):
    quoted = "".join(
        ",".join(f'"{f}"' for f in line.split(",")) + "\n" for line in (HEADER + GOOD + "x,y\n").splitlines()
    )
    result = project.run(b"\xef\xbb\xbf" + quoted.replace("\n", "\r\n").encode())
    assert kept(result) and project.rejects() == [("events.csv", 102, TOO_FEW)]
    assert project.table("rejects").raw.tolist() == ['"x","y"']


def test_mixed_line_ends(project):
    lines = (HEADER + GOOD).splitlines()
    assert kept(project.run("".join(line + ("\r\n" if i % 3 else "\n") for i, line in enumerate(lines))))
    assert project.rejects() == [] and project.table("events").user_session.str.len().eq(36).all()


def test_bytes_that_are_not_utf8(project):
    data = (
        (HEADER + GOOD).encode()
        + row(1, brand="B\u00fcrste").encode("latin-1")
        + row(200, brand="B\u00fcrste").encode()
    )
    result = project.run(data)
    assert kept(result, 101) and project.rejects() == [("events.csv", 102, NOT_UTF8)]
    assert r"B\xfcrste" in project.table("rejects").raw[0] and "B\u00fcrste" in set(project.table("events").brand)


def test_latin1_by_setting(project):
    data = (HEADER + GOOD + row(200, brand="B\u00fcrste") + row(201, brand='"B\u00fc""r"')).encode("latin-1")
    assert kept(project.run(data, encoding="latin-1"), 102) and {"B\u00fcrste", 'B\u00fc"r'} <= set(
        project.table("events").brand
    )


def test_nul_byte(project):
    assert kept(project.run((HEADER + GOOD).encode() + row(7, brand="a\0b").encode()))
    assert project.rejects() == [("events.csv", 102, NUL)] and r"a\x00b" in project.table("rejects").raw[0]


def test_the_mark_of_the_reader_in_the_data(project):
    assert kept(project.run(HEADER + GOOD + MARK + row(7)[1:]))
    assert project.rejects() == [("events.csv", 102, "event_time is not a time")]


# quotes and rows


def scanned(tmp_path, text):
    "The source of a file of text and the table of what was taken out of it."
    (tmp_path / "x.csv").write_text(text)
    source = open_file("x.csv", tmp_path / "x.csv", EVENTS, tmp_path / "work")
    return source, pd.read_parquet(source.side)


HEAD, LINE = "event_time,event_type,product_id,user_id\n", "t,view,1,2\n"


def test_lines_of_more_than_a_megabyte_are_rejected(tmp_path):
    source, side = scanned(tmp_path, HEAD + LINE + "x" * 3_000_000 + "\n" + LINE + "t,view,1," + "y" * 1_500_000)
    assert source.rows == 4
    assert list(zip(side.line, side.problem)) == [(3, TOO_LONG), (5, TOO_LONG)]
    assert side.raw.str.len().max() == MAX_RAW


def test_unterminated_quotes_before_a_million_good_lines(tmp_path):
    source, side = scanned(tmp_path, HEAD + 't,view,1,"2\n' * 2 + LINE * 1_000_000 + "t,view,\n")
    assert source.rows == 1_000_003
    assert list(zip(side.line, side.problem)) == [(2, UNTERMINATED), (3, UNTERMINATED), (1_000_004, TOO_FEW)]
    assert source.path.read_bytes().count(b"\n") == 1_000_004


def test_unterminated_quote(project):
    result = project.run(
        HEADER
        + row(0)
        + row(1, brand='"open')
        + "".join(map(row, range(2, 50)))
        + row(50, brand='"a, ""b"""')
        + "".join(map(row, range(51, 100)))
    )
    assert kept(result, 99) and project.rejects() == [("events.csv", 3, UNTERMINATED)]
    assert 'a, "b"' in set(project.table("events").brand)


def test_unterminated_quote_in_the_last_row(project):
    assert kept(project.run(HEADER + GOOD + row(100, brand='"open').rstrip()))
    assert project.rejects() == [("events.csv", 102, UNTERMINATED)]


def test_line_breaks_in_quotes_keep_line_numbers(project):
    result = project.run(
        HEADER
        + row(0, brand='"two\nlines"')
        + row(1, brand='"three\r\n\nlines"')
        + row(2, event_type="like")
        + "".join(map(row, range(3, 100)))
    )
    assert kept(result, 99) and project.rejects() == [("events.csv", 7, "unknown event type")]
    assert {"two\nlines", "three\n\nlines"} <= set(project.table("events").brand)


def test_text_after_a_closing_quote(project):
    assert kept(project.run(HEADER + GOOD + row(100, brand='"a"b')))
    assert project.rejects() == [("events.csv", 102, AFTER_QUOTE)]


def test_truncated_row(project):
    assert kept(project.run(HEADER + row(0)[:40] + "\n" + GOOD + row(100)[:60]))
    assert project.rejects() == [("events.csv", 2, TOO_FEW), ("events.csv", 103, TOO_FEW)]
    assert project.table("rejects").raw.tolist() == [row(0)[:40], row(100)[:60]]


def test_too_many_fields(project):
    assert kept(project.run(HEADER + GOOD + row(100, brand="a,b")))
    assert project.rejects() == [("events.csv", 102, TOO_MANY)]


def test_repeated_header(project):
    assert kept(project.run(HEADER + GOOD + HEADER + row(100), columns={}), 101)
    assert project.rejects() == [("events.csv", 102, "repeated header")]


def test_repeated_header_with_other_names(project):
    head = HEADER.replace("user_id", "customer").replace("product_id", "sku")
    project.run(head + GOOD + head, columns={"user_id": "customer", "product_id": "sku"})
    assert project.rejects() == [("events.csv", 102, "repeated header")]


def test_blank_lines_are_counted_and_no_rows(project):
    result = project.run(HEADER + "\n" + GOOD + "  \n\n")
    assert (
        kept(result)
        and result.metrics["rows_read"] == 100
        and result.warnings.set_index("warning").rows["blank line"] == 3
    )


# files


def test_empty_file(project):
    result = project.run({"a.csv": HEADER + GOOD, "b.csv": "", "c.csv": b"\xef\xbb\xbf\n"})
    assert (
        kept(result)
        and result.metrics["files"] == 3
        and set(result.warnings.example[result.warnings.warning == "file is empty"]) == {"b.csv"}
    )


def test_header_only_file(project):
    result = project.run({"a.csv": HEADER + GOOD, "b.csv": HEADER, "c.csv": HEADER.strip()})
    assert kept(result) and "file has a header only" in set(result.warnings.warning)


@pytest.mark.parametrize("text", ["", HEADER])
def test_nothing_but_empty_files_is_an_error(project, text):
    with pytest.raises(DataError, match="expected events, found no row in events.csv"):
        project.run(text)


def test_truncated_gzip(project):
    text = (HEADER + "".join(map(row, range(5000)))).encode()
    packed = gzip.compress(text, mtime=0)
    result = project.run({"a.csv": HEADER + GOOD, "b.csv.gz": packed[: len(packed) * 2 // 3]})
    ((file, line, reason),) = project.rejects()
    assert (file, reason) == ("b.csv.gz", CUT_OFF) and 1000 < line < 5000
    assert result.metrics["rows_read"] == 100 + (line - 2) + 1 and text.decode().splitlines()[line - 1].startswith(
        project.table("rejects").raw[0]
    )
    assert CUT_OFF in set(result.warnings.warning)


def test_damaged_gzip(project):
    packed = bytearray(gzip.compress((HEADER + "".join(map(row, range(5000)))).encode(), mtime=0))
    packed[len(packed) // 2] ^= 0xFF
    result = project.run({"a.csv": HEADER + GOOD, "b.csv.gz": bytes(packed)})
    assert [r[2] for r in project.rejects() if r[2] == CUT_OFF] == [CUT_OFF] and result.metrics["rows_kept"] > 100


def test_truncated_zst(project):
    text = (HEADER + "".join(map(row, range(60_000)))).encode()
    packed = pa.compress(text, codec="zstd", asbytes=True)
    project.run({"a.csv": HEADER + GOOD, "b.csv.zst": packed[: len(packed) // 2]})
    ((file, line, reason),) = (r for r in project.rejects() if r[2] == CUT_OFF)
    assert file == "b.csv.zst" and line > 1000


@pytest.mark.parametrize("form", ["gz", "gz of two members", "zst", "parquet of text", "parquet of types"])
def test_every_form_gives_the_same_result(project, form):
    first = project.run(HEADER + GOOD) and project.outputs()
    (project.root / "shop" / "events.csv").unlink()
    if form.startswith("parquet"):
        df = pd.read_csv(io.StringIO(HEADER + GOOD), dtype=str)
        if form.endswith("types"):
            df = df.assign(
                event_time=pd.to_datetime(df.event_time),
                user_id=df.user_id.astype("float64"),
                product_id=df.product_id.astype("int32"),
                price=df.price.astype("float64"),
                category_id=df.category_id.astype("int64"),
            )
        df.to_parquet(buffer := io.BytesIO())
        data = buffer.getvalue()
    elif form == "zst":
        data = pa.compress((HEADER + GOOD).encode(), codec="zstd", asbytes=True)
    else:
        data = b"".join(
            gzip.compress(part.encode())
            for part in ([HEADER + GOOD] if form == "gz" else [HEADER + row(0)[:20], GOOD[20:]])
        )
    project.run({f"events.{'parquet' if form.startswith('parquet') else 'csv.' + form[:3].strip()}": data})
    assert project.outputs() == first


def test_same_folder_with_files_in_another_order(project, monkeypatch):
    parts = {f"{name}.csv": HEADER + "".join(row(i) for i in range(100) if i % 3 == k) for k, name in enumerate("abc")}
    project.run(parts)
    first = project.outputs()
    glob = Path.glob
    monkeypatch.setattr(Path, "glob", lambda self, pattern: reversed(list(glob(self, pattern))))
    project.run(parts)
    assert project.outputs() == first
    project.run(dict(zip(parts, reversed(parts.values()))), threads=1)
    assert project.outputs() == first


# values


def rejected(project, reason, **fields):
    "A good file with rows that are rejected for a reason: one for each value of a field."
    ((column, values),) = fields.items()
    bad = [row(100, **{column: value}) for value in values]
    result = project.run(HEADER + GOOD + "".join(bad))
    assert kept(result) and project.rejects() == [("events.csv", 102 + i, reason) for i in range(len(bad))]
    assert project.table("rejects").raw.tolist() == [o.rstrip() for o in bad] and result.reasons["first"].tolist() == [
        "events.csv line 102"
    ]


def test_bad_timestamp(project):
    rejected(
        project,
        "event_time is not a time",
        event_time=["31.01.2020", "2020-02-30 10:00:00 UTC", "yesterday", "2020-01-01 25:00:00", "nan UTC", "1e400"],
    )


def test_missing_timestamp(project):
    rejected(project, "event_time is missing", event_time=["", "NULL"])


def test_timestamp_in_the_future(project):
    rejected(
        project, "event_time is in the future", event_time=["2021-01-02 00:00:01 UTC", "9999-12-31", "99999999999"]
    )


def test_timestamp_before_1990(project):
    rejected(project, "event_time is before 1990", event_time=["1989-12-31 23:59:59 UTC", "0", "0001-01-01"])


def test_unknown_event_type(project):
    rejected(project, "unknown event type", event_type=["like", "", "purchase!"])


def test_missing_user_id(project):
    rejected(project, "user_id is missing", user_id=["", "NULL", "nan"])


def test_missing_item_id(project):
    rejected(project, "product_id is missing", product_id=["", "None", "\\N"])


def test_id_beyond_int64(project):
    rejected(project, "user_id is beyond int64", user_id=["9223372036854775808"])


def test_id_that_is_no_integer(project):
    rejected(project, "product_id is not an integer", product_id=["x7"])


def test_id_that_is_no_integer_by_setting(project):
    result = project.run(
        HEADER
        + GOOD
        + "".join(
            row(100, product_id=o) for o in ("007", "7.0", "+7", "7e2", " 7", "1" + "0" * 40, "-9223372036854775809")
        ),
        product_id="integer",
    )
    assert kept(result) and result.reasons[["reason", "rows"]].values.tolist() == [
        ["product_id is not an integer", 5],
        ["product_id is beyond int64", 2],
    ]


def test_price_negative(project):
    rejected(project, "price is negative", price=["-0.01", "-inf"])


def test_price_nan_or_infinite(project):
    rejected(project, "price is not finite", price=["NaN", "nan", "inf", "1e999"])


def test_price_that_is_no_number(project):
    rejected(project, "price is not a number", price=["2;50", "free", "1_000"])


def test_decimal_comma(project):
    project.run((HEADER + GOOD).replace(",", ";").replace(".50;", ",50;"), decimal=",")
    assert project.rejects() == [] and project.table("events").price.max() == 8.5


def test_missing_price_or_session_is_kept_and_counted(project):
    result = project.run(HEADER + GOOD + row(100, price="") + row(101, price="", user_session=""))
    assert kept(result, 102) and result.warnings.set_index("warning").rows[
        ["price is missing", "user_session is missing"]
    ].tolist() == [2, 1]


def test_session_that_is_no_uuid_is_kept_and_reported(project):
    result = project.run(HEADER + GOOD + row(100, user_session="091e110c-f7bd-47b5-bed8-3a3aba4232ddgg"))
    warning = result.warnings.set_index("warning").loc["user_session is no UUID, as the others are"]
    assert (
        kept(result, 101)
        and warning.rows == 1
        and warning.example == "'091e110c-f7bd-47b5-bed8-3a3aba4232ddgg' in events.csv line 102"
    )


def test_exact_duplicates_are_counted_and_dropped(project):
    result = project.run({"a.csv": HEADER + GOOD + row(5) + row(5), "b.csv": HEADER + row(7) + row(7, price="99")})
    assert kept(result, 101) and result.metrics["rows_duplicate"] == 3


def test_ids_come_back_unchanged(project):
    ids = ["007", "7", " 7", "\u00fc-1", "A b", "9" * 30, "7.0", "true"]
    project.run(
        HEADER
        + "".join(row(i, user_id=ids[i % 8], product_id=-(2**63) + i if i % 2 else 2**63 - 1 - i) for i in range(64))
    )
    events = project.table("events")
    assert set(events.user_id) == set(ids) and events.product_id.dtype == "int64"
    assert set(events.product_id.tolist()) == {-(2**63) + i if i % 2 else 2**63 - 1 - i for i in range(64)}


def test_integer_ids_kept_as_text_by_setting(project):
    project.run(HEADER + GOOD, user_id="string")
    assert set(project.table("train_events").user_id) <= {str(i) for i in range(700, 711)}


def test_ids_that_look_like_integers_only_at_first(project):
    project.run(HEADER + "".join(row(i, user_id=i if i < 12_000 else f"x{i}") for i in range(12_500)), user_id="auto")
    assert (
        set(project.table("events").user_id) == {str(i) if i < 12_000 else f"x{i}" for i in range(12_500)}
        and project.rejects() == []
    )


@pytest.mark.parametrize("form", ["seconds", "milliseconds", "fractions", "zone", "iso", "no zone"])
def test_timestamps_in_other_forms(project, form):
    first = project.run(HEADER + GOOD) and project.outputs()

    def write(t):
        t = t.replace(tzinfo=UTC)
        return {
            "seconds": f"{t.timestamp():.0f}",
            "milliseconds": f"{t.timestamp() * 1000:.0f}",
            "fractions": f"{t.timestamp():.3f}",
            "zone": f"{t.astimezone(timezone(timedelta(hours=-5))):%Y-%m-%d %H:%M:%S%z}",
            "iso": f"{t:%Y-%m-%dT%H:%M:%SZ}",
            "no zone": f"{t:%Y-%m-%d %H:%M:%S}",
        }[form]

    project.run(
        HEADER + "".join(row(i, event_time=write(datetime(2020, 1, 1) + timedelta(hours=7 * i))) for i in range(100))
    )
    assert project.outputs() == first


# errors that leave earlier results alone


@pytest.fixture
def before(project):
    "A project that has results, which are as they were when the test is over."
    project.run(HEADER + GOOD)
    outputs = project.outputs()
    yield project
    assert project.outputs() == outputs
    assert not [f for f in project.paths.interim.iterdir() if f.name.startswith(".")]


def test_missing_path(before):
    with pytest.raises(DataError, match="found no such file or folder: check data_prep.events"):
        before.run(events="nowhere")


def test_folder_without_events(before):
    (before.root / "empty").mkdir()
    with pytest.raises(DataError, match="found none: check data_prep.events and data_prep.pattern"):
        before.run(events="empty")


def test_missing_catalogue(before):
    with pytest.raises(DataError, match="expected a catalogue in .*check data_prep.products"):
        before.run(products="gone.csv")


def test_unreadable_file_a_folder_named_like_one(before):
    (before.root / "shop" / "x.csv").mkdir()
    with pytest.raises(DataError, match="expected a file in .*x.csv, found a folder"):
        before.run()


def test_unreadable_file_a_dangling_link(before):
    (before.root / "shop" / "x.csv").symlink_to(before.root / "gone")
    with pytest.raises(DataError, match="expected a readable file in .*x.csv, found No such file"):
        before.run()


def test_unreadable_file_no_permission(before, monkeypatch):
    def denied(path, *args, **kwargs):
        if str(path).endswith("events.csv"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return open(path, *args, **kwargs)

    monkeypatch.setattr("gnn_ecommerce.data.events.open", denied, raising=False)
    with pytest.raises(DataError, match="expected a readable file in .*events.csv, found Permission denied"):
        before.run()


def test_damaged_parquet(before):
    with pytest.raises(DataError, match="found damage .*: fetch the file again or take it out"):
        before.run({"x.parquet": b"PAR1 and nothing more"})


def test_too_many_rejects_stop_the_stage(before):
    with pytest.raises(DataError) as err:
        before.run(HEADER + GOOD + row(1, user_id="") * 30 + "x,y\n" * 5, max_rejected_share=0.2)
    text = str(err.value)
    assert (
        "found 35 of 135 (25.9%)" in text
        and "30 user_id is missing" in text
        and "5 too few fields" in text
        and f"events.csv line 102: user_id is missing: {row(1, user_id='').strip()}" in text
    )
    before.write({"events.csv": HEADER + GOOD})


def test_no_usable_row_stops_the_stage(before):
    with pytest.raises(DataError, match="found 3 of 3"):
        before.run(HEADER + row(1, price="-1") * 3, max_rejected_share=1.0)


def test_wrong_setting(before):
    with pytest.raises(ValueError, match="data_prep.max_rejected_share: expected a value <= 1.0, found 2"):
        before.run(max_rejected_share=2)


@pytest.mark.parametrize("name", ["train_events.parquet", "products.parquet"])
def test_full_disk_as_duckdb_says_it(before, monkeypatch, name):
    copy = stage.copy_table

    def full(con, table, path, kind):
        if path.name == name:
            con.raw_sql("COPY (SELECT repeat('x', 1000) FROM range(1000)) TO '/dev/full' (FORMAT csv)")
        return copy(con, table, path, kind)

    monkeypatch.setattr(stage, "copy_table", full)
    with pytest.raises(ArtifactError, match="found the disk full: free some space and run again"):
        before.run()


def test_full_disk_while_events_are_written(before, monkeypatch):
    def full(writer, *args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(stage.pq.ParquetWriter, "write_table", full)
    with pytest.raises(ArtifactError, match="found the disk full"):
        before.run(HEADER + GOOD)


def test_full_disk_while_the_report_is_written(before, monkeypatch):
    def full(result, folder):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(stage, "write_report", full)
    with pytest.raises(ArtifactError, match="found the disk full"):
        before.run(HEADER + GOOD + row(100))
    before.write({"events.csv": HEADER + GOOD})


def test_full_disk_while_unpacking(before, monkeypatch):
    monkeypatch.setattr(
        "gnn_ecommerce.data.events.unpack",
        lambda *args: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")),
    )
    with pytest.raises(ArtifactError, match="found the disk full"):
        before.run({"x.csv.gz": gzip.compress((HEADER + GOOD).encode())})


def test_full_disk_for_real(project):
    "A file system of one megabyte: the shop grows until its results no longer fit."
    data = project.root / "data"
    data.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", data], capture_output=True).returncode:
        pytest.skip("a file system can be mounted by root only")
    try:
        project.run(HEADER + GOOD)
        first = project.outputs()
        big = "".join(
            row(i, brand=f"{random.Random(i).random()}", user_session=f"{random.Random(-i).getrandbits(128):x}")
            for i in range(0, 60_000)
        )
        with pytest.raises(ArtifactError, match="found the disk full|expected room for"):
            project.run(HEADER + big, events=str(project.root / "shop"))
        assert project.outputs() == first
    finally:
        subprocess.run(["umount", "-l", data], check=True)


@pytest.mark.slow
def test_kill_leaves_the_results_and_the_next_run_cleans_up(project):
    project.run(HEADER + GOOD)
    first = project.outputs()
    many = HEADER + "".join(row(i % 1_000) for i in range(400_000))
    project.write({"events.csv": many})
    child = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"from gnn_ecommerce.data_prep import run_data_prep; run_data_prep({str(project.root / 'params.yaml')!r})",
        ],
        stdout=subprocess.DEVNULL,
        cwd=Path(stage.__file__).parents[1],
    )
    for _ in range(6000):
        if list(project.paths.interim.glob(".data_prep-*/*")) or child.poll() is not None:
            break
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    left = list(project.paths.interim.glob(".data_prep-*"))
    assert left and {k: v for k, v in project.outputs().items() if "/." not in k} == first
    project.run(HEADER + GOOD)
    assert project.outputs() == first and not list(project.paths.interim.glob(".data_prep-*"))


# the fast way and the slow way agree

DAMAGE = [
    '"open',
    '"a""b"',
    '"two\nlines"',
    'a"b',
    '"a"b',
    "x,y",
    "",
    '"',
    '""',
    "\0",
    MARK,
    "\u00fc",
    '"\u00fc,"',
    "\r",
    "a\nb",
    '"\r\n"',
    "a b ",
    "\n\n",
    '""""',
]


def damaged(rng, rows):
    "A CSV file with a header and random damage, as bytes; some of it not UTF-8."
    out, newline = io.BytesIO(), rng.choice(["\n", "\n", "\r\n"])
    out.write(f"event_time,event_type,product_id,user_id,brand{newline}".encode())
    for i in range(rows):
        fields = [f"t{i}", "view", str(i), f"u{i}", "b"]
        if rng.random() < 0.1:
            fields[rng.randrange(5)] = rng.choice(DAMAGE)
        if rng.random() < 0.02:
            fields = fields[: rng.randrange(1, 5)]
        line = (",".join(fields) + (newline if rng.random() > 0.03 else rng.choice(["\n", "\r\n", ""]))).encode()
        out.write(line.replace(b"view", b"vi\xffew") if rng.random() < 0.01 else line)
    return out.getvalue()


def slowly(data):
    "Rows of a CSV file, a line at a time: (line, problem, values)."
    lines = data.split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    lines = [o.removesuffix(b"\r") for o in lines]
    at, out = 1, []
    while at < len(lines):
        r = parse_record(lines, at, ",", 5)
        if r.problem:
            out.append((at + 1, r.problem, None))
        elif r.fields is not None:
            out.append((at + 1, None, [o or None for o in r.fields]))
        at += r.lines
    return out


def staged(con, source):
    "The rows that a file holds, as text, with the lines on which they begin."
    t = read_rows(con, [source])
    t = stage_rows(con, t.mutate(reason=t.problem), [source], source.path.parent)
    return con.execute(t.order_by("line"))


@pytest.mark.parametrize("seed", range(6))
def test_reader_agrees_with_a_slow_one_on_damaged_files(tmp_path, monkeypatch, seed):
    monkeypatch.setattr("gnn_ecommerce.data.events.BLOCK", [200, 1000, 5000, 1 << 22][seed % 4])
    rng, con = random.Random(seed), connect(threads=2)
    for k in range(10):
        data = damaged(rng, rng.choice([3, 50, 400]))
        (tmp_path / "x.csv").write_bytes(data)
        source = open_file("x.csv", tmp_path / "x.csv", EVENTS, tmp_path / f"work{k}")
        rows = staged(con, source)
        found = [
            (
                int(r.line),
                None if pd.isna(r.problem) else r.problem,
                None
                if pd.notna(r.problem)
                else [
                    None if pd.isna(o) else o for o in (r.event_time, r.event_type, r.product_id, r.user_id, r.brand)
                ],
            )
            for r in rows.itertuples()
        ]
        assert found == slowly(data) and source.rows == len(found)


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_line_numbers_are_exact_in_a_large_file(tmp_path, newline):
    "Large enough to be read in parallel: every row carries its own line number."
    n = 900_000
    lines = pd.Series(np.arange(2, n + 2)).astype(str)
    body = ("2020-01-01,view," + lines + ',"user, ' + lines + '",' + "x" * 30).str.cat(sep=newline)
    (tmp_path / "x.csv").write_bytes(f"event_time,event_type,product_id,user_id,brand{newline}{body}{newline}".encode())
    source = open_file("x.csv", tmp_path / "x.csv", EVENTS, tmp_path / "work")
    assert (source.rows, source.side, source.path) == (n, None, tmp_path / "x.csv")
    con = connect(threads=2)
    t = read_rows(con, [source])
    t = stage_rows(con, t.mutate(reason=t.problem), [source], tmp_path)
    assert con.execute(
        t.aggregate(
            rows=t.count(),
            exact=(t.line.cast("string") == t.product_id).sum(),
            whole=(t.user_id == "user, " + t.product_id).sum(),
        )
    ).values.tolist() == [[n, n, n]]


def test_regular_quoted_fields_are_read_as_python_reads_them(tmp_path):
    rng = random.Random(0)
    table = [
        ["".join(rng.choice('ab,"; \u00fc\\') for _ in range(rng.randrange(6))) for _ in range(4)] + ["z"]
        for _ in range(3000)
    ]
    with open(tmp_path / "x.csv", "w", newline="", encoding="utf8") as f:
        out = csv.writer(f, quoting=csv.QUOTE_ALL)
        out.writerow(["event_time", "event_type", "product_id", "user_id", "brand"])
        out.writerows(table)
    source = open_file("x.csv", tmp_path / "x.csv", EVENTS, tmp_path / "work")
    assert source.side is None and source.newline == b"\r\n"
    rows = staged(connect(threads=1), source)
    assert rows[["event_time", "event_type", "product_id", "user_id", "brand"]].fillna("").values.tolist() == table
