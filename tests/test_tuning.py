"""The search for settings: killed and resumed, shared, ended in time, and its answer taken by the pipeline."""

import os
import signal
import subprocess
import sys
import time
from datetime import datetime

import optuna
import pandas as pd
import pytest
from conftest import ROOT
from gnn_ecommerce.core import (
    SettingsError,
    dump_yaml,
    example_project,
    load_settings,
    load_yaml,
    read_params,
    run_stage,
)
from gnn_ecommerce.run.pipeline import apply_overlay, main
from gnn_ecommerce.run.tuning import SPACE, TuningSettings, make_tuner, open_storage, run_tuning

SMALL = {
    "training.lr": {"low": 0.005, "high": 0.1, "log": True},
    "training.layers": [1, 2, 3],
    "graph_build.scheme": ["sum", "unweighted", "purchase_only"],
}
RUN = "import sys; from gnn_ecommerce.run.tuning import run_tuning; run_tuning(sys.argv[1], sys.argv[2])"


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    "A tiny shop with the stages before tuning run, and a small space."
    params = example_project(
        "tuning", {"training": {"epochs": 2, "dim": 8, "filter": "none"}}, tmp_path_factory.mktemp("tuning") / "shop"
    )
    return space(params, SMALL)


def space(params, wanted, **more):
    "Put a space, and other settings of section tuning, into a params file."
    values = load_yaml(params.read_text())
    values["tuning"] |= dict(space=wanted, startup=3, **more)
    params.write_text(dump_yaml(values))
    return params


def project(shop, folder, **more):
    "A copy of the tiny shop."
    subprocess.run(["cp", "-r", shop.parent, folder], check=True)
    return space(folder / "params.yaml", SMALL, **more)


