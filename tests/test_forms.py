"""A random shop, written in a random form, is read back with the same edges, or refused: never with other ones."""

import bz2
import functools
import gzip
import json
import lzma
import random
import zipfile
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import ibis
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gnn_ecommerce.core import DataError, SettingsError
from gnn_ecommerce.data.events import (
    EVENT_LAYOUT,
    MARK,
    FileForm,
    Meaning,
    check_events,
    connect,
    find_files,
    open_files,
    read_rows,
    settle_id_types,
)
from gnn_ecommerce.data.sanity import check_id_forms
from gnn_ecommerce.data.values import TIME_FORMS, TURNED, IdForms, strptime_format

#: how many forms are tried in the suite; more by hand, with the seeds of what they found below
FORMS, FOUND, FOUND_ILLEGAL = 12, [], [24, 51, 76, 915]
COLUMNS = ("event_time", "event_type", "product_id", "user_id", "price")
#: form of times: how it is written, and what is set for it
TIMES = {
    "iso": ("%Y-%m-%d %H:%M:%S", {}),
    "slashes": ("%Y/%m/%d %H:%M:%S", {}),
    "T": ("%Y-%m-%dT%H:%M:%S", {}),
    "compact": ("%Y%m%d%H%M%S", {}),
    "month": ("%d-%b-%Y %H:%M:%S", {}),
    "german": ("%d.%m.%Y %H:%M:%S", {"timestamps": "DD.MM.YYYY HH:mm:ss"}),
    "american": ("%m/%d/%Y %I:%M:%S %p", {"timestamps": "MM/DD/YYYY hh:mm:ss A"}),
    "british": ("%d/%m/%Y %H:%M:%S", {"timestamps": "DD/MM/YYYY HH:mm:ss"}),
    "short": ("%d/%m/%y %H:%M:%S", {"timestamps": "DD/MM/YY HH:mm:ss"}),
}
UNITS = {"seconds": 1, "milliseconds": 10**3, "microseconds": 10**6, "nanoseconds": 10**9}
ZONES = ("UTC", "Europe/Berlin", "Australia/Lord_Howe")
OFFSETS = ("Z", " UTC", "+00:00", "+0000", " GMT")
SPELL = {
    "integer": str,
    "zeros": "{:06}".format,
    "text": "c-{}".format,
    "barcode": lambda n: str(4006381333931 + 37 * n),
    "umlaut": "Grün & Söhne, “{}”".format,
    "case": lambda n: ("a", "B", "Ab")[n % 3] + str(n),
}


def shop(rng):
    "Events of 20 days: time, type, product, customer, price."
    ids = rng.choice(list(SPELL))
    start = datetime(2023, 3, 20, tzinfo=UTC) + timedelta(days=rng.randrange(250))
    return ids, [
        (
            start + timedelta(seconds=rng.randrange(20 * 86400)),
            rng.choice(["view", "cart", "purchase"]),
            rng.randrange(1, 40),
            SPELL[ids](rng.randrange(1, 90)),
            rng.choice([None, round(rng.random() * 3000, 2)]),
        )
        for _ in range(rng.randrange(3, 30))
    ]


def clear_of_changes(t, zone):
    "A time that clocks of a zone do not repeat."
    local = t.astimezone(ZoneInfo(zone))
    return t if local.replace(fold=1 - local.fold).astimezone(UTC) == t else t + timedelta(hours=3)


def time_form(rng):
    "A form of times: its name, a function that writes one, settings, and the zone of local times."
    way = rng.choice([*TIMES, *UNITS, "offset"])
    if way == "offset":
        offset = rng.choice(OFFSETS)
        return lambda t: f"{t:%Y-%m-%d %H:%M:%S}{offset}", {"timezone": rng.choice(ZONES)}, "UTC"
    if way in UNITS:
        return lambda t: str(int(t.timestamp()) * UNITS[way]), {"timestamps": rng.choice(["auto", way])}, "UTC"
    pattern, settings = TIMES[way]
    zone = rng.choice(ZONES)
    return lambda t: t.astimezone(ZoneInfo(zone)).strftime(pattern), {**settings, "timezone": zone}, zone


