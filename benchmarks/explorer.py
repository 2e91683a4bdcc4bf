"""What somebody waits for in JupyterLab, in a headless Chromium on the same machine: from running the cell to the explorer's list, and to its pictures."""

import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import nbformat
from gnn_ecommerce.core import GnnEcommerceError, example_project, run_stage
from nbformat.v4 import new_code_cell, new_notebook

from benchmarks.common import ROOT, machine, row, write

CHROMIUM = "/usr/bin/chromium"
LIST, PATHS = "table[aria-label=recommendations] tbody tr", ".gx-plot[aria-label^='paths:'] .main-svg"


def write_notebook(folder, project):
    "A notebook with two cells: the import, and the explorer."
    cells = [
        new_code_cell("from gnn_ecommerce.explore.page import PathExplorer"),
        new_code_cell(
            f"import time\nstart = time.time()\nexplorer = PathExplorer.from_project({str(project)!r})\nprint(time.time() - start)\nexplorer"
        ),
    ]
    nbformat.write(
        new_notebook(
            cells=cells, metadata=dict(kernelspec=dict(name="python3", display_name="python3", language="python"))
        ),
        folder / "explorer.ipynb",
    )


@contextmanager
def jupyterlab(folder):
    "A JupyterLab of its own over a folder, on a port that the system chose, token `explorer`; its address. Ends with the block."
    env = {
        **os.environ,
        **{
            f"JUPYTER{k}": str(folder / k.lower().strip("_"))
            for k in ("_RUNTIME_DIR", "_CONFIG_DIR", "LAB_SETTINGS_DIR", "LAB_WORKSPACES_DIR")
        },
        "PYTHONPATH": str(ROOT),
    }
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        "--ServerApp.ip=127.0.0.1",
        "--ServerApp.port=0",
        "--IdentityProvider.token=explorer",
        f"--ServerApp.root_dir={folder}",
        "--allow-root",
        "--LabApp.news_url=None",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]
    with open(folder / "log", "w") as log:
        server = subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=log)
    try:
        for _ in range(600):
            facts = list((folder / "runtime_dir").glob("jpserver-*.json"))
            if facts or server.poll() is not None:
                break
            time.sleep(0.1)
        if not facts or server.poll() is not None:
            raise GnnEcommerceError(
                f"expected JupyterLab to start within a minute, found: {(folder / 'log').read_text(encoding='utf8')[-2000:]}"
            )
        yield json.loads(facts[0].read_text(encoding="utf8"))["url"]
    finally:
        server.terminate()
        server.wait(20)


def once(browser, url):
    "Seconds of the import, of the kernel's part, until the list is there, until the paths are drawn; in a new kernel."
    page = browser.new_context(viewport=dict(width=1200, height=900)).new_page()
    page.goto(f"{url}lab/tree/explorer.ipynb?token=explorer&reset")

    def idle():
        page.locator("#jp-main-statusbar").get_by_text("| Idle").wait_for(timeout=180_000)

    page.locator(".jp-Notebook .jp-CodeCell").first.wait_for(timeout=180_000)
    idle()
    page.locator(".jp-CodeCell").first.locator(".cm-content").click()
    found, start = {}, time.perf_counter()
    page.keyboard.press("Shift+Enter")
    page.wait_for_timeout(300)
    idle()
    found["import"] = time.perf_counter() - start
    page.wait_for_timeout(1000)
    start = time.perf_counter()
    page.keyboard.press("Shift+Enter")
    for name, what in (("customer, history and list", LIST), ("paths drawn", PATHS)):
        page.locator(what).first.wait_for(timeout=180_000)
        found[name] = time.perf_counter() - start
    found["kernel"] = float(page.locator(".jp-OutputArea-output pre").first.text_content())
    page.locator(".lm-MenuBar-item", has_text="Kernel").click()
    page.locator('.lm-Menu-item:has-text("Shut Down Kernel")').first.click()
    page.wait_for_timeout(1500)
    page.context.close()
    return found


def run(full=False, repeats=7):
    "The demo's shop."
    if not Path(CHROMIUM).is_file():
        raise SystemExit(f"explorer: expected {CHROMIUM}, found none: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    on = machine()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as p:
        params = example_project(
            "inference", dict(sample_data=dict(events=200_000, users=None, items=2000)), Path(folder) / "shop"
        )
        run_stage("inference", params)
        write_notebook(Path(folder), params.parent)
        with jupyterlab(Path(folder)) as url:
            browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            found = [once(browser, url) for _ in range(repeats)]
            browser.close()
    write(
        "explorer",
        [row(name, "built-in shop, 200,000 events", "seconds", [f[name] for f in found], "s") for name in found[0]],
        on=on,
    )
