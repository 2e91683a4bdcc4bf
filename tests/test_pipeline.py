"""The whole pipeline in a temporary clone, on a tiny shop: DVC, experiments, remotes, failures, own files."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import yaml
from conftest import ROOT, git
from gnn_ecommerce.core import STAGES, TINY, merge_params, read_params

pytestmark = pytest.mark.slow

#: a shop and a run so small that what takes the time is DVC, papermill and kernels
SMALL = merge_params(
    TINY,
    {
        "training": {"filter": "paths", "temperature": 0.3},
        "inference": {"baselines": ["popular"], "bootstrap": 100},
        "explainability": {"number": 2, "k": 3, "check": 10},
    },
)


def run(folder, *args, ok=True, **env):
    "Run a command of this environment in a folder; returns the finished process, stdout and stderr in one text."
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    env = {**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1", **env}
    for name in ("GNN_ECOMMERCE_ROOT", "GNN_ECOMMERCE_PROGRESS"):
        env.pop(name, None)
    done = subprocess.run(
        args, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=400
    )
    if ok:
        assert done.returncode == 0, f"{' '.join(args)} ended with {done.returncode}\n{done.stdout[-5000:]}"
    return done


def demo(folder, *args, **options):
    "Run `make demo` in a folder."
    return run(folder, sys.executable, "-m", "gnn_ecommerce.run.pipeline", "demo", *args, **options)


def ran(text):
    "Stages that `dvc repro` says it ran, or the log of a demo, in order."
    return [a or b for a, b in re.findall(r"Running stage '(\w+)'|^(\w+): \d+\.\d s\. ", text, re.M)]


def change(folder, values):
    "Set keys of a project's params.yaml."
    file = folder / "params.yaml"
    file.write_text(yaml.safe_dump(merge_params(read_params(file), values), sort_keys=False), encoding="utf8")


def commit(folder, message="next"):
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--allow-empty", f"--message={message}")


def written(folder):
    "Path and modification time of everything that stages wrote."
    tops = ("data", "model-checkpoints", "model-recommendations", "reports")
    return {
        str(f.relative_to(folder)): f.stat().st_mtime_ns
        for top in tops
        for f in (folder / top).rglob("*")
        if f.is_file()
    }


def changed(folder):
    "Stages of the pipeline whose own files or parameters differ from their last run."
    return [stage for stage in json.loads(run(folder, "dvc", "status", "--json").stdout) if stage in STAGES]


def own_identity(folder):
    "DVC commits experiments under the name that Git knows."
    for key, value in {"user.name": "test", "user.email": "test@example.org"}.items():
        git(folder, "config", key, value)


def copy_compiled(source, target):
    "What numba has compiled serves another copy of the same files: a minute less, here and in the tests that follow."
    for file in (source / "gnn_ecommerce").rglob("__pycache__/*.nb[ic]"):
        copy = target / file.relative_to(source)
        copy.parent.mkdir(exist_ok=True)
        shutil.copy2(file, copy)


@pytest.fixture(scope="module")
def first_run(clone, tmp_path_factory):
    "A clone with a tiny shop, `make demo` run on 2,000 events of it and committed; and what the run printed."
    folder = clone(tmp_path_factory.mktemp("clone"))
    own_identity(folder)
    change(folder, SMALL)
    commit(folder, "a tiny shop")
    copy_compiled(ROOT, folder)
    printed = demo(folder, "--size", "2k").stdout
    copy_compiled(folder, ROOT)
    commit(folder, "results")
    return folder, printed


@pytest.fixture
def project(first_run):
    "The clone, as its last commit has it."
    folder, _ = first_run
    git(folder, "checkout", "--quiet", "--force", "main")
    git(folder, "reset", "--quiet", "--hard")
    run(folder, "dvc", "checkout", "--force", "--quiet")
    return folder


def test_repro_runs_every_stage_and_keeps_executed_notebooks(first_run):
    folder, printed = first_run
    assert ran(printed) == list(STAGES)
    for stage in yaml.safe_load((folder / "dvc.yaml").read_text(encoding="utf8"))["stages"].values():
        nb = nbformat.read(folder / re.search(r"reports/notebooks/\S+", stage["cmd"])[0], 4)
        injected = [c for c in nb.cells if "injected-parameters" in c.metadata.get("tags", ())]
        assert len(injected) == 1 and "params.yaml" in injected[0].source
        staged = [c for c in nb.cells if c.cell_type == "code" and c.source.startswith("#| stage")]
        assert all(c.execution_count for c in staged) and any(c.outputs for c in staged), stage["cmd"]
    for stage in STAGES:
        assert json.loads((folder / "reports" / stage / "metrics.json").read_text(encoding="utf8"))
    assert re.search(r"^training: \d+\.\d s\. epoch \d+ of \d+ is the best", printed, re.M), printed
    log = (folder / "reports/run.log").read_text(encoding="utf8")
    assert ran(log) == list(STAGES) and "choose" in log, "the details of a run are in its log"
    assert "Running stage" not in printed and "found early: " in printed
    assert "what is recommended" in printed
    events = sum(len(pd.read_csv(f)) for f in (folder / "data/raw/sample").glob("events-*.csv"))
    assert 1500 < events < 2500, events
    left = git(folder, "status", "--porcelain").splitlines()
    assert not left, f"a run leaves files that Git neither tracks nor ignores: {left}"


def test_second_repro_does_nothing(project):
    before = written(project)
    printed = run(project, "dvc", "repro").stdout
    assert ran(printed) == [] and "up to date" in printed
    assert written(project) == before


def test_a_failing_stage_ends_with_its_reason_and_leaves_what_was_there(project):
    before = pd.read_parquet(project / "data/interim/events.parquet")
    change(project, {"data_prep": {"columns": {"user_id": "nobody"}}})
    args = ("papermill", "nbs/01_data_prep.ipynb", "reports/notebooks/failed.ipynb", "-p", "params", "params.yaml")
    done = run(project, sys.executable, "-m", "gnn_ecommerce.run.pipeline", *args, ok=False)
    *_, place, reason = done.stdout.strip().splitlines()
    assert done.returncode == 1
    assert place == "Executed up to the cell that failed: reports/notebooks/failed.ipynb"
    assert re.match(r"\w+Error: .*nobody", reason), done.stdout[-2000:]
    assert "nobody" in (project / "reports/notebooks/failed.ipynb").read_text(encoding="utf8")
    done = run(project, "dvc", "repro", ok=False)
    assert done.returncode != 0 and reason in done.stdout
    pd.testing.assert_frame_equal(pd.read_parquet(project / "data/interim/events.parquet"), before)


def test_a_wrong_key_stops_the_demo_before_anything_runs(project):
    change(project, {"inference": {"kk": 5}})
    before = written(project)
    done = demo(project, ok=False)
    assert done.returncode == 1 and "inference.kk: expected no such key" in done.stdout.strip().splitlines()[-1]
    assert written(project) == before


def test_a_changed_setting_concerns_its_stage_alone(project):
    assert changed(project) == []
    change(project, {"training": {"dim": 8}})
    assert changed(project) == ["training"]
    change(project, {"graph_build": {"scheme": "log_count"}})
    assert changed(project) == ["graph_build", "training", "refit"]


def test_an_experiment_with_two_settings_is_compared_with_the_demo_which_comes_back(project):
    settings = ("-S", "inference.bootstrap=101", "-S", "explainability.k=2")
    printed = run(project, "dvc", "exp", "run", *settings, "--name", "draws").stdout
    assert ran(printed) == ["inference", "explainability"]
    assert "reports/explainability/metrics.json" in run(project, "dvc", "metrics", "diff", "--json").stdout
    shown = run(project, "dvc", "exp", "show", "--csv").stdout
    table = pd.read_csv(io.StringIO(shown[shown.index("Experiment") :]))
    assert table[table.Experiment == "draws"].iloc[0]["explainability.k"] == 2
    command = (sys.executable, "-m", "gnn_ecommerce.cli", "experiments")
    lines = run(project, *command).stdout.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["demo", "main", "draws"]
    differs = r"inference.bootstrap=101, explainability.k=2"
    assert re.match(rf"draws \(here\) +{differs} +0\.\d{{4}} +0\.\d{{4}} \[0\.\d+, 0\.\d+\]", lines[3])
    page = Path(run(project, "dvc", "plots", "diff", "demo", "draws").stdout.strip().removeprefix("file://"))
    assert not re.search(r"""(src|href)=["']?https?:""", page.read_text(encoding="utf8"))
    run(project, *command, "apply", "demo")
    assert read_params(project / "params.yaml")["inference"]["bootstrap"] == 100
    assert changed(project) == []
    assert "one of demo, main, draws" in run(project, *command, "apply", "nobody", ok=False).stdout


