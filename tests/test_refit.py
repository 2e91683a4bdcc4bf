"""The model that is served: the same choice on all events, kept whole, and what everything that serves reads."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from forked import run_forked

from gnn_ecommerce.core import (
    ArtifactError,
    ProjectPaths,
    dump_yaml,
    example_project,
    file_hash,
    read_params,
    read_table,
    run_stage,
)
from gnn_ecommerce.data.event_profile import Profile
from gnn_ecommerce.explore.state import ProjectEvents
from gnn_ecommerce.graph.interactions import InteractionGraph
from gnn_ecommerce.inference import InferenceSettings, read_test, read_val
from gnn_ecommerce.models.checkpoint import load_checkpoint, load_model
from gnn_ecommerce.ranking.evaluation import evaluate
from gnn_ecommerce.run import refit
from gnn_ecommerce.run.pipeline import customer_story

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    "A tiny shop whose stages before `inference` have run."
    return ProjectPaths(example_project("inference", root=tmp_path_factory.mktemp("refit") / "shop").parent)


@pytest.fixture
def copy(shop, tmp_path):
    "The same shop, to be changed."
    import shutil

    return ProjectPaths(shutil.copytree(shop.root, tmp_path / "shop"))


def change(paths, **section):
    values = read_params(paths.root / "params.yaml")
    values["refit"] |= section
    (paths.root / "params.yaml").write_text(dump_yaml(values))
    return paths.root / "params.yaml"


def evaluated(paths):
    graph = InteractionGraph.load(paths.graph)
    return graph, *load_model(paths.checkpoints, graph)


def test_the_same_choice_on_the_same_graph_is_the_same_model(shop):
    graph, tensors, metadata = evaluated(shop)
    again, scoring = refit.fit_chosen(graph, metadata)
    assert scoring == metadata["scoring"]
    assert tensors.keys() == again.keys()
    assert [name for name in tensors if not torch.equal(tensors[name], again[name])] == []


def test_the_final_model_knows_every_event(shop):
    events = pd.read_parquet(shop.interim / "events.parquet")
    graph = InteractionGraph.load(shop.served.graph)
    pairs = events.groupby(["user_id", "product_id"]).size()
    assert graph.edges[["n_view", "n_cart", "n_remove_from_cart", "n_purchase"]].to_numpy().sum() <= len(events)
    assert graph.n_users > InteractionGraph.load(shop.graph).n_users
    assert graph.n_edges > 0.9 * len(pairs)
    metadata = load_checkpoint(shop.served.checkpoint, graph).metadata
    assert pd.Timestamp(metadata["until"]) == events.event_time.max()
    assert (
        metadata["evaluated_version"] == json.loads((shop.checkpoints / "metadata.json").read_text())["model_version"]
    )


def test_the_check_knows_nothing_of_the_test_period(shop):
    split = json.loads((shop.processed / "split.json").read_text())
    _, last = refit.graph_until(shop.root / "params.yaml", "val")
    assert last < pd.Timestamp(split["test_start"])


def test_measured_lists_are_those_of_the_evaluation(shop):
    "On customers whom the graph knows, with the products that it knows."
    graph, *_ = evaluated(shop)
    model = load_checkpoint(shop.checkpoints, graph)
    test = read_test(shop.processed / "test.parquet", graph, read_val(shop.processed / "val.parquet", graph)[0])
    expected = evaluate(model, test.targets, ks=(20,), exclude="bought", also_exclude=test.also_exclude)
    targets = refit.read_targets(shop)
    known = graph.user_ids.encode(targets.user_id.to_numpy(), unknown="mask") >= 0
    known &= graph.item_ids.encode(targets.product_id.to_numpy(), unknown="mask") >= 0
    measured, n_known = refit.measure_served("m", model, shop, InferenceSettings(k=20), targets[known])
    assert n_known == measured.n_users == expected.n_users
    np.testing.assert_allclose(measured.per_user["ndcg@20"], expected.per_user["ndcg@20"])
    np.testing.assert_allclose(measured.per_user["recall@20"], expected.per_user["recall@20"])


def test_a_customer_whom_nobody_knows_counts_too(shop):
    graph, *_ = evaluated(shop)
    model = load_checkpoint(shop.checkpoints, graph)
    targets = pd.DataFrame(dict(user_id=[1, 1], product_id=graph.item_ids.ids[:2]))
    measured, known = refit.measure_served("m", model, shop, InferenceSettings(k=20), targets)
    assert (measured.n_users, known) == (1, 0)


def test_lists_explanations_and_bundle_are_of_the_final_model(copy):
    params = copy.root / "params.yaml"
    version = json.loads((copy.final / "latest.json").read_text())["model"]
    for stage in ("inference", "explainability", "bundle"):
        run_stage(stage, params)
    lists = read_table(copy.recommendations / "recommendations.parquet", "recommendations", "inference")
    assert set(lists.model_version) == {version}
    assert set(lists.user_id) == set(pd.read_parquet(copy.interim / "events.parquet").user_id)
    reasons = pd.read_parquet(copy.recommendations / "explanations.parquet")
    assert set(reasons.model_version) == {version}
    manifest = json.loads(next(copy.bundles.glob("*/manifest.json")).read_text())
    assert manifest["model_version"] == version


@pytest.mark.parametrize("until", ["all", "val"])
def test_what_is_shown_of_a_customer_is_what_the_model_has_learned_from(copy, until):
    "The explorer's history, the results of the demo, and the profile that drift is measured against."
    run_stage("refit", change(copy, until=until, check=False))
    run_stage("inference", copy.root / "params.yaml")
    events = pd.read_parquet(copy.interim / "events.parquet")
    known = events[events.split.isin(refit.PARTS[until])]
    later = set(read_table(copy.processed / "test.parquet", "targets", "data_prep").user_id)
    customer = known.user_id[known.user_id.isin(later)].value_counts().index[0]
    mine = known[known.user_id == customer]
    graph = InteractionGraph.load(copy.served.graph)
    assert ProjectEvents(copy, graph).of(customer).event_time.max() == mine.event_time.max()
    story = customer_story(copy.root, customer)
    assert story["n_events"] == len(mine)
    assert bool(story["bought_later"]) == (until == "val")
    assert pd.Timestamp(Profile.from_project(copy).until) == known.event_time.max()


def test_a_final_model_is_neither_chosen_nor_measured_on_what_it_has_learned(copy, monkeypatch):
    from gnn_ecommerce import bundle

    asked, real = [], bundle.content_weight

    def spy(paths, scorer, *args):
        asked.append(scorer.n_users)
        return real(paths, scorer, *args)

    monkeypatch.setattr(bundle, "content_weight", spy)
    values = read_params(copy.root / "params.yaml")
    values["bundle"] |= dict(precision="fp16")
    (copy.root / "params.yaml").write_text(dump_yaml(values))
    made = run_stage("bundle", copy.root / "params.yaml")
    assert made.n_users == InteractionGraph.load(copy.served.graph).n_users
    assert asked == [InteractionGraph.load(copy.graph).n_users]
    assert "recall_loss" not in made.manifest["precision_loss"]
    assert made.manifest["precision_loss"]["same@20"] > 0.9


def test_a_checkpoint_of_an_older_version_names_what_to_do(copy):
    metadata = json.loads((copy.checkpoints / "metadata.json").read_text())
    del metadata["epochs"]
    with pytest.raises(ArtifactError, match="metadata.json: expected epochs, found none: run `dvc repro training`"):
        refit.chosen_settings(metadata)


def test_up_to_the_test_period_is_fitted_once(copy, monkeypatch):
    fitted, real = [], refit.fit_chosen
    monkeypatch.setattr(refit, "fit_chosen", lambda *args: fitted.append(args) or real(*args))
    run_stage("refit", change(copy, until="val", check=True))
    assert len(fitted) == 1


def test_without_a_refit_the_evaluated_model_is_served(copy):
    result = run_stage("refit", change(copy, until="none", check=False))
    assert result.metadata is None
    assert copy.served[:2] == (copy.graph, copy.checkpoints)
    assert copy.served.parts == ("train",)
    assert [f.name for f in copy.final.iterdir()] == ["latest.json"]


def test_a_final_model_of_an_older_training_is_refused(copy):
    file = copy.checkpoints / "metadata.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | dict(model_version="lightgcn-newer")))
    with pytest.raises(ArtifactError, match=r"expected a model refitted from lightgcn-newer, found .*dvc repro refit"):
        _ = copy.served


def test_a_second_refit_gives_the_same_bytes_and_leaves_one_model(copy):
    before = {f.name: file_hash(f) for f in copy.served.checkpoint.glob("*.*")}
    run_stage("refit", change(copy, check=False))
    assert {f.name: file_hash(f) for f in copy.served.checkpoint.glob("*.*")} == before
    assert len([f for f in copy.final.iterdir() if f.is_dir()]) == 1


@pytest.fixture
def yesterday(copy):
    "The same shop with a final model that does not know the test period: the next refit can start warm."
    run_stage("refit", change(copy, until="val", check=False))
    change(copy, until="all", start="warm")
    return copy


def test_a_warm_start_says_where_it_came_from(yesterday):
    before = yesterday.served.checkpoint.name
    start = run_stage("refit", yesterday.root / "params.yaml").metadata["start"]
    assert start.pop("seconds") >= 0
    assert start == dict(mode="warm", model=before, nights=1, epochs=0)
    metrics = json.loads((yesterday.report("refit") / "metrics.json").read_text())
    assert metrics["start_mode"] == "warm"


def test_a_warm_model_serves_new_customers_and_keeps_what_was_learned(yesterday):
    begin, _ = refit.open_refitted(yesterday.served.checkpoint)
    before = load_checkpoint(yesterday.served.checkpoint, begin.graph)
    run_stage("refit", yesterday.root / "params.yaml")
    graph = InteractionGraph.load(yesterday.served.graph)
    assert graph.n_users > begin.graph.n_users
    model = load_checkpoint(yesterday.served.checkpoint, graph)
    assert np.isfinite(model.score(np.arange(graph.n_users))).all()
    items = np.flatnonzero(begin.graph.item_ids.encode(graph.item_ids.ids, unknown="mask") >= 0)
    then = begin.graph.item_ids.encode(graph.item_ids.ids[items])
    old = before.score(np.arange(begin.graph.n_users))[:, then]
    new = model.score(graph.user_ids.encode(begin.graph.user_ids.ids))[:, items]
    assert np.median([np.corrcoef(a, b)[0, 1] for a, b in zip(old, new)]) > 0.8


@pytest.mark.parametrize(("key", "value", "said"), [("start", "cold", ""), ("nights", 1, "1 in a row began warm")])
def test_settings_ask_for_a_cold_start(yesterday, key, value, said, capsys):
    metadata = yesterday.served.checkpoint / "metadata.json"
    facts = json.loads(metadata.read_text())
    metadata.write_text(json.dumps(facts | dict(start=facts["start"] | dict(nights=1))))
    final = run_stage("refit", change(yesterday, **{key: value})).metadata
    assert final["start"]["mode"] == "cold"
    assert said in capsys.readouterr().out


def test_a_damaged_final_model_is_no_start(yesterday, capsys):
    (yesterday.served.checkpoint / "model.safetensors").write_bytes(b"half")
    assert run_stage("refit", yesterday.root / "params.yaml").metadata["start"]["mode"] == "cold"
    assert "a cold start" in capsys.readouterr().out


def refit_and_die(params, moment):
    "Refit; the process kills itself at a moment with the signal that nothing can catch."
    save_model, write_json = refit.save_model, refit.write_json

    def die(*args, **options):
        os.kill(os.getpid(), signal.SIGKILL)

    def then_die(function):
        def call(*args, **options):
            function(*args, **options)
            die()

        return call

    if moment == "before_model":
        refit.save_model = die
    if moment == "after_model":
        refit.save_model = then_die(save_model)
    if moment == "before_pointer":
        refit.write_json = die
    if moment == "after_pointer":
        refit.write_json = then_die(write_json)
    run_stage("refit", params)


@pytest.mark.parametrize("moment", ["before_model", "before_pointer"])
def test_kill_9_of_a_warm_refit_leaves_a_whole_model(yesterday, tmp_path, moment):
    old = {f.name: file_hash(f) for f in yesterday.served.checkpoint.glob("*.*")}
    params = yesterday.root / "params.yaml"
    outcome = run_forked(refit_and_die, str(params), moment, log=tmp_path / "printed.txt")
    assert outcome.code == -signal.SIGKILL, outcome.printed[-2000:]
    assert {f.name: file_hash(f) for f in yesterday.served.checkpoint.glob("*.*")} == old
    assert run_stage("refit", params).metadata["start"]["mode"] == "warm"


@pytest.mark.parametrize("moment", ["before_model", "after_model", "before_pointer", "after_pointer"])
def test_kill_9_leaves_a_whole_model(copy, tmp_path, moment):
    old = copy.served.checkpoint.name
    params = change(copy, until="val", check=False)
    outcome = run_forked(refit_and_die, str(params), moment, log=tmp_path / "printed.txt")
    assert outcome.code == -signal.SIGKILL, outcome.printed[-2000:]
    graph, checkpoint, *_ = copy.served
    assert (checkpoint.name == old) == (moment != "after_pointer")
    load_checkpoint(checkpoint, InteractionGraph.load(graph))
    run_stage("refit", params)
    new = copy.served.checkpoint
    assert new.name != old
    assert [Path(f).name for f in copy.final.iterdir() if f.is_dir()] == [new.name]