def price_form(rng):
    "A form of prices: a function that writes one, and settings."
    decimal, sign = rng.choice(".,"), rng.choice(["", "€ ", "$", "CHF "])
    after = rng.choice(["", " €", "\u00a0€", " USD"]) if not sign else ""
    thousands = rng.choice(["", " ", "'", "\u202f", {".": ",", ",": "."}[decimal]])

    def write(price):
        if price is None:
            return rng.choice(["", "NULL"])
        number = f"{price:,.2f}".replace(",", "_").replace(".", decimal).replace("_", thousands)
        return sign + number + after

    return write, {"decimal": decimal}


def id_form(rng, ids):
    "A form of ids: a function that writes one."
    blank, point = rng.choice(["", " ", "\u00a0"]), ids in ("integer", "barcode") and rng.random() < 0.4
    return lambda value: f"{blank}{value}{'.0' if point and rng.random() < 0.5 else ''}{blank}"


PACKINGS = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: pa.compress(data, "zstd", asbytes=True),
    ".utf16": lambda data: data.decode().encode("utf-16"),
    ".bom": lambda data: b"\xef\xbb\xbf" + data,
    ".cp1252": lambda data: data.decode().replace("\u202f", " ").encode("cp1252"),
    ".zip": None,
}
PLAIN = (".utf16", ".bom", ".cp1252")


def pack(folder, name, data, packing, damage=lambda data: data):
    path = folder / f"{name}{'' if packing in PLAIN else packing}"
    if packing != ".zip":
        path.write_bytes(damage(PACKINGS[packing](data)))
        return
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"__MACOSX/._{name}", b"\0\5\x16\7")
        archive.writestr(name, data)
    path.write_bytes(damage(path.read_bytes()))


def csv_lines(rng, rows, form):
    "Rows as lines of text, fields in a random order, some quoted."
    order, delimiter = rng.sample(range(5), 5), form["delimiter"]
    names = [f"my {COLUMNS[i]}" if form["named"] else COLUMNS[i] for i in order]

    def field(text):
        must = delimiter in text or '"' in text
        return '"' + text.replace('"', '""') + '"' if must or rng.random() < form["quoted"] else text

    head = rng.choice([[], ["# made by a program"], [f"sep={delimiter}"]]) if form["header"] else []
    lines = head + [delimiter.join(map(field, names))] * form["header"]
    lines += [delimiter.join(field(row[i]) for i in order) for row in rows]
    return lines, {COLUMNS[i]: str(n + 1) for n, i in enumerate(order)}


def write_json(rng, rows):
    "Rows as JSON: a line each, or a list."
    rows = [json.dumps(dict(zip(COLUMNS, row)), ensure_ascii=rng.random() < 0.5) for row in rows]
    return rows if rng.random() < 0.6 else ["[" + ",\n".join(rows) + "]"]


def write_parquet(rng, events, ids, path):
    "Events as Parquet, with types of their own."
    times, types, items, users, prices = zip(*events)
    unit = rng.choice(["s", "ms", "us", "ns"])
    whole = [pa.int64(), pa.int32(), pa.float64(), pa.string(), pa.decimal128(19, 0)]
    columns = {
        "event_time": pa.array([t.replace(tzinfo=None) for t in times], pa.timestamp(unit)).cast(
            pa.timestamp(unit, rng.choice([None, "UTC", "Europe/Berlin"]))
        ),
        "event_type": pa.array(types).dictionary_encode() if rng.random() < 0.5 else pa.array(types),
        "product_id": pa.array(items).cast(rng.choice(whole)),
        "user_id": pa.array(map(int, users)).cast(rng.choice(whole)) if ids == "integer" else pa.array(users),
        "price": pa.array(prices, pa.float64()),
    }
    if rng.random() < 0.3:
        columns["price"] = pa.array([None if p is None else f"{p:.2f}" for p in prices]).cast(pa.decimal128(9, 2))
    pq.write_table(pa.table(columns), path)


def same(value):
    return value