def test_a_fresh_clone_pulls_instead_of_training(project, tmp_path):
    run(project, "dvc", "remote", "add", "--default", "store", str(tmp_path / "store"))
    commit(project, "a remote")
    run(project, "dvc", "push")
    git(tmp_path, "clone", "--quiet", str(project), "fresh")
    fresh = tmp_path / "fresh"
    assert not (fresh / "model-checkpoints/lightgcn/model.safetensors").exists()
    run(fresh, "dvc", "pull")
    for name in (
        "model-checkpoints/lightgcn/model.safetensors",
        "model-recommendations/recommendations.parquet",
        "data/interim/events.parquet",
    ):
        assert (fresh / name).read_bytes() == (project / name).read_bytes()
    assert ran(run(fresh, "dvc", "repro").stdout) == []
    shown = run(fresh, sys.executable, "-m", "gnn_ecommerce.run.pipeline", "show").stdout
    assert "what is recommended" in shown


def test_demo_on_own_files_with_other_names(project, tmp_path):
    names = {"event_time": "when", "event_type": "what", "product_id": "article", "user_id": "customer"}
    words = {"view": "seen", "purchase": "bought"}
    files = sorted((project / "data/raw/sample").glob("events-*.csv"))
    own = pd.concat([pd.read_csv(f, dtype=str) for f in files]).rename(columns=names).replace({"what": words})
    (tmp_path / "mine").mkdir()
    own.to_csv(tmp_path / "mine" / "log-1.csv", index=False)
    shutil.copy(project / "data/raw/sample/products.csv", tmp_path / "mine")
    overlay = {"data_prep": {"columns": names, "event_types": {word: name for name, word in words.items()}}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(overlay), encoding="utf8")
    printed = demo(project, "--events", f"{tmp_path}/mine/log-*.csv", "--params", str(tmp_path / "mine.yaml")).stdout
    assert ran(printed) == ["data_prep"], "the same events under other names: nothing after them changes"
    assert "git checkout params.yaml" in printed and "what is recommended" in printed
    assert read_params(project / "params.yaml")["data_prep"]["pattern"] == "log-*.csv"
    again = demo(project).stdout
    assert ran(again) == [] and "up to date" in again
    both = demo(project, "--events", f"{tmp_path}/mine", "--size", "4000", ok=False)
    assert both.returncode == 1 and "expected one of EVENTS, your own files, FROM or SHOP" in both.stdout
    back = demo(project, "--size", "2k").stdout
    assert "data_prep.columns: {" in back and read_params(project / "params.yaml")["data_prep"]["columns"] == {}
    assert set(ran(back)) <= {"data_prep"} and "what is recommended" in back
    git(project, "checkout", "params.yaml", "dvc.lock")
    run(project, "dvc", "checkout", "--force")


def test_works_without_git(project, tmp_path):
    folder = tmp_path / "unpacked"
    shutil.copytree(project, folder, ignore=shutil.ignore_patterns(".git", "config.local"))
    printed = demo(folder, GIT_CEILING_DIRECTORIES=str(tmp_path)).stdout
    assert ran(printed) == [] and "what is recommended" in printed
