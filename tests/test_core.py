"""What notebook 00_core cannot show in a few lines: damaged files, control groups, folders, mixed ids."""

import hashlib
import json

import numpy as np
import pandas as pd
import pytest
from gnn_ecommerce.core import (
    ArtifactError,
    IdMap,
    SettingsError,
    _group_memory,
    atomic_path,
    available_memory,
    file_hash,
    load_settings,
    progress,
    read_json,
    read_params,
    read_table,
    write_table,
    StageSettings,
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training:\n  dim: 1\n  dim: 2", "found duplicate key"),
        ("training: [1", "expected YAML"),
        ("- 1", "expected sections, found list"),
        ("trainin: {}", "did you mean 'training'?"),
    ],
)
def test_a_params_file_that_cannot_be_meant_is_refused(tmp_path, text, message):
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(SettingsError, match="params.yaml") as error:
        read_params(tmp_path / "params.yaml")
    assert message in str(error.value)


def test_a_params_file_that_is_missing_is_named(tmp_path):
    with pytest.raises(SettingsError, match="expected a readable file"):
        read_params(tmp_path / "no.yaml")


def test_a_section_that_is_no_mapping_is_refused(tmp_path):
    (tmp_path / "params.yaml").write_text("training: 3")
    with pytest.raises(SettingsError, match="training: expected a mapping of keys to values, found 3"):
        load_settings(StageSettings, "training", tmp_path / "params.yaml")


def test_a_folder_is_replaced_whole(tmp_path):
    for name in "xy":
        with atomic_path(tmp_path / "folder") as tmp:
            tmp.mkdir()
            (tmp / name).write_text(name)
    assert [f.relative_to(tmp_path).as_posix() for f in sorted(tmp_path.rglob("*"))] == ["folder", "folder/y"]


@pytest.fixture
def table(tmp_path):
    write_table(pd.DataFrame(dict(user=[0, 1])), tmp_path / "edges.parquet", "edges")
    return tmp_path / "edges.parquet"


def half(path):
    path.write_bytes(path.read_bytes()[:-20])


def foreign(path):
    pd.DataFrame(dict(a=[1])).to_parquet(path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (half, "damaged or half-written"),
        (foreign, "of another program"),
        (lambda path: path.unlink(), "found no file: run `dvc repro graph_build`"),
    ],
)
def test_a_table_that_cannot_be_read_says_why(table, spoil, message):
    spoil(table)
    with pytest.raises(ArtifactError) as error:
        read_table(table, "edges", "graph_build")
    assert message in str(error.value)


def test_damaged_json_names_the_stage_to_run_again(tmp_path):
    (tmp_path / "m.json").write_text('{"a":')
    with pytest.raises(ArtifactError, match="dvc repro --force training"):
        read_json(tmp_path / "m.json", "training")


def test_file_hash_is_sha256(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert file_hash(tmp_path / "x") == hashlib.sha256(b"abc").hexdigest()


def test_the_largest_integers_come_back():
    big = np.array([-(2**63), 0, 2**63 - 1])
    assert IdMap(big).decode(IdMap(big).encode(big)).tolist() == big.tolist()


def test_an_empty_map_knows_nobody():
    assert IdMap([]).encode([1], unknown="mask").tolist() == [-1]


@pytest.mark.parametrize("mode", ["bar", "log", "none"])
def test_progress_hands_on_what_it_iterates_over(mode, capsys):
    assert list(progress(iter("ab"), "no length", mode=mode)) == ["a", "b"]


def test_an_interrupted_run_counts_on(capsys):
    with progress(desc="rows", total=100, mode="log", done=60) as bar:
        bar.step(40)
    assert capsys.readouterr().out.startswith("rows: 100/100 in ")


def machine(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_without_control_groups_there_is_no_limit(tmp_path):
    assert list(_group_memory(tmp_path)) == []


def test_version_2_takes_the_limit_of_the_group_above(tmp_path):
    machine(
        tmp_path,
        {
            "proc/self/cgroup": "0::/shop/run\n",
            "sys/fs/cgroup/shop/run/memory.max": "max\n",
            "sys/fs/cgroup/shop/run/memory.current": "10\n",
            "sys/fs/cgroup/shop/run/memory.stat": "inactive_file 1\n",
            "sys/fs/cgroup/shop/memory.max": "1000\n",
            "sys/fs/cgroup/shop/memory.current": "600\n",
            "sys/fs/cgroup/shop/memory.stat": "anon 500\ninactive_file 100\n",
        },
    )
    assert (list(_group_memory(tmp_path)), available_memory(tmp_path)) == ([500], 500)


def test_version_1_and_a_group_above_its_limit(tmp_path):
    machine(
        tmp_path,
        {
            "proc/self/cgroup": "9:cpu,cpuacct:/\n4:memory:/box\n",
            "sys/fs/cgroup/memory/box/memory.limit_in_bytes": "800\n",
            "sys/fs/cgroup/memory/box/memory.usage_in_bytes": "900\n",
            "sys/fs/cgroup/memory/box/memory.stat": "total_inactive_file 50\n",
        },
    )
    assert (list(_group_memory(tmp_path)), available_memory(tmp_path)) == ([-50], 0)


def test_the_mark_of_a_table_is_part_of_the_file_format(table):
    import pyarrow.parquet as pq

    mark = pq.read_schema(table).metadata[b"gnn_ecommerce"]
    assert json.loads(mark) == {"kind": "edges", "layout": 1}
