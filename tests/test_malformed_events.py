"""Malformed event files: nothing vanishes; what cannot be read at all says why and leaves earlier results alone."""

import csv
import errno
import gzip
import io
import random
import shutil
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
    EVENT_LAYOUT,
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


class Project:
    "A shop's folder, into which files are written and on which the stage runs."

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
        m, n_rejects = result.metrics, len(self.table("rejects"))
        assert m["rows_read"] == m["rows_kept"] + m["rows_rejected"] + m["rows_duplicate"] == result.by_file.rows.sum()
        assert m["rows_kept"] == len(self.table("events"))
        assert n_rejects == m["rows_rejected"] + m["catalogue_rejected"] == result.reasons.rows.sum()
        return result

    def table(self, name):
        return read_table(self.root / "data" / OUTPUTS[name], name, "data_prep")

    def rejects(self):
        rows = self.table("rejects").itertuples()
        return [(r.file, None if pd.isna(r.line) else int(r.line), r.reason) for r in rows]

    def outputs(self):
        files = [f for f in sorted((self.root / "data").rglob("*")) if f.is_file()]
        return {f.relative_to(self.root).as_posix(): f.read_bytes() for f in files}


@pytest.fixture
def project(tmp_path, monkeypatch):
    "An empty project; plots are left out."
    monkeypatch.setattr(stage, "write_prep_report", lambda result, folder: None)
    return Project(tmp_path)


@pytest.fixture(scope="module")
def good_project(tmp_path_factory):
    "A project that has the results of `GOOD`. No test changes it."
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "write_prep_report", lambda result, folder: None)
        project = Project(tmp_path_factory.mktemp("good"))
        project.run(HEADER + GOOD)
    return project


@pytest.fixture(scope="module")
def good_outputs(good_project):
    "What the stage writes for `GOOD`."
    return good_project.outputs()


def kept(result):
    return result.metrics["rows_kept"]


def warned(result):
    "Rows by warning."
    return dict(zip(result.warnings.warning, result.warnings.rows))


# columns


def test_missing_column_in_one_file_rejects_its_rows(project):
    bad = "event_time,event_type,product_id\n2020-01-01,view,1\n\n2020-01-01,view,2\n"
    result = project.run({"a.csv": HEADER + GOOD, "b.csv": bad})
    assert kept(result) == 100
    assert project.rejects() == [("b.csv", 2, "no column user_id"), ("b.csv", 4, "no column user_id")]
    assert "no column user_id" in warned(result)


def test_missing_column_in_every_file_is_an_error(project):
    message = (
        r"expected columns event_time, event_type, product_id, user_id in events.csv, "
        r"found event_time, event_type, product_id, price \(no column user_id\)"
    )
    with pytest.raises(DataError, match=message):
        project.run("event_time,event_type,product_id,price\n2020-01-01,view,1,2\n")


def test_missing_optional_column_is_left_empty(project):
    rows = "".join(f"2020-01-{i % 28 + 1:02},view,{i},{i}\n" for i in range(60))
    result = project.run("event_time,event_type,product_id,user_id\n" + rows)
    assert project.table("events")[["price", "brand", "user_session"]].isna().values.tolist() == [[True] * 3] * 60
    assert "no column category_id, category_code, brand, price, user_session: left empty" in warned(result)


def test_renamed_column_through_the_map(project):
    text = (HEADER + GOOD).replace("user_id", "customer").replace("event_time", "when")
    project.run(text, columns={"user_id": "customer", "event_time": "when"})
    assert sorted(set(project.table("events").user_id)) == list(range(700, 711))


def test_renamed_column_without_a_map_proposes_one(project):
    with pytest.raises(DataError, match=r"set data_prep.columns: \{event_time: timestamp, user_id: customer_id\}"):
        project.run((HEADER + GOOD).replace("user_id", "customer_id").replace("event_time", "timestamp"))


def test_extra_column_is_not_used_and_reported(project):
    text = "".join(f"x{i},{line}\n" for i, line in enumerate((HEADER + GOOD).splitlines())).replace("x0,", "note,", 1)
    assert warned(project.run(text)) == {"column note not used": 100}


def test_column_that_stands_twice(project):
    with pytest.raises(DataError, match="column user_id stands twice"):
        project.run("user_id," + HEADER + GOOD)