def write_shop(rng, folder, fields=same, lines=same, packed=same, only_csv=False):
    "Write a shop in a random form, and damaged. Returns its edges and the settings that read it."
    ids, events = shop(rng)
    (write_time, times, zone), (write_price, prices), write_id = time_form(rng), price_form(rng), id_form(rng, ids)
    events = [(clear_of_changes(t, zone), *rest) for t, *rest in events]
    typed = int if ids in ("integer", "barcode") else str
    edges = [(pd.Timestamp(t), e, i, typed(u), p) for t, e, i, u, p in events]
    if rng.random() < 0.1 and not only_csv:
        write_parquet(rng, events, ids, folder / "events.parquet")
        return edges, FileForm(), Meaning()
    rows = [(write_time(t), e, write_id(str(i)), write_id(u), write_price(p)) for t, e, i, u, p in events]
    rows = fields(rows)
    form = {
        "delimiter": rng.choice(",;\t|"),
        "named": rng.random() < 0.3,
        "header": rng.random() < 0.8,
        "quoted": rng.choice([0, 0.5, 1]),
        "newline": rng.choice(["\n", "\r\n", "\r"]),
    }
    names, as_json, packing = {}, rng.random() < 0.2 and not only_csv, rng.choice([*PACKINGS])
    parts = 1 if packing == ".zip" else rng.choice([1, 1, 3])
    if packing == ".cp1252" and as_json:
        packing = ""
    for n in range(parts):
        part, newline = rows[n::parts], "\n" if as_json else form["newline"]
        if as_json:
            text = write_json(rng, part)
        else:
            # one order of columns for all files, as in a shop
            text, places = csv_lines(random.Random(len(rows)), part, form)
            names = {c: f"my {c}" for c in COLUMNS} if form["named"] else {}
            names = names if form["header"] else places
        end = newline if rng.random() < 0.8 else ""
        data = (newline.join(lines(text)) + end).encode()
        pack(folder, f"events-{n}.{'json' if as_json else 'csv'}", data, packing, packed)
    header = form["header"] or as_json
    files = FileForm(
        names,
        header=header,
        delimiter=form["delimiter"] if not header else "auto",
        encoding="cp1252" if packing == ".cp1252" else "utf-8",
    )
    return edges, files, Meaning(**times, **prices)


@functools.cache
def connection():
    return connect(threads=1)


@functools.cache
def checks(id_types, meaning, headers):
    "SQL of `check_events`: one shop's is another's."
    checked = check_events(connection().table("raw_events"), dict(id_types), Meaning(**dict(meaning)), dict(headers))
    return ibis.to_sql(checked, dialect="duckdb")


def open_shop(folder, files, meaning, before=""):
    "The rows of a shop as they are read; is a file cut off, or may it be?"
    if meaning.timestamps not in TIME_FORMS:
        strptime_format(meaning.timestamps)
    found = [(before + name, path) for name, path in find_files(folder)]
    sources = open_files(found, EVENT_LAYOUT, folder, files, threads=1)
    return read_rows(connection(), sources), any(s.cut_off or s.open_end for s in sources)


ASKED = {"user_id": "auto", "product_id": "auto"}


def settled(rows, checked):
    "The types of a shop's ids, by all of them. Refuses what looks rounded."
    forms = {c: IdForms(checked[f"{c}_form"].value_counts().to_dict()) for c in ASKED}
    check_id_forms(connection(), rows.filter(rows.problem.isnull()), forms, ASKED)
    return settle_id_types(forms, ASKED)


def edges_of(checked, id_types):
    "Edges, and how many rows were rejected, by reason."
    good = checked[checked.reason.isna()]
    ids = ([int(i) if id_types[c] == "integer" else i for i in good[c]] for c in ("product_id", "user_id"))
    prices = [None if pd.isna(p) else p for p in good.price]
    reasons = Counter(checked.reason.dropna())
    return sorted(zip(good.event_time, good.event_type, *ids, prices), key=str), reasons


def sql_of(id_types, files, meaning):
    headers = tuple((c, files.names[c]) for c in ASKED if files.header and c in files.names)
    meant = tuple((k, v) for k, v in vars(meaning).items() if k != "event_types")
    return checks(tuple(id_types.items()), meant, headers)


