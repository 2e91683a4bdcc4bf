"""Troubles that people reported of a shop's data: each is read right, or refused with what to do.

The inputs lie outside of the repository (`cases/` of the real data)."""

import gzip
from functools import cached_property

import numpy as np
import pandas as pd
import pytest
import yaml

import gnn_ecommerce.data_prep as stage
from gnn_ecommerce.core import DataError, IdMap, ProjectPaths, load_settings, merge_params, read_table
from gnn_ecommerce.data.doctor import diagnose
from gnn_ecommerce.data_prep import DataPrepSettings
from gnn_ecommerce.data.events import connect


class Shop:
    "A shop's events as they are read."

    def __init__(self, folder, events, settings):
        (folder / "params.yaml").write_text(yaml.safe_dump({"data_prep": {"events": str(events), **settings}}))
        self.settings = stage.check_settings(load_settings(DataPrepSettings, "data_prep", folder / "params.yaml"))
        self.paths, self.folder, self.con = ProjectPaths(folder), folder, connect(threads=1)
        self.sources, _ = stage.open_inputs(self.settings, self.paths, folder)
        self.checked = stage.check_all(self.con, self.sources, self.settings, folder)
        stage.odd_types(self.con, self.checked, self.settings)
        stage.check_rejected(self.con, self.checked, self.settings)
        usable = self.checked.rows.filter(self.checked.rows.reason.isnull())
        self.events = self.con.execute(usable.order_by("event_time", "line"))

    @property
    def reasons(self):
        return self.checked.counts.groupby("reason").rows.sum().to_dict()

    @cached_property
    def prepared(self):
        "What the whole stage makes of it."
        return stage.prepare(self.con, self.settings, self.paths, self.folder)

    @property
    def advice(self):
        return " ".join(self.prepared.warnings.warning + ": " + self.prepared.warnings.advice)

    @property
    def products(self):
        assert self.prepared
        return read_table(self.folder / "products.parquet", "products", "data_prep")


@pytest.fixture
def read(tmp_path, real_data):
    "A function that reads a case's events with its overlay, or with what the doctor finds."

    def read(path, overlay=None, **settings):
        file = real_data / "cases" / path
        given = yaml.safe_load((file.parent / overlay).read_text()).get("data_prep", {}) if overlay else {}
        return Shop(tmp_path, file, merge_params(given, settings))

    return read


@pytest.fixture
def look(real_data):
    "What the doctor finds, as settings."
    return lambda path: diagnose(real_data / "cases" / path).data_prep


def first_price(shop):
    return shop.events.price.iloc[0]


# 01


def test_invoices_without_event_type_are_purchases_and_returns_are_not(read, look):
    shop = read("01-invoices-no-event-type/online_retail.csv", **look("01-invoices-no-event-type/online_retail.csv"))
    assert shop.events.event_type.unique().tolist() == ["purchase"]
    assert shop.events.user_id.iloc[0] == 1123 and shop.events.event_time.iloc[0] == pd.Timestamp(
        "2023-03-01 00:36", tz="UTC"
    )
    assert shop.reasons == {"user_id is missing": 458, "a return: quantity is not above 0": 161}


def test_invoices_without_a_setting_say_which(read):
    with pytest.raises(
        DataError, match=r"if every row is a purchase, set data_prep.constants: \{event_type: purchase\}"
    ):
        read("01-invoices-no-event-type/iso.csv", "map.yaml")


# 03


@pytest.mark.parametrize(
    "file, settings, price",
    [
        ("us.csv", {}, 2438.6),
        ("few.csv", {}, 1068),
        ("de.csv", {"decimal": ","}, 2438.6),
        ("de_whole.csv", {"decimal": ","}, 2439),
    ],
)
def test_prices_with_currency_and_thousands(read, file, settings, price):
    shop = read(f"03-price-with-currency/{file}", **settings)
    assert (first_price(shop), len(shop.events)) == (price, 2245)


def test_thousands_read_as_decimals_are_worth_a_look(read):
    assert (
        "if 2.439 is more than two thousand, set data_prep.decimal: ','"
        in read("03-price-with-currency/de_whole.csv").advice
    )


# 04