def test_wrong_delimiter_given(project):
    with pytest.raises(DataError, match="set data_prep.delimiter to what separates the columns"):
        project.run(HEADER + GOOD, delimiter=";")


@pytest.mark.parametrize("delimiter", [";", "\t", "|", "\x01"])
def test_other_delimiters(project, good_outputs, delimiter):
    project.run((HEADER + GOOD).replace(",", delimiter), **({"delimiter": delimiter} if delimiter == "\x01" else {}))
    assert project.outputs() == good_outputs


# bytes


def test_bom(project, good_outputs):
    project.run(b"\xef\xbb\xbf" + (HEADER + GOOD).encode())
    assert project.outputs() == good_outputs


def test_crlf(project, good_outputs):
    project.run((HEADER + GOOD).replace("\n", "\r\n"))
    assert project.outputs() == good_outputs


def test_crlf_with_bom_and_quotes_and_damage(project):
    lines = (HEADER + GOOD + "x,y\n").splitlines()
    quoted = "".join(",".join(f'"{field}"' for field in line.split(",")) + "\r\n" for line in lines)
    assert kept(project.run(b"\xef\xbb\xbf" + quoted.encode())) == 100
    assert project.rejects() == [("events.csv", 102, TOO_FEW)]
    assert project.table("rejects").raw.tolist() == ['"x","y"']


def test_mixed_line_ends(project):
    lines = (HEADER + GOOD).splitlines()
    project.run("".join(line + ("\r\n" if i % 3 else "\n") for i, line in enumerate(lines)))
    assert project.table("events").user_session.str.len().tolist() == [36] * 100


def test_bytes_that_are_not_utf8(project):
    latin, utf8 = row(1, brand="B\u00fcrste").encode("latin-1"), row(200, brand="B\u00fcrste").encode()
    assert kept(project.run((HEADER + GOOD).encode() + latin + utf8)) == 101
    assert project.rejects() == [("events.csv", 102, NOT_UTF8)]
    assert r"B\xfcrste" in project.table("rejects").raw[0]
    assert "B\u00fcrste" in set(project.table("events").brand)


def test_latin1_by_setting(project):
    data = (HEADER + GOOD + row(200, brand="B\u00fcrste") + row(201, brand='"B\u00fc""r"')).encode("latin-1")
    project.run(data, encoding="latin-1")
    assert project.table("events").brand[100:].tolist() == ["B\u00fcrste", 'B\u00fc"r']


def test_nul_byte(project):
    assert kept(project.run((HEADER + GOOD).encode() + row(7, brand="a\0b").encode())) == 100
    assert project.rejects() == [("events.csv", 102, NUL)]
    assert r"a\x00b" in project.table("rejects").raw[0]


def test_the_mark_of_the_reader_in_the_data(project):
    assert kept(project.run(HEADER + GOOD + MARK + row(7)[1:])) == 100
    assert project.rejects() == [("events.csv", 102, "event_time is not a time")]


# quotes and rows


def scanned(tmp_path, text):
    "The source of a file of text and the table of what was taken out of it."
    (tmp_path / "x.csv").write_text(text)
    source = open_file("x.csv", tmp_path / "x.csv", EVENT_LAYOUT, tmp_path / "work")
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
    changed = {1: {"brand": '"open'}, 50: {"brand": '"a, ""b"""'}}
    assert kept(project.run(HEADER + "".join(row(i, **changed.get(i, {})) for i in range(100)))) == 99
    assert project.rejects() == [("events.csv", 3, UNTERMINATED)]
    assert 'a, "b"' in set(project.table("events").brand)


def test_unterminated_quote_in_the_last_row(project):
    assert kept(project.run(HEADER + GOOD + row(100, brand='"open').rstrip())) == 100
    assert project.rejects() == [("events.csv", 102, UNTERMINATED)]


def test_line_breaks_in_quotes_keep_line_numbers(project):
    two, three = row(0, brand='"two\nlines"'), row(1, brand='"three\r\n\nlines"')
    rest = row(2, event_type="like") + "".join(map(row, range(3, 100)))
    assert kept(project.run(HEADER + two + three + rest)) == 99
    assert project.rejects() == [("events.csv", 7, "unknown event type")]
    assert {"two\nlines", "three\n\nlines"} <= set(project.table("events").brand)


