"""How long somebody waits in JupyterLab, from running the cell to the explorer's list and to its pictures.

Measured in a headless Chromium on the same machine.
"""

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
    show = (
        "import time",
        "start = time.time()",
        f"explorer = PathExplorer.from_project({str(project)!r})",
        "print(time.time() - start)",
        "explorer",
    )
    cells = [new_code_cell("from gnn_ecommerce.explore.page import PathExplorer"), new_code_cell("\n".join(show))]
    kernel = dict(name="python3", display_name="python3", language="python")
    nbformat.write(new_notebook(cells=cells, metadata=dict(kernelspec=kernel)), folder / "explorer.ipynb")


def wait_for_address(server, folder, seconds=180):
    "Address of a JupyterLab that starts: it writes its runtime file when it listens."
    end = time.monotonic() + seconds
    while server.poll() is None and time.monotonic() < end:
        for file in (folder / "runtime_dir").glob("jpserver-*.json"):
            try:
                return json.loads(file.read_text(encoding="utf8"))["url"]
            except json.JSONDecodeError:
                pass  # half written
        time.sleep(0.1)
    log = (folder / "log").read_text(encoding="utf8")
    raise GnnEcommerceError(f"expected JupyterLab to start within {seconds} s, found: {log[-2000:]}")


@contextmanager
def jupyterlab(folder):
    """A JupyterLab of its own over a folder, which ends with the block; its address.

    The system chooses the port; the token is `explorer`.
    """
    places = ("_RUNTIME_DIR", "_CONFIG_DIR", "LAB_SETTINGS_DIR", "LAB_WORKSPACES_DIR")
    own = {f"JUPYTER{place}": str(folder / place.lower().strip("_")) for place in places}
    env = {**os.environ, **own, "PYTHONPATH": str(ROOT)}
    options = (
        "--no-browser --allow-root --ServerApp.ip=127.0.0.1 --ServerApp.port=0 --IdentityProvider.token=explorer "
        "--LabApp.news_url=None --LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"
    )
    command = [sys.executable, "-m", "jupyterlab", *options.split(), f"--ServerApp.root_dir={folder}"]
    with open(folder / "log", "w") as log:
        server = subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=log)
    try:
        yield wait_for_address(server, folder)
    finally:
        server.terminate()
        try:
            server.wait(120)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


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