DATES = {
    "compact.csv": ("2023-03-01 00:00", "auto"),
    "compact_time.csv": ("2023-03-01 02:19:05", "auto"),
    "day_first.csv": ("2023-03-01 02:19", "DD/MM/YYYY HH:mm"),
    "dotted.csv": ("2023-03-01 02:19", "DD.MM.YYYY HH:mm"),
    "epoch_ns.csv": ("2023-03-01 02:19:05", "auto"),
    "epoch_us.csv": ("2023-03-01 02:19:05", "auto"),
    "excel_serial.csv": ("2023-03-01 02:19:05.376", "excel"),
    "iso_12h.csv": ("2023-03-01 02:19:05", "YYYY-MM-DD hh:mm:ss A"),
    "month_name.csv": ("2023-03-01 02:19:05", "auto"),
    "two_digit.csv": ("2023-03-01 02:19:05", "YY-MM-DD HH:mm:ss"),
    "us_12h.csv": ("2023-03-01 02:19:05", "MM/DD/YYYY hh:mm:ss A"),
}


@pytest.mark.parametrize("file", DATES)
def test_dates_are_read_in_the_form_that_the_doctor_finds(read, look, file):
    first, form = DATES[file]
    found = look(f"04-dates-other-than-iso/{file}")
    assert found["timestamps"] == form
    assert read(f"04-dates-other-than-iso/{file}", **found).events.event_time.min() == pd.Timestamp(first, tz="UTC")


@pytest.mark.parametrize("form", ["auto", "milliseconds", "nanoseconds"])
def test_a_rounded_time_is_refused(read, form):
    with pytest.raises(DataError, match="2,245 event_time is rounded: scientific notation"):
        read("04-dates-other-than-iso/epoch_sci.csv", timestamps=form)


def test_a_date_that_could_be_two_is_refused_with_the_forms(read):
    with pytest.raises(DataError, match="or a pattern such as DD.MM.YYYY HH:mm"):
        read("04-dates-other-than-iso/day_first.csv")


# 07, 20


def test_zeros_stay_and_a_catalogue_without_them_is_noticed(read):
    shop = read("07-leading-zeros/shop")
    assert shop.events.product_id.iloc[0] == "0108775504"
    assert "the catalogue does not know most products" in shop.advice
    assert {"0537", "0538", "0539"} < set(read("07-leading-zeros/few_zeros.csv").events.product_id)


def test_one_whole_row_of_a_catalogue_wins(read):
    product = read("20-catalogue-rows-twice/shop").products.set_index("product_id").loc[500]
    assert product[["name", "category_code", "brand"]].tolist() == ["Zinc cream 500", "face.cream", "Aare"]


# 08, 09, 14


def test_forgotten_words_that_hold_all_purchases_stop_the_run(read):
    with pytest.raises(DataError, match=r"event_types: \{addtocart: cart, transaction: purchase\}"):
        read("08-own-words-for-few-events/events.csv", "columns_only.yaml")


def test_no_header_loses_no_row(read, look):
    found = look("09-no-header-and-coded-events/UserBehavior.csv")
    shop = read("09-no-header-and-coded-events/UserBehavior.csv", **found)
    assert len(shop.events) == 2245
    first = shop.events.iloc[0]
    assert (first.user_id, first.product_id, first.event_type) == (1080, 504, "view")
    assert first.event_time == pd.Timestamp(1677637145, unit="s", tz="UTC")


@pytest.mark.parametrize("overlay", ["coded.yaml", "coded_quoted.yaml"])
def test_numbers_as_words_for_events(read, overlay):
    types = read("09-no-header-and-coded-events/coded.csv", overlay).events.event_type.value_counts().to_dict()
    assert types == {"view": 1569, "purchase": 411, "cart": 265}


def test_an_index_column_is_left_out_and_named(read):
    (source,) = read("14-index-column/events.csv").sources
    assert source.notes == ["column 1 (without a name) not used"]


# 15, 18, 19, 32: counts that rarely are right


@pytest.mark.parametrize(
    "path, overlay, advice",
    [
        ("15-views-only/events.csv", None, "set data_prep.targets: [view]"),
        ("17-tiny-catalogue/one_item.csv", None, "one product has a large part of the events"),
        ("18-every-customer-once/orders.csv", None, "nearly no customer comes back"),
        ("19-guests-share-one-id/events.csv", None, "graph_build.max_user_events: 95"),
        ("32-sessions-without-users/clicks.csv", "map.yaml", "nearly no customer comes back"),
    ],
)
def test_odd_counts_are_said(read, path, overlay, advice):
    assert advice in read(path, overlay).advice


# 17, 23, 25, 26, 27, 28, 36: events that are as they should be


@pytest.mark.parametrize("path", ["17-tiny-catalogue/events.csv", "25-second-shop-after-first/second.csv"])
def test_plain_events_are_read_whole(read, path):
    assert read(path).reasons == {}