def test_text_after_a_closing_quote(project):
    assert kept(project.run(HEADER + GOOD + row(100, brand='"a"b'))) == 100
    assert project.rejects() == [("events.csv", 102, AFTER_QUOTE)]


def test_truncated_row(project):
    assert kept(project.run(HEADER + row(0)[:40] + "\n" + GOOD + row(100)[:60])) == 100
    assert project.rejects() == [("events.csv", 2, TOO_FEW), ("events.csv", 103, TOO_FEW)]
    assert project.table("rejects").raw.tolist() == [row(0)[:40], row(100)[:60]]


def test_too_many_fields(project):
    assert kept(project.run(HEADER + GOOD + row(100, brand="a,b"))) == 100
    assert project.rejects() == [("events.csv", 102, TOO_MANY)]


def test_repeated_header(project):
    assert kept(project.run(HEADER + GOOD + HEADER + row(100), columns={})) == 101
    assert project.rejects() == [("events.csv", 102, "repeated header")]


def test_repeated_header_with_other_names(project):
    head = HEADER.replace("user_id", "customer").replace("product_id", "sku")
    project.run(head + GOOD + head, columns={"user_id": "customer", "product_id": "sku"})
    assert project.rejects() == [("events.csv", 102, "repeated header")]


def test_blank_lines_are_counted_and_no_rows(project):
    result = project.run(HEADER + "\n" + GOOD + "  \n\n")
    assert (result.metrics["rows_read"], warned(result)) == (100, {"blank line": 3})


# files


def test_empty_file(project):
    result = project.run({"a.csv": HEADER + GOOD, "b.csv": "", "c.csv": b"\xef\xbb\xbf\n"})
    assert (kept(result), result.metrics["files"]) == (100, 3)
    assert result.warnings.set_index("warning").example["file is empty"] == "b.csv"


def test_header_only_file(project):
    result = project.run({"a.csv": HEADER + GOOD, "b.csv": HEADER, "c.csv": HEADER.strip()})
    assert (kept(result), warned(result)) == (100, {"file has a header only": 0})


@pytest.mark.parametrize("text", ["", HEADER])
def test_nothing_but_empty_files_is_an_error(project, text):
    with pytest.raises(DataError, match="expected events, found no row in events.csv"):
        project.run(text)


