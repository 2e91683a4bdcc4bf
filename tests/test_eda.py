"""The exploratory guide on a person's own events, as its first lines say: papermill, one parameter."""

import os
import re
import subprocess
import sys

import nbformat
import pandas as pd
import pytest
import yaml
from conftest import ROOT

from gnn_ecommerce.core import run_stage


@pytest.mark.slow
def test_guide_explores_own_events_through_papermill(tmp_path):
    (tmp_path / "params.yaml").write_text(
        yaml.safe_dump({"seed": 3, "sample_data": {"events": 3000, "users": 300, "items": 60, "months": 2}})
    )
    run_stage("sample_data", tmp_path / "params.yaml")
    folder = tmp_path / "data" / "raw" / "sample"
    shop = pd.concat(pd.read_csv(f) for f in folder.glob("events-*.csv")).drop_duplicates()
    files = tmp_path / "log"
    files.mkdir()
    shop.to_csv(files / "all.csv", index=False)
    command = [
        sys.executable,
        "-m",
        "papermill",
        "--no-progress-bar",
        str(ROOT / "nbs" / "guides" / "eda.ipynb"),
        str(tmp_path / "out.ipynb"),
        "-p",
        "events",
        str(files),
    ]
    env = {**{k: v for k, v in os.environ.items() if k != "MPLBACKEND"}, "JUPYTER_PREFER_ENV_PATH": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    outputs = [out for cell in nbformat.read(tmp_path / "out.ipynb", 4).cells for out in cell.get("outputs", ())]
    assert sum("image/png" in out.get("data", {}) for out in outputs) >= 14, "expected a plot for each question"
    table = next(
        out.data["text/plain"] for out in outputs if "buyers_share" in out.get("data", {}).get("text/plain", "")
    )
    shown = dict(re.findall(r"^(\w+) +(\S+)", table, re.M))
    bought = shop[shop.event_type == "purchase"]
    expected = dict(
        events=len(shop),
        customers=shop.user_id.nunique(),
        products=shop.product_id.nunique(),
        purchases=len(bought),
        buyers=bought.user_id.nunique(),
    )
    assert {k: int(shown[k]) for k in expected} == expected
