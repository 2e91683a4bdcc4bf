"""Result files of the benchmarks: their schema, what chose each accuracy, and that texts say what the files say."""

import json
import math
import re
import sys

import nbformat
import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT))

RESULTS = ROOT / "benchmarks" / "results"
SUITES = sorted(f.stem for f in RESULTS.glob("*.json") if f.stem != "curves")
FIELDS = ["name", "dataset", "metric", "split", "value", "unit", "runs", "min", "max", "peer", "ratio", "chosen_on"]
COSTS = ("seconds", "cpu_seconds", "peak_gb", "users_per_second")


def load(suite):
    return json.loads((RESULTS / f"{suite}.json").read_text(encoding="utf8"))


def test_there_are_results():
    assert {"propagation", "topk", "accuracy"} <= set(SUITES)


@pytest.mark.parametrize("suite", SUITES)
def test_schema(suite):
    result = load(suite)
    assert (
        list(result) == ["suite", "commit", "machine", "versions", "rows"]
        and result["suite"] == suite
        and result["rows"]
    )
    assert re.fullmatch(r"[0-9a-f]{40}(\+changes)?", result["commit"])
    assert {"cpu", "cores", "memory_gb"} <= set(result["machine"]) <= {
        "cpu",
        "cores",
        "memory_gb",
        "load_before",
        "gpu",
        "threads",
    } and {"python", "torch", "numpy"} <= set(result["versions"])
    keys = [tuple(r[k] for k in ("name", "dataset", "metric", "split", "peer")) for r in result["rows"]]
    assert len(set(keys)) == len(keys), "expected each measurement once"
    for r in result["rows"]:
        assert list(r) == FIELDS
        assert (
            all(isinstance(r[k], str) for k in ("name", "dataset", "metric"))
            and isinstance(r["runs"], int)
            and r["runs"] >= 1
        )
        assert all(math.isfinite(r[k]) for k in ("value", "min", "max")) and r["min"] <= r["value"] <= r["max"]
        assert (r["peer"] is None) == (r["ratio"] is None) and (r["ratio"] is None or r["ratio"] > 0)


@pytest.mark.parametrize("suite", SUITES)
def test_ratios_follow_from_values_of_the_same_run(suite):
    rows = load(suite)["rows"]
    for r in rows:
        if r["peer"] is None:
            continue
        other = [
            p
            for p in rows
            if p["name"] == r["peer"]
            and p["metric"] == r["metric"]
            and p["dataset"] == r["dataset"]
            and p["peer"] is None
        ]
        assert len(other) == 1, f"{r['name']}: expected one row of its peer {r['peer']}, found {len(other)}"
        expected = (
            other[0]["value"] / r["value"]
            if r["metric"] in COSTS[:3] or r["metric"].endswith("_ms")
            else r["value"] / other[0]["value"]
        )
        assert r["ratio"] == pytest.approx(expected, rel=2e-3)


def test_accuracy_says_what_chose_and_nothing_is_chosen_on_test():
    for r in load("accuracy")["rows"]:
        if r["metric"] in COSTS:
            continue
        assert r["split"] in ("test", "validation") and 0 <= r["value"] <= 1
        assert r["chosen_on"] and "test" not in r["chosen_on"]


def test_the_writer_replaces_what_was_measured_again_and_keeps_the_rest(tmp_path):
    from benchmarks.common import row, write

    write("some", [row("a", "set", "seconds", [3.0, 1.0, 2.0]), row("b", "set", "seconds", 4.0)], tmp_path)
    write(
        "some",
        [
            row("b", "set", "seconds", [5.0, 7.0], peer="a", peer_values=[3.0, 1.0, 2.0]),
            row("b", "set", "seconds", [5.0, 7.0]),
        ],
        tmp_path,
    )
    rows = json.loads((tmp_path / "some.json").read_text())["rows"]
    assert [(r["name"], r["value"], r["min"], r["max"], r["peer"], r["ratio"]) for r in rows] == [
        ("a", 2, 1, 3, None, None),
        ("b", 6, 5, 7, "a", 0.3333),
        ("b", 6, 5, 7, None, None),
    ]
    assert not [f for f in tmp_path.iterdir() if f.name != "some.json"]


def test_figures_of_another_machine_stand_beside_the_usual_ones(tmp_path, monkeypatch):
    from benchmarks.common import read, row, write

    write("some", [row("a", "set", "seconds", 1.0)], tmp_path)
    monkeypatch.setenv("GNN_ECOMMERCE_MACHINE", "other")
    write("some", [row("a", "set", "seconds", 2.0)], tmp_path)
    assert read("some", tmp_path)["rows"][0]["value"] == 2 and read("some", tmp_path)["suite"] == "some-other"
    monkeypatch.delenv("GNN_ECOMMERCE_MACHINE")
    assert read("some", tmp_path)["rows"][0]["value"] == 1


