"""Kill a training run with signal 9, again and again, and compare what it ends with to a run that was left in peace."""

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from forked import run_forked, start_forked

from gnn_ecommerce.core import ProjectPaths, file_hash, write_table
from gnn_ecommerce.graph.interactions import random_graph


def train_until(params, moment):
    "Train, in a process of its own, which kills itself at a moment with the signal that nothing can catch."
    import gnn_ecommerce.models.checkpoint as checkpoint
    import gnn_ecommerce.training as training

    what, name, nth = moment.split(":")
    replace, save_file, run_epoch = os.replace, checkpoint.save_file, training.Run.run_epoch
    seen = 0

    def die_if(hit):
        nonlocal seen
        seen += bool(hit)
        if hit and seen == int(nth):
            sys.stdout.flush()
            os.kill(os.getpid(), signal.SIGKILL)

    def wanted(path):
        return name in Path(path).name

    def killing_replace(a, b):
        if what == "before_rename":
            die_if(wanted(b))
        replace(a, b)
        if what == "after_rename":
            die_if(wanted(b))

    def killing_save(tensors, path, *args):
        save_file(tensors, path, *args)
        if what == "half_written" and wanted(path):
            os.truncate(path, os.path.getsize(path) // 2)
            die_if(True)

    def killing_epoch(self, state, on_step=None):
        def tell(loss):
            if what == "in_epoch":
                die_if(state.epoch + 1 == int(name))
            if on_step:
                on_step(loss)

        return run_epoch(self, state, tell)

    os.chdir(Path(params).parent)
    os.replace, checkpoint.save_file, training.Run.run_epoch = killing_replace, killing_save, killing_epoch
    training.run_training(params)


MOMENTS = [
    "in_epoch:1:2",  # nothing saved yet
    "half_written:best-1:1",  # in the middle of the first write
    "before_rename:best-1:1",  # written, not yet in place
    "after_rename:best-1:1",  # the best is there, the state that names it is not
    "half_written:state:1",
    "after_rename:state.safetensors:1",  # epoch 1 is safe
    "in_epoch:3:1",
    "before_rename:state.safetensors:1",
    "half_written:model:1",  # training is over, the model is being written
    "after_rename:model.safetensors:1",  # model without its metadata
    "before_rename:metadata.json:1",
]


def make_project(root, **training):
    "A project whose graph and validation pairs are there, as stages before training leave them."
    root.mkdir()
    params = dict(
        seed=3, training=dict(dim=8, epochs=5, batch=64, lr=0.05, patience=10, b=[0.0, 2.0], temperature=0.1) | training
    )
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    paths = ProjectPaths(root)
    graph = random_graph(300, 80, 2400, seed=1)
    graph.save(paths.graph)
    random = np.random.default_rng(0)
    pairs = pd.DataFrame(
        dict(
            user_id=graph.user_ids.decode(np.arange(200)), product_id=graph.item_ids.decode(random.integers(0, 80, 200))
        )
    )
    pairs = pairs.assign(first_time=pd.Timestamp("2020-01-01", tz="UTC"), n_events=1, known_user=True, known_item=True)
    write_table(pairs, paths.processed / "val.parquet", "targets")
    write_table(pairs[:0], paths.processed / "val_again.parquet", "targets")
    return root


def train(root, moment="never::0"):
    return run_forked(train_until, str(root / "params.yaml"), moment, log=root / "printed.txt")


@pytest.fixture(scope="module")
def peaceful(tmp_path_factory):
    root = make_project(tmp_path_factory.mktemp("peaceful") / "shop")
    run = train(root)
    assert run.code == 0, run.printed[-2000:]
    return root


@pytest.mark.slow
def test_kill_9_at_every_moment_ends_with_the_same_model(peaceful, tmp_path):
    root = make_project(tmp_path / "shop")
    resumed = 0
    for moment in MOMENTS:
        run = train(root, moment)
        assert run.code == -signal.SIGKILL, f"{moment}: ended with {run.code}: {run.printed[-500:]}"
        resumed += "going on after epoch" in run.printed
    run = train(root)
    assert run.code == 0, run.printed[-2000:]
    assert "going on after epoch 5" in run.printed
    assert resumed >= 4, "most runs after the first saved epoch should have gone on from it"

    ours, theirs = ProjectPaths(root), ProjectPaths(peaceful)
    assert file_hash(ours.checkpoints / "model.safetensors") == file_hash(theirs.checkpoints / "model.safetensors")
    for name in ("metrics.json", "history.csv"):
        assert (ours.report("training") / name).read_text() == (theirs.report("training") / name).read_text()
    of = [json.loads((p.checkpoints / "metadata.json").read_text()) for p in (ours, theirs)]
    assert of[0] == of[1]
    assert not list(ours.checkpoints.glob("*.tmp*")) or all(
        f.name.startswith(".") for f in ours.checkpoints.glob("*.tmp*")
    )


@pytest.mark.slow
def test_kill_9_from_outside_while_it_trains(peaceful, tmp_path):
    "Killed by another process as soon as a state is there: whatever it is doing then."
    root = make_project(tmp_path / "shop")
    state = ProjectPaths(root).checkpoints / "last" / "state.safetensors"
    child = start_forked(train_until, str(root / "params.yaml"), "never::0", log=root / "printed.txt")
    while not state.is_file() and child.is_alive():
        pass
    child.kill()
    child.join()
    run = train(root)
    assert run.code == 0, run.printed[-2000:]
    assert file_hash(ProjectPaths(root).checkpoints / "model.safetensors") == file_hash(
        ProjectPaths(peaceful).checkpoints / "model.safetensors"
    )


@pytest.mark.slow
def test_kill_9_while_temperatures_are_tried(tmp_path):
    "The short runs start again, and choose the same."
    roots = [make_project(tmp_path / name, temperature=None) for name in ("peaceful", "killed")]
    run = train(roots[1], "in_epoch:2:13")  # five steps an epoch: while the third temperature is tried
    assert run.code == -signal.SIGKILL, run.printed[-2000:]
    for root in roots:
        run = train(root)
        assert run.code == 0, run.printed[-2000:]
    theirs, ours = map(ProjectPaths, roots)
    assert file_hash(ours.checkpoints / "model.safetensors") == file_hash(theirs.checkpoints / "model.safetensors")
    assert (ours.report("training") / "temperature.csv").read_text() == (
        theirs.report("training") / "temperature.csv"
    ).read_text()
    assert (
        len(pd.read_csv(ours.report("training") / "temperature.csv")) == 6
    )  # five temperatures, and once other layer weights


@pytest.mark.slow
def test_a_finished_run_starts_over_and_gives_the_same_bytes(peaceful):
    before = file_hash(ProjectPaths(peaceful).checkpoints / "model.safetensors")
    run = train(peaceful)
    assert run.code == 0 and "going on" not in run.printed
    assert file_hash(ProjectPaths(peaceful).checkpoints / "model.safetensors") == before


def test_too_little_memory_is_said_before_anything_is_written(tmp_path, monkeypatch):
    from gnn_ecommerce import training
    from gnn_ecommerce.core import ProjectPaths, SettingsError, example_project

    params = example_project(before="training", root=tmp_path / "shop")
    monkeypatch.setattr(training, "memory_needed", lambda graph, settings: 1e15)
    with pytest.raises(
        SettingsError,
        match=r"training: expected about 1000000\.0 GB of free memory, found \d+\.\d GB: .*lower training\.dim",
    ):
        training.run_training(params)
    paths = ProjectPaths(params.parent)
    assert not paths.checkpoints.exists() and not (paths.report("training") / "dvclive").exists()
