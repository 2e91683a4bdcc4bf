"""A bundle as an archive in a real TorchServe, over HTTP. Skips where there is none."""

import os
import shutil
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT))
COMMAND = os.environ.get("GNN_ECOMMERCE_TORCHSERVE") or shutil.which("torchserve")


@pytest.mark.skipif(COMMAND is None, reason="torchserve is not installed: name it in GNN_ECOMMERCE_TORCHSERVE")
def test_torchserve_gives_the_lists_of_the_bundle(tmp_path):
    from benchmarks.serving import ask, random_bundle, torchserve

    bundle = random_bundle(tmp_path / "bundles", 200, 120, 1500, 20, "small")
    items, scores = bundle.lists
    with torchserve(COMMAND, bundle, tmp_path, workers=1) as (url, _):
        for u in range(0, 200, 20):
            answer = ask(f"{url}/predictions/lightgcn", {"customer": u, "k": 10})
            assert answer["source"] == "model" and answer["model_version"] == "small"
            assert [i["score"] for i in answer["items"]] == pytest.approx(scores[u, :10].tolist(), abs=1e-5)
            assert len({i["product_id"] for i in answer["items"]} & set(items[u, :10].tolist())) >= 9, (
                "sums in another order: near ties may change places"
            )
        newcomer = ask(f"{url}/predictions/lightgcn", {"customer": "who", "k": 3})
        assert newcomer["source"] == "popular" and len(newcomer["items"]) == 3
