"Names with quotes, slashes, tags and line ends come through every door: files, lists, command line, pages, routes."

import csv
import json
import random
from html import escape

import ibis
import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.routing import Match
from typer.testing import CliRunner

from gnn_ecommerce import cli
from gnn_ecommerce.api_server import list_routes
from gnn_ecommerce.core import STAGES, TINY, IdMap, merge_params, read_params, run_stage
from gnn_ecommerce.data.events import EVENT_LAYOUT, check_events, connect, find_files, open_files, read_rows
from gnn_ecommerce.run.front_page import front_page

FOLDER = "it's [my] $HOME 100% \"shop\" ü&<b>"
CUSTOMERS = ["O'Brien", "a/b", "<script>x</script>", "x,y", 'q"', "new\nline", "50%", "../..", "--help", "[b]", "é 🛒"]
PRODUCTS = ["p'1", "p/2", "<img src=x>", "p,5", 'p"6', "p\n7", "%2F", "[red]", "p:view", "\\n", "${x}"]


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    "A trained project in a folder of such a name, with such ids."
    root, rng, rows = tmp_path_factory.mktemp("ugly") / FOLDER, random.Random(0), []
    root.mkdir()
    for day in pd.date_range("2024-01-01", periods=30, tz="UTC"):
        for customer in CUSTOMERS:
            time, product = day + pd.Timedelta(minutes=rng.randrange(1400)), rng.choice(PRODUCTS)
            rows += [(time, kind, product, customer) for kind in ["view", "purchase"][: rng.choice([1, 2])]]
    events = pd.DataFrame(rows, columns=["event_time", "event_type", "product_id", "user_id"])
    events.to_csv(root / "ev'ents [1] $x%.csv", index=False)
    small = {"data_prep": {"events": "ev'ents [1] $x%.csv"}, "training": {"epochs": 2, "dim": 8}}
    params = merge_params(merge_params(read_params(), TINY), small)
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    for stage in STAGES:
        if stage not in ("sample_data", "explainability", "bundle"):
            run_stage(stage, root / "params.yaml")
    return root


def run(shop, *words):
    done = CliRunner().invoke(cli.app, words, env={"GNN_ECOMMERCE_ROOT": str(shop)})
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


def test_the_command_line_gives_everybody_the_list_of_the_file(shop):
    table = pd.read_parquet(shop / "model-recommendations" / "recommendations.parquet")
    lists = {u: part.sort_values("rank").product_id.tolist()[:3] for u, part in table.groupby("user_id")}
    results = run(shop, "recommend", "--json", "-k", "3", "--", *CUSTOMERS)["results"]
    assert [r["customer"] for r in results] == CUSTOMERS
    # those who have bought all that there is are not in the file
    assert {r["customer"]: [i["product_id"] for i in r["items"]] for r in results if r["items"]} == lists


@pytest.mark.parametrize("product", PRODUCTS)
def test_a_product_of_any_name_can_be_in_a_basket(product):
    (item,) = cli.read_basket([product], IdMap(PRODUCTS))
    assert (item.product_id, item.event_type) == (product, "cart")


def test_pages_show_names_and_run_none(shop):
    page = front_page(shop).read_text()
    assert "<img src=x" not in page and "<script>x" not in page
    assert any(escape(product) in page for product in PRODUCTS if "<" in product)


def path_id(path, route):
    "The id that a route finds in a path."
    match, scope = route.matches({"type": "http", "method": "GET", "path": path})
    assert match == Match.FULL
    return next(iter(scope["path_params"].values()))


TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"], include_characters="\n\t"), min_size=1, max_size=12)


@given(TEXTS)
@settings(max_examples=200, deadline=None)
def test_a_route_finds_any_id(text):
    lists, reasons, similar = list_routes.routes[:3]
    assert path_id(f"/v1/customers/{text}/recommendations", lists) == text
    assert path_id(f"/v1/customers/{text}/explanations", reasons) == text
    assert path_id(f"/v1/products/{text}/similar", similar) == text


def test_a_file_keeps_any_id(tmp_path):
    rng, signs = random.Random(0), [chr(c) for c in range(32, 127)] + list('\n\t"",\xa0\u2028é🛒\ufeff')
    # blanks at the ends are no part of an id
    ids = [f"c{''.join(rng.choices(signs, k=8))}c" for _ in range(2000)]
    with open(tmp_path / "events.csv", "w", newline="", encoding="utf8") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(["event_time", "event_type", "product_id", "user_id"])
        lines.writerows(("2024-01-31 10:00:00", "view", str(n), id) for n, id in enumerate(ids))
    con = connect(threads=1)
    rows = read_rows(con, open_files(find_files(tmp_path), EVENT_LAYOUT, tmp_path))
    read = con.execute(
        check_events(rows, {"user_id": "string", "product_id": "integer"}).filter(ibis._.reason.isnull())
    )
    con.disconnect()
    wrong = [(a, b) for a, b in zip(ids, read.sort_values("product_id").user_id) if a != b]
    assert (len(read), wrong) == (2000, [])
