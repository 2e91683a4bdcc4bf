"""A random shop, written in a random form, is read back with the same edges, or refused: never with other ones."""

import bz2
import gzip
import json
import lzma
import random
import zipfile
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pandas as pd
import pyarrow as pa
import pytest

from gnn_ecommerce.core import DataError
from gnn_ecommerce.data.events import (
    EVENT_LAYOUT,
    FileForm,
    Meaning,
    check_events,
    connect,
    count_forms,
    find_files,
    guess_id_types,
    open_files,
    read_rows,
    settle_id_types,
)
from gnn_ecommerce.data.sanity import check_id_forms

#: how many forms are tried in the suite; more by hand, with the seeds of what they found below
FORMS, FOUND = 24, []
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
    "short": ("%d/%m/%y %H:%M:%S", {"timestamps": "DD/MM/YY HH:mm:ss"}),
}
UNITS = {"seconds": 1, "milliseconds": 10**3, "microseconds": 10**6, "nanoseconds": 10**9}
ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe")
OFFSETS = ("Z", " UTC", "+00:00", "+0000", " GMT")


def shop(rng):
    "Events in January: time, type, product, customer, price."
    start, ids = datetime(2024, 1, 3, tzinfo=UTC), rng.choice(["integer", "zeros", "text"])
    spell = {"integer": str, "zeros": "{:06}".format, "text": "c-{}".format}[ids]
    return ids, [
        (
            start + timedelta(seconds=rng.randrange(20 * 86400)),
            rng.choice(["view", "cart", "purchase"]),
            rng.randrange(1, 40),
            spell(rng.randrange(1, 90)),
            rng.choice([None, round(rng.random() * 3000, 2)]),
        )
        for _ in range(rng.randrange(3, 30))
    ]


def time_form(rng):
    "A form of times: a function that writes one, and settings."
    way = rng.choice([*TIMES, *UNITS, "offset"])
    if way == "offset":
        offset = rng.choice(OFFSETS)
        return lambda t: f"{t:%Y-%m-%d %H:%M:%S}{offset}", {"timezone": rng.choice(ZONES)}
    if way in UNITS:
        return lambda t: str(int(t.timestamp()) * UNITS[way]), {"timestamps": rng.choice(["auto", way])}
    pattern, settings = TIMES[way]
    zone = rng.choice(ZONES)
    return lambda t: t.astimezone(ZoneInfo(zone)).strftime(pattern), {**settings, "timezone": zone}


def price_form(rng):
    "A form of prices: a function that writes one, and settings."
    decimal, sign = rng.choice(".,"), rng.choice(["", "€ ", "$", "CHF "])
    thousands = rng.choice(["", " ", "'", {".": ",", ",": "."}[decimal]])

    def write(price):
        if price is None:
            return rng.choice(["", "NULL"])
        return sign + f"{price:,.2f}".replace(",", "_").replace(".", decimal).replace("_", thousands)

    return write, {"decimal": decimal}


def id_form(rng, ids):
    "A form of ids: a function that writes one."
    blank, point = rng.choice(["", " "]), ids == "integer" and rng.random() < 0.4
    return lambda value: f"{blank}{value}{'.0' if point and rng.random() < 0.5 else ''}{blank}"


PACKINGS = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: pa.compress(data, "zstd", asbytes=True),
    ".utf16": lambda data: data.decode().encode("utf-16"),
    ".zip": None,
}


def pack(folder, name, data, packing):
    if packing != ".zip":
        (folder / f"{name}{'' if packing == '.utf16' else packing}").write_bytes(PACKINGS[packing](data))
        return
    with zipfile.ZipFile(folder / f"{name}.zip", "w") as archive:
        archive.writestr(name, data)


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
    return form["newline"].join(lines) + form["newline"], {COLUMNS[i]: str(n + 1) for n, i in enumerate(order)}


