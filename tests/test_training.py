"""What `fit` chooses, keeps and refuses, on graphs of a few dozen nodes."""

import contextlib
import io
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from fastcore.test import test_close as close
from gnn_ecommerce.core import ArtifactError, TimeBudget
from gnn_ecommerce.graph.interactions import random_graph
from gnn_ecommerce.models.checkpoint import save_state
from gnn_ecommerce.training import (
    TEMPERATURES,
    Choice,
    Run,
    TrainingSettings,
    Validation,
    choose_hyperparameters,
    fingerprint,
    fit,
    plan_pilots,
    resolve,
)

GRAPH = random_graph(40, 30, 300, seed=1)
TARGETS = sp.csr_matrix(np.eye(40, 30, dtype=bool))
QUICK = dict(dim=8, epochs=3, lr=0.05, filter="none")


def choose(most=2e12, **settings):
    "What short runs choose."
    s = resolve(TrainingSettings(**QUICK | settings), GRAPH)
    return choose_hyperparameters(GRAPH, s, Validation(GRAPH, s, TARGETS), most=most)


@pytest.fixture(scope="module")
def whole():
    "Short runs that are whole ones."
    return choose()


def test_every_temperature_is_tried_and_other_layer_weights_once(whole):
    assert [row["temperature"] for row in whole.table[:5]] == list(TEMPERATURES)
    close([row["last_layer"] for row in whole.table], 5 * [1 / 3] + [0.6])


def test_the_best_short_run_is_the_result_if_it_is_a_whole_one(whole):
    assert whole.state.best_value == max(row["value"] for row in whole.table)
    assert whole.state.stopped == "all epochs done"


def test_a_run_with_what_was_chosen_ends_with_the_same_embeddings(whole):
    settings = TrainingSettings(**QUICK, temperature=whole.temperature, alpha=whole.alpha)
    alone = fit(GRAPH, settings, TARGETS)
    assert alone.tensors["embedding.weight"].equal(whole.state.best)


def test_after_shorter_runs_the_run_starts_at_the_beginning():
    part = choose(most=8e5, epochs=5)
    assert 1 <= max(row["epoch"] for row in part.table) <= 3
    assert (part.state.epoch, part.state.step, part.state.history) == (0, 0, [])


@pytest.fixture
def dear(monkeypatch):
    "Measuring a user takes ten milliseconds, says the clock."
    monkeypatch.setattr(Validation, "seconds_each", lambda self, model: 0.01)


def pilots(epochs, seconds):
    "How eight epochs of each candidate would be tried in so many seconds."
    s = resolve(TrainingSettings(**QUICK | dict(epochs=epochs)), GRAPH)
    validation, first = Validation(GRAPH, s, TARGETS), Run(GRAPH, s, Choice(0.2)).initial_state()
    return plan_pilots(GRAPH, s, validation, first, epochs, TimeBudget(seconds))


def test_whole_short_runs_are_tried_where_there_is_time(dear):
    plan = pilots(epochs=8, seconds=1000)
    assert (plan.settings.epochs, plan.halved) == (8, False)


def test_candidates_race_where_there_is_not(dear):
    plan = pilots(epochs=8, seconds=9)
    assert plan.halved and 4 <= plan.settings.epochs < 8


def test_nothing_is_tried_where_not_even_a_race_fits(dear):
    assert pilots(epochs=8, seconds=1) is None


def test_a_race_takes_the_best_of_those_that_went_to_the_end(dear):
    s = resolve(TrainingSettings(**QUICK | dict(epochs=8)), GRAPH)
    choice = choose_hyperparameters(GRAPH, s, Validation(GRAPH, s, TARGETS), budget=TimeBudget(9))
    table = pd.DataFrame(choice.table)
    assert len(table) == len(TEMPERATURES) + 1 and table.epoch.max() < 8
    assert choice.temperature == table.temperature[table.value.idxmax()]
    assert (choice.state.epoch, choice.state.step) == (0, 0), "the run itself begins at the beginning"


