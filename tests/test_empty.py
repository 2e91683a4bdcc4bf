"An empty result is a result: every stage and page goes on, and says what is missing and which setting would change it."

import random
from html import unescape

import pandas as pd
import pytest
import yaml

from gnn_ecommerce.core import STAGES, TINY, merge_params, read_params, run_stage
from gnn_ecommerce.run.front_page import front_page
from gnn_ecommerce.run.pipeline import comparison, show_results

TEST = "2024-01-27"  # where the test period begins


def shop(users=5, items=6, days=32):
    "Views, some of them with a purchase."
    rng, rows = random.Random(0), []
    for day in pd.date_range("2024-01-01", periods=days, tz="UTC"):
        for user in range(users):
            item, time = rng.randrange(items), day + pd.Timedelta(minutes=rng.randrange(1400))
            rows += [(time, kind, item, user) for kind in ["view", "purchase"][: rng.choice([1, 2])]]
    return pd.DataFrame(rows, columns=["event_time", "event_type", "product_id", "user_id"])


def is_late(events):
    return events.event_time >= TEST


def strangers(events):
    "The same, but everybody in the test period is new."
    return events.assign(user_id=events.user_id + 100 * is_late(events))


NOBODY = "Nobody bought anything new in the test period: nothing to compare."
STRANGERS = "No customer who bought something new in the test period is known to the model"
SHOPS = {
    "views only": (lambda e: e[e.event_type == "view"], NOBODY),
    "all purchases are repeats": (lambda e: e.assign(product_id=e.user_id % 3), NOBODY),
    "everybody is new": (strangers, STRANGERS),
    "one customer and product": (lambda e: e.assign(product_id=1, user_id=1), NOBODY),
}


@pytest.mark.parametrize("change, note", SHOPS.values(), ids=SHOPS)
def test_the_whole_pipeline_goes_on_and_says_what_is_missing(tmp_path, capsys, change, note):
    change(shop()).to_csv(tmp_path / "events.csv", index=False)
    small = {"data_prep": {"events": "events.csv", "val_days": 5, "test_days": 6}, "training": {"epochs": 2, "dim": 8}}
    params = merge_params(merge_params(read_params(), TINY), small)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    for stage in STAGES:
        if stage != "sample_data":
            run_stage(stage, tmp_path / "params.yaml")
    page = unescape(front_page(tmp_path).read_text())
    assert len(comparison(tmp_path)) == 0
    assert note in page and "nan" not in page.lower()
    capsys.readouterr()
    show_results(tmp_path)
    assert note in " ".join(capsys.readouterr().out.split())
