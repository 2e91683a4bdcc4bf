"""The backtest: what a week knows, what its figures are, and that a killed one goes on where it was."""

import json
import os
import shutil
import signal

import numpy as np
import pandas as pd
import pytest
from forked import run_forked
from typer.testing import CliRunner

from gnn_ecommerce.cli import app
from gnn_ecommerce.core import ProjectPaths, example_project
from gnn_ecommerce.run import backtest
from gnn_ecommerce.run.backtest import BacktestSettings, backtest_of, replay

pytestmark = pytest.mark.slow
ASKED = BacktestSettings(weeks=3, every="10d")


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    "A tiny shop with its backtest."
    warm = {"refit": {"start": "warm"}}
    params = example_project("refit", warm, tmp_path_factory.mktemp("backtest") / "shop")
    return params, replay(params, ASKED).rows


@pytest.fixture
def fresh(shop, tmp_path):
    "The same shop without a backtest."
    root = shutil.copytree(shop[0].parent, tmp_path / "shop")
    shutil.rmtree(root / "reports" / "backtest")
    shutil.rmtree(root / "model-checkpoints" / "backtest")
    return root / "params.yaml"


def events_of(params):
    return pd.read_parquet(ProjectPaths(params.parent).interim / "events.parquet")


def value(rows, start, method, metric):
    return rows[(rows.start == start) & (rows.method == method) & (rows.metric == metric)]["mean"].item()


def test_periods_end_with_the_last_event(shop):
    params, rows = shop
    starts, last = backtest_of(params, ASKED).starts, events_of(params).event_time.max()
    assert starts == sorted(rows.start.unique())
    assert pd.Timedelta(0) < starts[-1] + ASKED.length - last <= pd.Timedelta("1s")


def test_a_model_knows_nothing_of_the_week_that_it_is_measured_on(shop):
    test = backtest_of(shop[0], ASKED)
    model = backtest.open_refitted(test.model(2))[0]
    assert model.last == events_of(shop[0]).event_time[lambda time: time < test.starts[2]].max()
    assert model.start["mode"] == "warm"


def test_figures_of_popular_products_are_those_counted_by_hand(shop):
    params, rows = shop
    start, events = backtest_of(params, ASKED).starts[1], events_of(params)
    bought = events[events.event_type == "purchase"].drop_duplicates(["user_id", "product_id"])
    before = bought[bought.event_time < start]
    week = bought[(bought.event_time >= start) & (bought.event_time < start + ASKED.length)]
    ranked = (
        before.product_id.value_counts().reset_index().sort_values(["count", "product_id"], ascending=[False, True])
    )
    recalls = []
    for user, mine in week.groupby("user_id"):
        had = before[before.user_id == user].product_id
        best = ranked.product_id[~ranked.product_id.isin(had)].head(20)
        recalls.append(mine.product_id.isin(best).mean())
    assert value(rows, start, "popular", "recall@20") == pytest.approx(np.mean(recalls), rel=1e-5)


def test_in_the_first_week_there_is_nothing_to_gain(shop):
    gain = shop[1][shop[1].method == "gain"]
    assert gain[gain.start == gain.start.min()][["mean", "low", "high"]].to_numpy().tolist() == [[0, 0, 0]] * 2


def test_the_gain_is_the_difference_of_the_two_models(shop):
    rows = shop[1]
    for start in rows.start.unique():
        new, old, gain = (value(rows, start, method, "ndcg@20") for method in ("retrained", "first week", "gain"))
        assert gain == pytest.approx(new - old, abs=1e-6)


def backtest_and_die(params):
    "Two weeks of a backtest; the process kills itself within the second, before it is noted."
    save, done = backtest.save_week, []

    def save_once(test, rows):
        if done:
            os.kill(os.getpid(), signal.SIGKILL)
        done.append(save(test, rows))

    backtest.save_week = save_once
    replay(params, ASKED)


def test_a_killed_backtest_goes_on_and_gives_the_same_figures(shop, fresh, tmp_path):
    outcome = run_forked(backtest_and_die, str(fresh), log=tmp_path / "printed.txt")
    assert outcome.code == -signal.SIGKILL, outcome.printed[-2000:]
    table = fresh.parent / "reports" / "backtest" / "weeks.csv"
    assert pd.read_csv(table).start.nunique() == 1
    replay(fresh, ASKED)
    again = pd.read_csv(table, parse_dates=["start"])
    pd.testing.assert_frame_equal(
        again.drop(columns="seconds"), shop[1].drop(columns="seconds"), rtol=1e-5, check_dtype=False
    )


def test_a_finished_backtest_refits_nothing(shop, monkeypatch):
    monkeypatch.setattr(backtest, "refit", lambda *args: pytest.fail("refitted again"))
    assert len(replay(shop[0], ASKED).rows) == len(shop[1])


def test_other_settings_are_another_backtest(shop):
    names = {backtest_of(shop[0], s).name for s in (ASKED, BacktestSettings(weeks=3, every="10d", k=10))}
    assert len(names) == 2


def test_only_the_first_and_the_last_model_are_kept(shop):
    folder = backtest_of(shop[0], ASKED).model(0).parent
    assert sorted(f.name for f in folder.iterdir()) == ["week-00", "week-02"]


def test_the_command_prints_each_week_and_the_advice(shop):
    words = ["backtest", "--weeks", "3", "--every", "10d", "--json"]
    done = CliRunner().invoke(app, words, env={"GNN_ECOMMERCE_ROOT": str(shop[0].parent)})
    result = json.loads(done.stdout)
    assert len(result["weeks"]) == len(shop[1])
    assert result["advice"].startswith("Over 3 periods of 10d, retraining each time was worth")


def test_too_few_events_are_refused(shop):
    words = ["backtest", "--weeks", "30"]
    done = CliRunner().invoke(app, words, env={"GNN_ECOMMERCE_ROOT": str(shop[0].parent)})
    assert done.exit_code == 1
    assert "expected events of 31 times 7d" in done.stderr
