"""Recommendations from a DataFrame: the example of README and of the site's first page, as it stands there."""

import re

import pandas as pd
import pytest
from conftest import ROOT

from gnn_ecommerce.core import example_project


def example(page):
    "The five lines of a page."
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf8"), re.S)
    return next(block for block in blocks if "recommend_from_events" in block)


@pytest.mark.slow
def test_the_five_lines_run_as_they_stand_there(tmp_path, monkeypatch, capsys):
    shop = example_project("data_prep", root=tmp_path / "p").parent / "data/raw/sample"
    events = pd.concat(map(pd.read_csv, sorted(shop.glob("events-*.csv"))))
    events.to_csv(tmp_path / "events.csv", index=False)
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    names = {}
    exec(example("README.md"), names)
    lists = names["lists"]
    assert set(lists.groupby("customer")["rank"].max()) == {10}
    assert set(lists.customer) == set(events.user_id)
    assert capsys.readouterr().out.count("\n") == 11, "a table of ten rows, and no messages of stages"


def test_readme_and_first_page_show_the_same_lines():
    assert example("README.md") == example("docs/index.md")