def test_truncated_gzip(project):
    text = (HEADER + "".join(map(row, range(5000)))).encode()
    packed = gzip.compress(text, mtime=0)
    result = project.run({"a.csv": HEADER + GOOD, "b.csv.gz": packed[: len(packed) * 2 // 3]})
    ((file, line, reason),) = project.rejects()
    assert (file, 1000 < line < 5000, reason) == ("b.csv.gz", True, CUT_OFF)
    assert result.metrics["rows_read"] == 100 + (line - 2) + 1
    assert text.decode().splitlines()[line - 1].startswith(project.table("rejects").raw[0])
    assert CUT_OFF in warned(result)


def test_damaged_gzip_is_refused(project):
    packed = bytearray(gzip.compress((HEADER + "".join(map(row, range(5000)))).encode(), mtime=0))
    packed[len(packed) // 2] ^= 0xFF
    with pytest.raises(DataError, match="expected b.csv.gz as it was packed, found damage"):
        project.run({"a.csv": HEADER + GOOD, "b.csv.gz": bytes(packed)})


def test_truncated_zst(project):
    text = (HEADER + "".join(map(row, range(60_000)))).encode()
    packed = pa.compress(text, codec="zstd", asbytes=True)
    project.run({"a.csv": HEADER + GOOD, "b.csv.zst": packed[: len(packed) // 2]})
    ((file, line),) = ((file, line) for file, line, reason in project.rejects() if reason == CUT_OFF)
    assert (file, line > 1000) == ("b.csv.zst", True)


def in_form(form):
    "The good events as a file of another form: its ending and its bytes."
    data = (HEADER + GOOD).encode()
    if form == "gz":
        return "csv.gz", gzip.compress(data)
    if form == "gz of two members":
        return "csv.gz", gzip.compress(data[: len(HEADER) + 20]) + gzip.compress(data[len(HEADER) + 20 :])
    if form == "zst":
        return "csv.zst", pa.compress(data, codec="zstd", asbytes=True)
    df, buffer = pd.read_csv(io.BytesIO(data), dtype=str), io.BytesIO()
    if form == "parquet of types":
        types = dict(user_id="float64", product_id="int32", price="float64", category_id="int64")
        df = df.astype(types).assign(event_time=pd.to_datetime(df.event_time))
    df.to_parquet(buffer)
    return "parquet", buffer.getvalue()


@pytest.mark.parametrize("form", ["gz", "gz of two members", "zst", "parquet of text", "parquet of types"])
def test_every_form_gives_the_same_result(project, good_outputs, form):
    end, data = in_form(form)
    project.run({f"events.{end}": data})
    assert project.outputs() == good_outputs


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


#: why a row is rejected: the column, and values of it that are no good
BAD_VALUES = {
    "event_time is not a time": (
        "event_time",
        ["31.01.2020", "2020-02-30 10:00:00 UTC", "yesterday", "2020-01-01 25:00:00", "01/02/2020 10:00"],
    ),
    "event_time is rounded: scientific notation": ("event_time", ["1e400", "1.5776E+12"]),
    "event_time is a number, but no count since 1970": ("event_time", ["0", "43831.25"]),
    "event_time names a zone that may be several": ("event_time", ["2020-01-01 10:00:00 IST", "2020/01/01 10:00 CST"]),
    "event_time is missing": ("event_time", ["", "NULL"]),
    "event_time is in the future": ("event_time", ["2021-01-02 00:00:01 UTC", "9999-12-31", "99999999999"]),
    "event_time is before 1990": ("event_time", ["1989-12-31 23:59:59 UTC", "0001-01-01"]),
    "unknown event type": ("event_type", ["like", "", "purchase!"]),
    "user_id is missing": ("user_id", ["", "NULL", "nan"]),
    "product_id is missing": ("product_id", ["", "None", "\\N"]),
    "user_id is beyond int64": ("user_id", ["9223372036854775808"]),
    "product_id is not an integer": ("product_id", ["x7"]),
    "price is negative": ("price", ["-0.01", "-$5"]),
}
BAD_ROWS = {reason: [row(100, **{column: v}) for v in values] for reason, (column, values) in BAD_VALUES.items()}


@pytest.fixture(scope="module")
def bad_values(tmp_path_factory):
    "The reasons and the rejected rows of a shop that holds each of the bad values once."
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "write_prep_report", lambda result, folder: None)
        project = Project(tmp_path_factory.mktemp("bad"))
        result = project.run(HEADER + GOOD + "".join(line for lines in BAD_ROWS.values() for line in lines))
    assert kept(result) == 100
    return result.reasons.set_index("reason"), project.table("rejects")


@pytest.mark.parametrize("reason", BAD_VALUES)
def test_bad_values_are_rejected(bad_values, reason):
    reasons, rejects = bad_values
    of_reason, others = rejects[rejects.reason == reason], list(BAD_VALUES)[: list(BAD_VALUES).index(reason)]
    first, bad = 102 + sum(len(BAD_ROWS[other]) for other in others), BAD_ROWS[reason]
    assert list(zip(of_reason.line, of_reason.raw)) == [(first + i, line.rstrip()) for i, line in enumerate(bad)]
    assert reasons.loc[reason].tolist() == [len(bad), f"events.csv line {first}"]


def test_id_that_is_no_integer_by_setting(project):
    ids = ("007", "7.0", "+7", "7e2", " 7", "1" + "0" * 40, "-9223372036854775809")
    result = project.run(HEADER + GOOD + "".join(row(100, product_id=i) for i in ids), product_id="integer")
    assert result.reasons[["reason", "rows"]].values.tolist() == [
        ["product_id is beyond int64", 2],
        ["product_id is not an integer", 2],
    ]
    assert (project.table("events").product_id == 7).sum() == 1, "007, 7.0 and ' 7' are 7, and three equal rows are one"


def test_decimal_comma(project):
    project.run((HEADER + GOOD).replace(",", ";").replace(".50;", ",50;"), decimal=",")
    assert (len(project.table("events")), project.table("events").price.max()) == (100, 8.5)


def test_missing_price_or_session_is_kept_and_counted(project):
    result = project.run(HEADER + GOOD + row(100, price="") + row(101, price="", user_session=""))
    assert (kept(result), warned(result)) == (102, {"price is missing": 2, "user_session is missing": 1})


@pytest.mark.parametrize("price", ["2;50", "free", "1_000", "inf", "-inf", "1e999"])
def test_price_that_is_no_number_leaves_the_event_and_is_counted(project, price):
    result = project.run(HEADER + GOOD + row(100, price=price))
    assert (kept(result), warned(result)) == (101, {"price is no number for sure: left empty": 1})


def test_session_that_is_no_uuid_is_kept_and_reported(project):
    session = "091e110c-f7bd-47b5-bed8-3a3aba4232ddgg"
    result = project.run(HEADER + GOOD + row(100, user_session=session))
    warning = ["user_session is no UUID, as the others are", 1, f"'{session}' in events.csv line 102", ""]
    assert (kept(result), result.warnings.values.tolist()) == (101, [warning])


def test_exact_duplicates_are_counted_and_dropped(project):
    result = project.run({"a.csv": HEADER + GOOD + row(5) + row(5), "b.csv": HEADER + row(7) + row(7, price="99")})
    assert (kept(result), result.metrics["rows_duplicate"]) == (101, 3)


def test_ids_come_back_unchanged(project):
    users = ["007", "7", " 7", "\u00fc-1", "A b", "9" * 30, "7.0", "true"]
    products = [-(2**63) + i if i % 2 else 2**63 - 1 - i for i in range(64)]
    rows = "".join(row(i, user_id=users[i % 8], product_id=products[i]) for i in range(64))
    project.run(HEADER + rows, user_id="string")
    events = project.table("events")
    assert set(events.user_id) == {user.strip() for user in users}
    assert (events.product_id.dtype, set(events.product_id.tolist())) == ("int64", set(products))


def test_integer_ids_kept_as_text_by_setting(project):
    project.run(HEADER + GOOD, user_id="string")
    assert set(project.table("events").user_id) == {str(i) for i in range(700, 711)}


def test_ids_that_look_like_integers_only_at_first(project):
    users = [str(i) if i < 12_000 else f"x{i}" for i in range(12_500)]
    assert kept(project.run(HEADER + "".join(row(i, user_id=user) for i, user in enumerate(users)))) == 12_500
    assert set(project.table("events").user_id) == set(users)


@pytest.mark.parametrize("form", ["seconds", "milliseconds", "fractions", "zone", "iso", "no zone"])
def test_timestamps_in_other_forms(project, good_outputs, form):
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

    times = [write(datetime(2020, 1, 1) + timedelta(hours=7 * i)) for i in range(100)]
    project.run(HEADER + "".join(row(i, event_time=time) for i, time in enumerate(times)))
    assert project.outputs() == good_outputs


# errors that leave earlier results alone


@pytest.fixture
def before(project, good_project, good_outputs):
    "A project that has results, which are as they were when the test is over."
    shutil.copytree(good_project.root, project.root, dirs_exist_ok=True)
    yield project
    assert project.outputs() == good_outputs
    assert list(project.paths.interim.glob(".*")) == []


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
    facts = (
        "found 35 of 135 (25.9%)",
        "30 user_id is missing",
        "5 too few fields",
        f"events.csv line 102: user_id is missing: {row(1, user_id='').strip()}",
    )
    assert [fact for fact in facts if fact not in str(err.value)] == []
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

    monkeypatch.setattr(stage, "write_prep_report", full)
    with pytest.raises(ArtifactError, match="found the disk full"):
        before.run(HEADER + GOOD + row(100))
    before.write({"events.csv": HEADER + GOOD})


def test_full_disk_while_unpacking(before, monkeypatch):
    monkeypatch.setattr(
        "gnn_ecommerce.data.packing.unpack",
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
        rng = random.Random(0)
        big = "".join(row(i, brand=rng.random(), user_session=f"{rng.getrandbits(128):x}") for i in range(30_000))
        with pytest.raises(ArtifactError, match="found the disk full|expected room for"):
            project.run(HEADER + big, events=str(project.root / "shop"))
        assert project.outputs() == first
    finally:
        subprocess.run(["umount", "-l", data], check=True)


def test_kill_leaves_the_results_and_the_next_run_cleans_up(before, good_outputs):
    before.write({"events.csv": HEADER + GOOD * 500})
    code = "import sys; from gnn_ecommerce.data_prep import run_data_prep; run_data_prep(sys.argv[1])"
    command = [sys.executable, "-c", code, before.root / "params.yaml"]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=Path(stage.__file__).parents[1])
    while child.poll() is None and not list(before.paths.interim.glob(".data_prep-*/*")):
        time.sleep(0.01)
    child.kill()
    assert child.wait() == -signal.SIGKILL
    work = {name for name in before.outputs() if "/.data_prep-" in name}
    assert {name: data for name, data in before.outputs().items() if name not in work} == good_outputs
    assert work != set()
    before.run(HEADER + GOOD)


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


def staged(con, sources, work):
    "The rows that files hold, as text, with the lines on which they begin."
    rows = read_rows(con, sources)
    return stage_rows(con, rows.mutate(reason=rows.problem), sources, work)


def as_read(rows):
    "Rows of a table as `slowly` gives them."
    columns = ["event_time", "event_type", "product_id", "user_id", "brand"]
    values = rows[columns].astype(object).where(rows[columns].notna(), None).values.tolist()
    problems = [None if pd.isna(problem) else problem for problem in rows.problem]
    return [(n, problem, None if problem else v) for n, problem, v in zip(rows.line.tolist(), problems, values)]


@pytest.mark.parametrize("seed", range(6))
def test_reader_agrees_with_a_slow_one_on_damaged_files(tmp_path, monkeypatch, seed):
    monkeypatch.setattr("gnn_ecommerce.data.events.BLOCK", [200, 1000, 5000, 1 << 22][seed % 4])
    rng, files = random.Random(seed), {}
    for k in range(10):
        files[f"{k}.csv"] = damaged(rng, rng.choice([3, 50, 400]))
        (tmp_path / f"{k}.csv").write_bytes(files[f"{k}.csv"])
    sources = [open_file(name, tmp_path / name, EVENT_LAYOUT, tmp_path / f"work-{name}") for name in files]
    con = connect(threads=2)
    rows = con.execute(staged(con, sources, tmp_path).order_by("file", "line"))
    expected = {name: slowly(data) for name, data in files.items()}
    assert {name: as_read(of_file) for name, of_file in rows.groupby("file")} == expected
    assert {source.name: source.rows for source in sources} == {name: len(o) for name, o in expected.items()}


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_line_numbers_are_exact_in_a_large_file(tmp_path, newline):
    "Large enough to be read in parallel: every row carries its own line number."
    n = 450_000
    lines = pd.Series(np.arange(2, n + 2)).astype(str)
    body = ("2020-01-01,view," + lines + ',"user, ' + lines + '",' + "x" * 30).str.cat(sep=newline)
    (tmp_path / "x.csv").write_bytes(f"event_time,event_type,product_id,user_id,brand{newline}{body}{newline}".encode())
    source = open_file("x.csv", tmp_path / "x.csv", EVENT_LAYOUT, tmp_path / "work")
    assert (source.rows, source.side, source.path) == (n, None, tmp_path / "x.csv")
    con = connect(threads=2)
    t = staged(con, [source], tmp_path)
    exact, whole = t.line.cast("string") == t.product_id, t.user_id == "user, " + t.product_id
    assert con.execute(t.aggregate(n=t.count(), exact=exact.sum(), whole=whole.sum())).values.tolist() == [[n, n, n]]


def test_regular_quoted_fields_are_read_as_python_reads_them(tmp_path):
    rng = random.Random(0)
    field = lambda: "".join(rng.choices('ab,"; \u00fc\\', k=rng.randrange(6)))
    table = [[field(), field(), field(), field(), "z"] for _ in range(3000)]
    with open(tmp_path / "x.csv", "w", newline="", encoding="utf8") as f:
        out = csv.writer(f, quoting=csv.QUOTE_ALL)
        out.writerow(["event_time", "event_type", "product_id", "user_id", "brand"])
        out.writerows(table)
    source = open_file("x.csv", tmp_path / "x.csv", EVENT_LAYOUT, tmp_path / "work")
    assert (source.side, source.header.newline) == (None, b"\r\n")
    con = connect(threads=1)
    rows = con.execute(staged(con, [source], tmp_path).order_by("line"))
    assert rows[["event_time", "event_type", "product_id", "user_id", "brand"]].fillna("").values.tolist() == table