def test_the_worst_row_is_the_largest_loss_in_parts_of_the_best_baseline():
    from benchmarks.baselines import AGAINST, worst

    def rows(dataset, model, gain):
        figures = {"ndcg@20": model, f"ndcg@20 {AGAINST}": gain}
        return [
            dict(name="model", dataset=dataset, metric=m, value=v, min=v - 0.01, max=v + 0.01)
            for m, v in figures.items()
        ]

    found = worst(rows("large", 0.38, -0.02) + rows("small", 0.04, -0.01) + rows("won", 0.2, 0.1))
    assert found == "worst: small, ndcg@20 minus the best baseline: -0.0100 (-0.0200 to +0.0000), -20.0%"


def test_the_downloader_keeps_only_what_has_the_expected_checksum(tmp_path, monkeypatch):
    import hashlib
    import io

    from benchmarks import download

    asked = []

    def opener(url):
        asked.append(url)
        return io.BytesIO(b"0 1 2\n")

    monkeypatch.setattr(
        download,
        "FILES",
        {"set/good.txt": ("u/good", hashlib.sha256(b"0 1 2\n").hexdigest()), "set/bad.txt": ("u/bad", "0" * 64)},
    )
    assert [download.fetch("set/good.txt", tmp_path, opener) for _ in range(2)] == [
        "fetched",
        "there already",
    ] and asked == ["u/good"]
    with pytest.raises(ValueError, match="expected sha256 0000"):
        download.fetch("set/bad.txt", tmp_path, opener)
    assert [f.name for f in (tmp_path / "set").iterdir()] == ["good.txt"]


def test_downloaded_files_are_those_of_the_data_folder(real_data):
    from benchmarks.download import FILES
    from gnn_ecommerce.core import file_hash

    assert FILES and {name: file_hash(real_data / name) for name in FILES} == {
        name: sha for name, (_, sha) in FILES.items()
    }


def test_the_guide_shows_what_the_files_hold():
    "Each figure of the guide's tables stands in the output of the cell that reads the files, and none is typed."
    path = ROOT / "nbs" / "guides" / "benchmarks.ipynb"
    nb = nbformat.read(path, 4)
    shown = "\n".join(
        str(o.get("data", {}).get("text/markdown", o.get("text", "")))
        for c in nb.cells
        if c.cell_type == "code"
        for o in c.outputs
    )
    for suite in {"propagation", "propagation-amx", "epoch", "epoch-amx", "gpu", "accuracy", "topk"} & set(SUITES):
        for r in load(suite)["rows"]:
            if r["metric"] in COSTS or r["split"] is None:
                text = f"{r['value']:.4g}"
            else:
                text = f"{r['value']:.4f}"
            assert any(r["name"] in line and text in line for line in shown.splitlines()), (
                f"guide: expected {r['name']} with {text}, execute {path.name} again"
            )


def test_accuracy_figures_in_the_readme_are_those_of_the_files():
    "Any figure such as .1937 or 0.1937 in README.md's text must be one of the result files."
    known = {f"{r['value']:.4f}"[1:] for s in SUITES for r in load(s)["rows"] if r["split"]}
    for figure in re.findall(r"(?<![\w.])0?(\.\d{4})(?!\d)", (ROOT / "README.md").read_text(encoding="utf8")):
        assert figure in known, f"README.md: expected {figure} in a result file"


def test_whole_shop_runs_every_stage_and_reads_what_each_took(tmp_path, monkeypatch):
    from benchmarks import shop
    from gnn_ecommerce.run import pipeline

    calls = []

    def clone(folder):
        folder.mkdir()
        (folder / "params.yaml").write_text("sample_data:\n  events: 1\n  items: 5\n")
        return folder

    def repro(root, targets, *others):
        calls.append(list(targets))
        (root / "reports" / "notebooks").mkdir(parents=True)
        for n, stage in enumerate(list(shop.STAGES)[: 2 if calls[-1] == ["data_prep"] else None], 1):
            nb = nbformat.v4.new_notebook(metadata={"papermill": {"duration": float(n), "peak_gb": n / 10}})
            nbformat.write(nb, root / "reports" / "notebooks" / f"0{n}_{stage}.ipynb")
        return 0

    monkeypatch.setattr(shop, "clone", clone)
    monkeypatch.setattr(pipeline, "_repro", repro)
    rows = shop.rows_of("some", shop.costs_of(4000, tmp_path / "shop"))
    assert calls == [["explainability", "bundle"]] and "events: 4000" in (tmp_path / "shop" / "params.yaml").read_text()
    assert {(r["name"], r["metric"]): r["value"] for r in rows if r["name"] in ("data_prep", "total")} == {
        ("data_prep", "seconds"): 2,
        ("data_prep", "peak_gb"): 0.2,
        ("total", "seconds"): 36,
        ("total", "peak_gb"): 0.8,
    }
    assert list(shop.costs_of(4000, tmp_path / "part", "data_prep").stage) == ["sample_data", "data_prep"] and calls[
        -1
    ] == ["data_prep"]