def test_category_levels_with_another_separator(read):
    shop = read("23-stock-and-repeat-purchases/events.csv", category_separator=">")
    assert shop.events.category_code.iloc[0] == "Beauty.Sub1"


# 35


@pytest.mark.parametrize("ids", [[None], ["a", None], [np.nan]])
def test_no_id_is_none(ids):
    with pytest.raises(DataError, match="expected all integers or all texts"):
        IdMap(ids)


# our own: files of several makers in one folder


FIRST = "event_time,event_type,product_id,user_id\n2024-01-31 10:00:00,view,1,7\n"
OTHERS = {
    "times": ("event_time,user_id,product_id,event_type\n31.01.2024 10:00,7,1,view\n", "timestamps DD.MM.YYYY HH:mm"),
    "names": ("time,event_type,product_id,customer\n2024-01-31,view,1,7\n", "event_time is column 'time', user_id is"),
    "a column is not there": ("event_time,event_type,product_id\n2024-01-31,view,1\n", "no column user_id"),
}


@pytest.mark.parametrize("text, differs", OTHERS.values(), ids=OTHERS)
def test_the_doctor_names_a_file_that_is_not_written_as_the_first(tmp_path, text, differs):
    (tmp_path / "a.csv").write_text(FIRST)
    (tmp_path / "b.csv").write_text(text)
    assert f"b.csv is not written as the first file: {differs}" in " ".join(diagnose(tmp_path).open)


def test_the_doctor_takes_files_of_one_form_as_one(tmp_path):
    (tmp_path / "a.csv").write_text(FIRST)
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(FIRST.replace("7", "8").encode()))
    (tmp_path / "c.csv").write_text("brand,event_time,event_type,product_id,user_id\nB,2024-01-31,view,1,7\n")
    assert diagnose(tmp_path).readable


def test_the_doctor_knows_words_by_their_letters(tmp_path):
    words = ["Add To Cart", "addToCart", "add-to-cart", "PageView", "Order Placed"]
    rows = "".join(f"2024-01-31 10:00:00,{word},1,7\n" for word in words)
    (tmp_path / "a.csv").write_text("event_time,event_type,product_id,user_id\n" + rows)
    assert diagnose(tmp_path).data_prep["event_types"] == dict(zip(words, ["cart"] * 3 + ["view", "purchase"]))


def test_the_doctor_finds_how_many_were_sold(tmp_path):
    (tmp_path / "a.csv").write_text("order_date,customer_id,sku,qty,unit_price\n2024-01-31,7,1,-1,3.5\n")
    found = diagnose(tmp_path)
    assert found.data_prep["columns"]["quantity"] == "qty" and "rejected 1: a return" in str(found)


def test_the_doctor_names_an_empty_file(tmp_path):
    (tmp_path / "a.csv").write_text(FIRST.split("\n")[0])
    with pytest.raises(DataError, match="events: expected events, found no row in a.csv"):
        diagnose(tmp_path)


def test_parts_of_parquet_columns_have_names_with_dots(tmp_path):
    event = {"event_time": pd.Timestamp("2024-01-31"), "event_type": "view", "item": {"id": 1}, "user": {"id": 7}}
    pd.DataFrame([event]).to_parquet(tmp_path / "a.parquet")
    assert diagnose(tmp_path).data_prep["columns"] == {"product_id": "item.id", "user_id": "user.id"}


OWN = "event_time,event_type,product_id,user_id\n{}"
REFUSED = {
    "days and months": (
        {"timestamps": "DD/MM/YYYY"},
        "01/12/2024,view,1,7\n01/13/2024,view,1,7\n",
        "the order of DD and MM",
    ),
    "UTF-8 for Windows": ({"encoding": "cp1252"}, "2024-01-31,view,1,Jürgen\n", "cp1252 in a.csv, found UTF-8"),
    "one column for two": ({"columns": {"user_id": "product_id"}}, "2024-01-31,view,1,7\n", "one means two things"),
}


@pytest.mark.parametrize("settings, rows, message", REFUSED.values(), ids=REFUSED)
def test_what_would_be_misread_is_refused(tmp_path, settings, rows, message):
    (tmp_path / "a.csv").write_text(OWN.format(rows), encoding="utf8")
    with pytest.raises(DataError, match=message):
        Shop(tmp_path, tmp_path / "a.csv", settings)


def test_a_list_inside_of_json_is_said(tmp_path):
    (tmp_path / "a.json").write_text('{"events": [{"event_time": "2024-01-31"}]}')
    with pytest.raises(DataError, match=r"its rows stand in the list events: write one a line, as jq -c '.events\[\]'"):
        Shop(tmp_path, tmp_path / "a.json", {})