def checked_rows(id_types, files, meaning):
    checked = connection().con.sql(sql_of(id_types, files, meaning)).df()
    return checked[checked.reason != MARK]


def read_shop(folder, files, meaning):
    "Edges as the reader has them; how many rows it rejected, by reason; whether a file may be cut off."
    rows, cut_off = open_shop(folder, files, meaning)
    checked = checked_rows(guess := dict.fromkeys(ASKED, "integer"), files, meaning)
    id_types = settled(rows, checked)
    checked = checked if id_types == guess else checked_rows(id_types, files, meaning)
    return *edges_of(checked, id_types), cut_off


def check_form(seed, folder):
    edges, files, meaning = write_shop(random.Random(seed), folder)
    read, reasons, _ = read_shop(folder, files, meaning)
    assert (read, reasons) == (sorted(edges, key=str), {})


@pytest.mark.parametrize("seed", [*range(FORMS), *FOUND])
def test_a_shop_in_any_form_is_read_back(tmp_path, seed):
    check_form(seed, tmp_path)


#: texts that mean something else, or nothing, by column
WRONG = {
    "event_time": ["1.7042E+12", "2024-01-05 10:00:00 IST", "2024-01-05 10:00 CST", "45296.4", "soon", "", "NULL",
                   "2024-02-30 10:00:00", "2024-01-05 25:00:00", "0000-00-00 00:00:00", "2024-01-05 10:00:00 PM",
                   "Fri Jan 05 2024", "1 day ago", "2024-W01-5", "1704448800,5", "-1704448800", "2924-01-05 10:00:00"],
    "event_type": ["like", "", "purchase?", "NULL", "1", "view,cart"],
    "product_id": ["", "4.00638E+12", "NULL", "#N/A", "undefined", "n/a", "<NA>"],
    "user_id": ["", "4.00638E+12", "nan", "(not set)", "#REF!", "null", "None"],
}  # fmt: skip


def wrong_values(rng):
    "Some values are illegal."

    def fields(rows):
        rows = [list(row) for row in rows]
        for row in rng.sample(rows, rng.randrange(1, len(rows) + 1)):
            column = rng.choice(list(WRONG))
            row[COLUMNS.index(column)] = rng.choice(WRONG[column])
        return rows

    return {"fields": fields}


def on_lines(change):
    "A change of some lines of a CSV file, the first one with a row or a later one."

    def damage(rng):
        def lines(text):
            first = text[0] if "event_type" in text[0] else ""
            for at in rng.sample(range(1, len(text)), rng.randrange(1, len(text))) if len(text) > 1 else []:
                text[at] = change(rng, text[at], first)
            return text

        return {"lines": lines, "only_csv": True}

    return damage


def cut(rng, line, _):
    "Half a row: at least the last field is gone with what separates it."
    end = line.rfind(max(",;\t|", key=line.count))
    return line[: rng.randrange(1, end + 1)] if end > 0 else line + ";"


def moved(rng, line, _):
    "One field too many in front, the last one gone, as when a text holds a delimiter."
    delimiter = max(",;\t|", key=line.count)
    return delimiter.join(["x", *line.split(delimiter)[:-1]])


def on_bytes(change):
    def damage(rng):
        return {"packed": lambda data: change(rng, data)}

    return damage


def no_letters(rng, data):
    "Bytes that no encoding knows; two more bytes of UTF-16 are a letter."
    at = rng.randrange(len(data))
    return data if data.startswith(b"\xff\xfe") else data[:at] + b"\x81\x8d" + data[at:]


def flip(rng, data):
    "Another bit, where a checksum sees it."
    if not data.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"PK")):
        return data
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]