def test_a_budget_that_ends_keeps_the_best_so_far():
    result = fit(GRAPH, TrainingSettings(**QUICK | dict(epochs=50, budget="0.01s"), temperature=0.2), TARGETS)
    assert result.stopped == "the budget of 0.01s was used up"
    assert len(result.history) < 50 and result.best_epoch >= 1


def test_layer_weights_that_are_set_are_not_tried():
    assert len(choose(epochs=1, alpha=[0.0, 0.0, 1.0]).table) == 5


@pytest.mark.parametrize("settings", [dict(loss="bpr"), dict(temperature=0.3)])
def test_nothing_is_chosen_if_nothing_is_open(settings):
    assert choose(**settings) == Choice()


def test_the_filter_of_the_best_epoch_is_kept():
    both = fit(GRAPH, TrainingSettings(**QUICK | dict(filter="auto", b=[1.0, 5.0], temperature=0.2)), TARGETS)
    assert set(both.filter_table.kind) == {"paths", "chebyshev", "regression"}
    best = both.history.loc[both.history.value.idxmax()]
    assert both.scoring["b"] == best.b
    assert both.scoring["filter"]["kind"] == best.get("filter", both.scoring["filter"]["kind"])


def test_bought_products_alone_can_be_the_positives():
    result = fit(GRAPH, TrainingSettings(**QUICK, temperature=0.2, positives="bought"), TARGETS)
    assert np.isfinite(result.history.loss).all()


def test_a_loss_that_is_not_finite_ends_the_run_and_the_best_epoch_is_kept(monkeypatch):
    run_epoch = Run.run_epoch

    def diverges(run, state, on_step):
        return run_epoch(run, state, on_step) if state.epoch < 2 else math.nan

    monkeypatch.setattr(Run, "run_epoch", diverges)
    broken = fit(GRAPH, TrainingSettings(**QUICK | dict(epochs=5), temperature=0.2), TARGETS)
    assert len(broken.history) == 2
    assert broken.stopped == "the loss was no number in epoch 3"


def test_one_customer_gets_a_list():
    model = fit(random_graph(1, 4, 2, seed=0), TrainingSettings(**QUICK)).recommender
    assert model.recommend([0], k=2, exclude="bought")[0].shape == (1, 2)


SETTINGS = TrainingSettings(**QUICK, temperature=0.2)


@pytest.fixture
def interrupted(tmp_path):
    "A folder with the state of a run that has just begun."
    s = resolve(SETTINGS, GRAPH)
    state = replace(Run(GRAPH, s).initial_state(), fingerprint=fingerprint(GRAPH, SETTINGS, TARGETS))
    save_state(tmp_path / "last", state)
    return tmp_path


def test_the_fingerprint_does_not_depend_on_the_device():
    other = SETTINGS.model_copy(update=dict(device="cpu"))
    assert fingerprint(GRAPH, other, TARGETS) == fingerprint(GRAPH, SETTINGS, TARGETS)


def test_a_state_of_other_settings_is_refused(interrupted):
    with pytest.raises(ArtifactError, match="found another"):
        fit(GRAPH, SETTINGS.model_copy(update=dict(lr=0.04)), TARGETS, interrupted, resume="must")


def test_a_damaged_state_is_refused(interrupted):
    (interrupted / "last" / "state.safetensors").write_bytes(b"half")
    with pytest.raises(ArtifactError, match="damaged"):
        fit(GRAPH, SETTINGS, TARGETS, interrupted, resume="must")


def test_a_run_starts_anew_if_it_need_not_resume(interrupted):
    (interrupted / "last" / "state.safetensors").write_bytes(b"half")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        again = fit(GRAPH, SETTINGS, TARGETS, interrupted)
    assert "starting anew" in printed.getvalue()
    assert again.best_value == fit(GRAPH, SETTINGS, TARGETS).best_value