def start(params, budget):
    env = dict(os.environ, GNN_ECOMMERCE_PROGRESS="none", OMP_NUM_THREADS="1")
    return subprocess.Popen(
        [sys.executable, "-c", RUN, str(params), budget],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def study(params):
    storage = open_storage("model-checkpoints/tuning/journal.log", params.parent)
    return optuna.load_study(study_name=optuna.get_all_study_names(storage)[0], storage=storage)


def trials(params):
    try:
        return study(params).get_trials(deepcopy=False)
    except (IndexError, OSError):
        return []


def wait_for(condition, child, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert child.poll() is None, child.stdout.read()[-3000:]
        assert time.monotonic() < end, "expected the search to come this far"
        time.sleep(0.05)


@pytest.mark.slow
def test_kill_9_and_two_processes_on_one_study(shop, tmp_path):
    params = project(shop, tmp_path / "shop", trials=9)
    child = start(params, "10m")
    wait_for(lambda: sum(t.state.is_finished() for t in trials(params)) >= 2, child)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    before = {t.number: t.value for t in trials(params) if t.state.is_finished() and t.value is not None}
    assert len(before) >= 1 and len(trials(params)) < 9
    answer = params.parent / "reports" / "tuning" / "best.yaml"
    assert answer.is_file(), "a search that was killed has left an answer"
    with (params.parent / "model-checkpoints/tuning/journal.log").open("ab") as f:
        f.write(b'{"op_code": 6, "trial_i')  # as if killed while writing

    two = [start(params, "10m") for _ in range(2)]
    outputs = [c.communicate(timeout=200)[0] for c in two]
    assert [c.returncode for c in two] == [0, 0], outputs
    after = trials(params)
    assert all({t.number: t.value for t in after}[n] == value for n, value in before.items()), (
        "no trial is lost or changed"
    )
    done = [t for t in after if t.state.is_finished() and "seconds" in t.user_attrs]
    assert 9 <= len(done) <= 10, "two processes may both be at work on the last one"
    assert len({t.user_attrs["who"]["pid"] for t in done}) == 3, "the first process and both others had a part in it"
    running = [t for t in after if t.state == optuna.trial.TrialState.RUNNING]
    assert not [t for t in running if t.params], "what the killed process was at has been closed"
    values = [t.params for t in done]
    assert len({str(v) for v in values}) >= 8, "processes that share a study do not draw the same settings"
    again = [t for t in after if "again" in t.user_attrs]
    for t in again:  # what the killed one had drawn, not everything if it was killed while drawing
        had = after[t.user_attrs["again"]].params
        assert not t.params or had == {name: t.params.get(name) for name in had}, (had, t.params)


def test_budget_is_kept_and_the_answer_is_no_worse_and_accepted(shop, tmp_path, capsys):
    params = project(shop, tmp_path / "shop")
    begin = datetime.now()
    result = run_tuning(params, "5s")
    times = [[(at - begin).total_seconds() for at in (t.datetime_start, t.datetime_complete)] for t in trials(params)]
    assert max(start for start, _ in times) < 5, f"expected no trial to begin when the 5 s were over, found {times}"
    assert max(end for _, end in times) < 5 + times[0][1] - times[0][0] + 1, (
        f"expected the search to end within a trial's time after its 5 s, found {times}"
    )
    assert result.table.number.is_unique and result.table.why.eq("defaults").sum() == 1
    assert result.best >= result.defaults
    folder = params.parent / "reports" / "tuning"
    assert {f.name for f in folder.iterdir()} == {
        "best.yaml",
        "trials.csv",
        "metrics.json",
        "search.png",
        "importance.png",
        "slices.png",
        "parallel.png",
    }
    assert len(pd.read_csv(folder / "trials.csv")) == len(result.table)

    apply_overlay(folder / "best.yaml", params)
    assert {k: read_params(params)[s][k] for s in result.overlay for k in result.overlay[s]} == {
        k: v for s in result.overlay.values() for k, v in s.items()
    }
    run_stage("graph_build", params)
    fitted = run_stage("training", params)
    scheme = result.overlay.get("graph_build", {}).get("scheme")
    if scheme != "purchase_only":  # there, customers without a purchase are not in the graph that the stage measures on
        # a run that the budget has cut may find a better epoch, and the stage adds parts that a trial does without
        assert fitted.best_value > result.best - 1e-9


def test_a_second_search_goes_on_and_other_data_begins_anew(shop, tmp_path):
    params = project(shop, tmp_path / "shop", trials=2)
    first = run_tuning(params, "60s").table
    space(params, SMALL, trials=3)
    second = run_tuning(params, "60s").table
    assert len(first) == 2 and len(second) == 3 and second.value[:2].tolist() == first.value.tolist()
    values = load_yaml(params.read_text())
    values["training"]["dim"] = 4
    params.write_text(dump_yaml(values))
    assert (
        len(run_tuning(params, "1s").table) <= 3
        and len(optuna.get_all_study_names(open_storage("model-checkpoints/tuning/journal.log", params.parent))) == 2
    )


def test_a_database_can_hold_the_trials(shop, tmp_path):
    params = project(shop, tmp_path / "shop", trials=2, storage=f"sqlite:///{tmp_path}/trials.db")
    assert len(run_tuning(params, "60s").table) == 2
    tuner = make_tuner(params, load_settings(TuningSettings, "tuning", params), time.monotonic())
    assert len(tuner.finished()) == 2


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"training.dims": [1]}, "training.dims: expected no such key"),
        ({"training.lr": [0.0]}, "training.lr: expected a value > 0"),
        ({"training.lr": {"low": 0.1, "high": 0.01}}, "expected low <= high"),
        ({"training.seed": [1, 2]}, "leaves what is measured as it is"),
        ({"data_prep.split": ["temporal"]}, "expected a key of graph_build or training"),
        (
            {"graph_build.half_life_days": {"low": 1.0, "high": 2.0, "when": {"graph_build.scheme": "recency"}}},
            "stands before it",
        ),
        ({}, "expected at least one key"),
    ],
)
def test_a_bad_space_is_refused_before_anything_runs(shop, tmp_path, wrong, message):
    params = project(shop, tmp_path / "shop")
    space(params, wrong)
    with pytest.raises(SettingsError, match="tuning.space") as err:
        run_tuning(params, "60s")
    assert message in str(err.value)


def test_params_yaml_shows_the_default_space():
    assert read_params(ROOT / "params.yaml")["tuning"]["space"] == SPACE


def test_make_tune_says_what_is_wrong_with_a_budget(capsys):
    assert main(["tune", "--budget", "half an hour"]) == 1
    assert "expected a time such as 90s, 30m or 1h30m" in capsys.readouterr().err


def test_make_tune_brings_the_stages_before_it_up_to_date_and_runs_the_notebook(shop, monkeypatch):
    from gnn_ecommerce.run import pipeline

    ran, executed = [], []
    monkeypatch.setenv("GNN_ECOMMERCE_ROOT", str(shop.parent))
    monkeypatch.setattr(pipeline, "_repro", lambda root, targets, *others: ran.append(targets) or 0)
    monkeypatch.setattr(pipeline, "run_notebook", lambda *args: executed.append(args))
    assert main(["tune", "--budget", "90s"]) == 0
    assert ran == [("data_prep",)]
    ((source, _, parameters),) = executed
    assert source.name == "02_tuning.ipynb" and parameters == {"params": str(shop), "budget": "90s"}
