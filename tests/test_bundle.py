"""What a bundle refuses, and that ids, pointers and precision come back as they went in."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.numpy import save_file

from gnn_ecommerce import bundle
from gnn_ecommerce.bundle import BundleSettings, MappedIds, build_bundle, bundle_path, map_tensors, open_bundle
from gnn_ecommerce.core import ArtifactError, IdMap, rng
from gnn_ecommerce.graph.interactions import random_graph


def build(folder, seed=0):
    "A bundle of a model without a graph filter that has learned nothing."
    graph = random_graph(30, 20, 100, seed=1)
    tensors = {
        "embedding.weight": torch.from_numpy(rng(seed, "small").standard_normal((50, 4), np.float32)),
        "alpha": torch.full((3,), 1 / 3),
    }
    scoring = dict(weighted=True, cosine=True, b=0.0, filter=None)
    return build_bundle(folder, graph, tensors, scoring, BundleSettings(lists=3))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return build(tmp_path_factory.mktemp("bundles"))


@pytest.mark.parametrize("ids", [[3, -7, 2**40, -(2**63), 2**63 - 1], ["ä", "a", "z", "aa", "漢", "\U0001f600"]])
def test_mapped_ids_find_what_an_id_map_finds(ids):
    known = IdMap(ids)
    mapped = MappedIds(MappedIds.arrays_of(known, "x"), "x")
    assert mapped.ids.tolist() == known.ids.tolist()
    strange = ["b", "", 4, True, 2**70, "\ud800", "aaa", "3"]
    for asked in (ids, np.array(ids), [*ids, *strange], strange, []):
        assert mapped.encode(asked, "mask").tolist() == [mapped.find(o) for o in list(asked)]
    for id in [*ids, *strange]:
        assert mapped.find(id) == int(known.encode([id], "mask")[0])


def test_no_ids_find_nothing():
    assert MappedIds({"x.ids": np.zeros(0, np.int64)}, "x").encode([1, 2], "mask").tolist() == [-1, -1]


def test_tensors_of_a_damaged_file_are_refused(tmp_path):
    save_file({"a": np.arange(6, dtype=np.float32), "b": np.array([True])}, tmp_path / "whole")
    whole = (tmp_path / "whole").read_bytes()
    for bad in (b"", whole[:20], whole[:-4], b"PK" + whole, b"\x00" * 64):
        (tmp_path / "bad").write_bytes(bad)
        with pytest.raises(ArtifactError, match="damaged or foreign"):
            map_tensors(tmp_path / "bad")
    with pytest.raises(ArtifactError, match="found no file"):
        map_tensors(tmp_path / "lost")


def edit(name, change):
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


def edit_manifest(**changes):
    return edit("manifest.json", lambda b: json.dumps(json.loads(b) | changes).encode())


@pytest.mark.parametrize(
    "change, reason",
    [
        (edit("model.safetensors", lambda b: b[:-1] + bytes([b[-1] ^ 1])), "it is damaged"),
        (edit("users.safetensors", lambda b: b[:-100]), "truncated or still being copied"),
        (lambda folder: (folder / "items.safetensors").unlink(), "found no file"),
        (lambda folder: (folder / "manifest.json").unlink(), "found no manifest.json"),
        (edit("manifest.json", lambda b: b[:50]), "a damaged manifest.json"),
        (edit("manifest.json", lambda b: b"[]"), "foreign"),
        (edit_manifest(kind="graph"), "foreign"),
        (edit_manifest(schema=99), "made by a newer gnn_ecommerce"),
        (edit_manifest(model_version="other"), "not the hash that it names"),
    ],
)
def test_a_broken_bundle_is_refused_with_its_reason(made, tmp_path, change, reason):
    copy = shutil.copytree(made.path, tmp_path / "copy")
    for file in copy.iterdir():
        file.chmod(0o644)
    assert open_bundle(copy).name == made.name
    change(copy)
    with pytest.raises(ArtifactError, match=reason):
        open_bundle(copy)


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(arrays, path):
        path.write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(bundle, "save_file", full)
    with pytest.raises(ArtifactError, match="expected room for a bundle"):
        build(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_leads_elsewhere_is_refused(tmp_path):
    (tmp_path / "link").symlink_to("/")
    for name in ("..", "../x", "/etc", "a/b", "", ".", "x\0", "no-such", "link", "a" * 65, "%2e%2e"):
        with pytest.raises(ArtifactError):
            bundle_path(tmp_path, name)


@pytest.mark.parametrize(
    "text", ["", "[]", '{"active": 3}', '{"active": "x", "share": 2}', '{"active": "x", "canary": 1}']
)
def test_a_file_that_is_no_pointer_is_refused(tmp_path, text):
    (tmp_path / "active.json").write_text(text)
    with pytest.raises(ArtifactError):
        bundle.read_pointer(tmp_path / "active.json")


def test_revisions_are_those_of_dvc_lock(tmp_path):
    assert bundle.data_revisions(tmp_path) is None
    lock = "stages:\n  graph_build:\n    outs:\n    - path: data/processed/graph\n      md5: 12ab.dir\n"
    (tmp_path / "dvc.lock").write_text(lock)
    assert bundle.data_revisions(tmp_path) == {"data/processed/graph": "12ab.dir"}
    (tmp_path / "dvc.lock").write_text("stages: [")
    assert bundle.data_revisions(tmp_path) is None