#: kinds of damage to the files
DAMAGE = {
    "wrong values": wrong_values,
    "half rows": on_lines(cut),
    "moved columns": on_lines(moved),
    "header again": on_lines(lambda rng, line, header: header or line),
    "NUL": on_lines(lambda rng, line, _: line[: (n := rng.randrange(len(line)))] + "\0" + line[n:]),
    "a quote": on_lines(lambda rng, line, _: '"' + line),
    "a delimiter": on_lines(lambda rng, line, _: line + max(",;\t|", key=line.count)),
    "not JSON": on_lines(lambda rng, line, _: '{"event_time": "2024-'),
    "no letters": on_bytes(no_letters),
    "end gone": on_bytes(lambda rng, data: data[: rng.randrange(len(data))]),
    "a bit": on_bytes(flip),
}
#: settings that are wrong for the files
SETTINGS = {
    "decimal": lambda files, meaning: (files, replace(meaning, decimal=",."[meaning.decimal == ","])),
    "header": lambda files, meaning: (replace(files, header=not files.header, names={}), meaning),
    "delimiter": lambda files, meaning: (replace(files, delimiter="^"), meaning),
    "days": lambda files, meaning: (files, replace(meaning, timestamps=SWAPPED.get(meaning.timestamps, "excel"))),
    "unit": lambda files, meaning: (files, replace(meaning, timestamps="milliseconds")),
    "unit 2": lambda files, meaning: (files, replace(meaning, timestamps="seconds")),
    "minutes": lambda files, meaning: (files, replace(meaning, timestamps="DD.MM.YYYY HH:MM")),
    "no A": lambda files, meaning: (files, replace(meaning, timestamps="MM/DD/YYYY hh:mm:ss")),
    "encoding": lambda files, meaning: (replace(files, encoding=OTHER[files.encoding]), meaning),
    "names": lambda files, meaning: (replace(files, names={**files.names, "user_id": "event_type"}), meaning),
}
OTHER = {"utf-8": "cp1252", "cp1252": "utf-8"}
SWAPPED = {
    "DD/MM/YYYY HH:mm:ss": "MM/DD/YYYY HH:mm:ss",
    "MM/DD/YYYY hh:mm:ss A": "DD/MM/YYYY hh:mm:ss A",
    "DD.MM.YYYY HH:mm:ss": "MM.DD.YYYY HH:mm:ss",
    "DD/MM/YY HH:mm:ss": "MM/DD/YY HH:mm:ss",
}


def write_illegal(seed, folder):
    "Write a shop that is damaged, or settings that are wrong for it."
    rng = random.Random(seed)
    damage, setting = (rng.choice([*DAMAGE]), "") if rng.random() < 0.7 else ("", rng.choice([*SETTINGS]))
    edges, files, meaning = write_shop(rng, folder, **(DAMAGE[damage](rng) if damage else {}))
    if setting:
        files, meaning = SETTINGS[setting](files, meaning)
    return edges, files, meaning, damage or setting


def other_edges(edges, read, reasons, cut_off, what):
    "Edges that a damaged shop did not have, and rows that are gone uncounted; empty if the stage refuses the shop."
    rejected, plain = sum(reasons.values()), lambda rows: [(*row[:2], *map(str, row[2:4])) for row in rows]
    if reasons[TURNED] or (what in SETTINGS and rejected > 0.05 * (rejected + len(read))):
        return {}
    prices = {}
    for key, (*_, price) in zip(plain(edges), edges):
        prices.setdefault(key, {None}).add(price)
    other = Counter(plain(read)) - Counter(plain(edges))
    other.update(key for key, (*_, price) in zip(plain(read), read) if price not in prices.get(key, {price}))
    lost = len(edges) - len(read) - rejected
    noted = cut_off or what == "end gone"  # a file may end between two rows
    return {**other, **({"lost": lost} if lost > 0 and not noted else {})}


def check_illegal(seed, folder):
    "Damaged rows are rejected and counted, or the run is refused; the others stay as they are."
    edges, files, meaning, what = write_illegal(seed, folder)
    try:
        found = read_shop(folder, files, meaning)
    except (DataError, SettingsError):
        return
    assert other_edges(edges, *found, what) == {}, (what, files, meaning)


@pytest.mark.parametrize("seed", [*range(FORMS), *FOUND_ILLEGAL])
def test_a_damaged_shop_never_has_other_edges(tmp_path, seed):
    check_illegal(seed, tmp_path)