def write_shop(rng, folder):
    "Write a shop in a random form. Returns its edges and the settings that read it."
    ids, events = shop(rng)
    (write_time, times), (write_price, prices), write_id = time_form(rng), price_form(rng), id_form(rng, ids)
    rows = [
        (write_time(t), e, write_id(i) if ids == "integer" else str(i), write_id(u), write_price(p))
        for t, e, i, u, p in events
    ]
    form = {
        "delimiter": rng.choice(",;\t|"),
        "named": rng.random() < 0.3,
        "header": rng.random() < 0.8,
        "quoted": rng.choice([0, 0.5, 1]),
        "newline": rng.choice(["\n", "\r\n", "\r"]),
    }
    names, json_lines, packing = {}, rng.random() < 0.2, rng.choice([*PACKINGS])
    parts = 1 if packing == ".zip" else rng.choice([1, 1, 3])
    for n in range(parts):
        part = rows[n::parts]
        if json_lines:
            data = "\n".join(json.dumps(dict(zip(COLUMNS, row)), ensure_ascii=rng.random() < 0.5) for row in part)
        else:
            # one order of columns for all files, as in a shop
            data, places = csv_lines(random.Random(len(rows)), part, form)
            names = {c: f"my {c}" for c in COLUMNS} if form["named"] else {}
            names = names if form["header"] else places
        pack(folder, f"events-{n}.{'json' if json_lines else 'csv'}", data.encode(), packing)
    header = form["header"] or json_lines
    files = FileForm(names, header=header, delimiter=form["delimiter"] if not header else "auto")
    typed = int if ids == "integer" else str
    return [(pd.Timestamp(t), e, i, typed(u), p) for t, e, i, u, p in events], files, Meaning(**times, **prices)


def read_shop(folder, files, meaning):
    "The edges of a shop as the reader has them; and how many rows it rejected."
    con = connect(threads=1)
    rows = read_rows(con, open_files(find_files(folder), EVENT_LAYOUT, folder, files, threads=1))
    asked = {"user_id": "auto", "product_id": "auto"}
    checked = check_events(rows, guess_id_types(con, rows, asked), meaning, files.names)
    forms = count_forms(con, checked)
    check_id_forms(con, rows.filter(rows.problem.isnull()), forms, asked)
    checked = con.execute(check_events(rows, settle_id_types(forms, asked), meaning, files.names))
    con.disconnect()
    good = checked[checked.reason.isna()]
    # pandas makes floats of integers beside missing ones
    products = [int(p) if isinstance(p, float) else p for p in good.product_id.tolist()]
    price = [None if pd.isna(p) else p for p in good.price]
    values = zip(good.event_time, good.event_type, products, good.user_id.tolist(), price)
    return sorted(values, key=str), int(checked.reason.notna().sum())


def check_form(seed, folder):
    edges, files, meaning = write_shop(random.Random(seed), folder)
    read, rejected = read_shop(folder, files, meaning)
    assert (read, rejected) == (sorted(edges, key=str), 0)


@pytest.mark.parametrize("seed", [*range(FORMS), *FOUND])
def test_a_shop_in_any_form_is_read_back(tmp_path, seed):
    check_form(seed, tmp_path)


#: changes that make a text mean something else, or nothing, by column
ILLEGAL = {
    "event_time": ["01/02/2024 10:00", "1.7042E+12", "2024-01-05 10:00:00 IST", "45296.4", "24-01-05 10:00", "soon"],
    "event_type": ["like", "", "purchase?"],
    "product_id": ["", "4.00638E+12", "NULL"],
    "user_id": ["", "4.00638E+12", "nan"],
}


def check_illegal(seed, folder):
    "Rows of which one value is illegal are rejected, or the run is refused; the others stay as they are."
    rng = random.Random(seed)
    _, events = shop(rng)
    rows = [[f"{t:%Y-%m-%d %H:%M:%S}", e, str(i), f"c-{u}", ""] for t, e, i, u, _ in events]
    bad = sorted(rng.sample(range(len(rows)), rng.randrange(1, len(rows))))
    good = sorted((pd.Timestamp(r[0], tz="UTC"), *r[1:4]) for n, r in enumerate(rows) if n not in bad)
    for n in bad:
        column = rng.choice(list(ILLEGAL))
        rows[n][COLUMNS.index(column)] = rng.choice(ILLEGAL[column])
    pd.DataFrame(rows, columns=COLUMNS).to_csv(folder / "events.csv", index=False)
    try:
        read, rejected = read_shop(folder, FileForm(), Meaning())
    except DataError:
        return
    assert (sorted((t, e, str(i), u) for t, e, i, u, _ in read), rejected) == (good, len(bad))


@pytest.mark.parametrize("seed", range(FORMS // 3))
def test_a_shop_with_illegal_values_never_has_other_edges(tmp_path, seed):
    check_illegal(seed, tmp_path)
