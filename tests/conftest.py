"""What the tests share: the project's folder, real data where there is some, and temporary clones."""

import gc
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
os.environ.setdefault("MPLBACKEND", "agg")
# with the default of 700 objects the collector walks through all loaded libraries again and again
gc.set_threshold(100_000, 20, 20)
# jsonschema would load a grammar of addresses in 2.5 seconds; no notebook holds one
sys.modules.setdefault("rfc3987_syntax", None)
#: small projects that many tests want are made once: see `example_project`
if "PYTEST_XDIST_WORKER" not in os.environ and "GNN_ECOMMERCE_EXAMPLES" not in os.environ:
    os.environ["GNN_ECOMMERCE_EXAMPLES"] = EXAMPLES = tempfile.mkdtemp(prefix="gnn_ecommerce_examples_")
else:
    EXAMPLES = None


def pytest_unconfigure():
    if EXAMPLES:
        shutil.rmtree(EXAMPLES, ignore_errors=True)


def pytest_addoption(parser):
    parser.addoption(
        "--flags", default="stage", help="nbdev flags whose cells run too when a notebook is tested; by default 'stage'"
    )
    parser.addoption(
        "--public-data", action="store_true", help="notebooks, too, read the data sets in GNN_ECOMMERCE_DATA"
    )


def pytest_report_header(config):
    data = os.environ.get("GNN_ECOMMERCE_DATA")
    return f"real data (GNN_ECOMMERCE_DATA): {'set' if data else 'unset, tests that use it are skipped'}"


#: what may be skipped under CI, and why it cannot be had there; any other skip is a hole and fails
SKIPS = {
    "no GPU here": "the machines of CI have none",
    "torchserve is not installed": "upstream is archived: its test is run by hand, see serving/04_torchserve",
    "no real data here": "real data sets are not in the repository: the nightly run has them",
}


@pytest.fixture(scope="module")
def browser():
    "Chromium. Skips where there is none."
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if not path:
        pytest.skip("no chromium on the PATH: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()


#: files that take minutes come first, so that no processor waits for them at the end; the first of them compiles the
#: kernels of training, which the clones of test_pipeline then copy
LONG = ["test_resume", "test_site", "test_pipeline", "test_closed_chain", "test_explorer", "test_tuning"]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    "A file stays together for its fixtures; notebooks are handed out one by one."
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return nodeid if "test_notebooks.py" in nodeid else nodeid.split("::", 1)[0]

    return ByFile(config, log)


def pytest_collection_modifyitems(items):
    "Long files first, notebooks last."

    def place(item):
        return (
            LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG) + (item.path.stem == "test_notebooks")
        )

    items.sort(key=place)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    "Under CI a test that is skipped for a reason that nobody allowed has failed."
    report = yield
    if os.environ.get("CI") and report.skipped and not hasattr(report, "wasxfail"):
        reason = str(call.excinfo.value) if call.excinfo else str(report.longrepr)
        if not any(allowed in reason for allowed in SKIPS):
            report.outcome = "failed"
            report.longrepr = f"skipped under CI: {reason}: install what is missing in .ci/run, or name it in SKIPS"
    return report


@pytest.fixture(autouse=True)
def process_stays_as_it_was():
    "A test that leaves another folder or other settings behind fails itself; later ones do not."

    def ours():
        return {
            k: v
            for k, v in os.environ.items()
            if k.startswith("GNN_ECOMMERCE_")
            or k in ("PORT", "MODEL_PORT", "MONITOR_PORT", "MODEL_URL", "DATABASE_URL", "SPOOL")
        }

    folder, settings = os.getcwd(), ours()
    yield
    left, found = os.getcwd(), ours()
    os.chdir(folder)
    for name in found.keys() - settings.keys():
        del os.environ[name]
    os.environ.update(settings)
    assert left == folder, (
        f"the test went to {left} and did not come back: use monkeypatch.chdir or a process of its own"
    )
    assert found == settings, (
        f"the test left settings behind: use monkeypatch.setenv: {sorted(found.items() ^ settings.items())}"
    )


@pytest.fixture(scope="session")
def root():
    "The project's folder."
    return ROOT


@pytest.fixture(scope="session")
def real_data():
    "The folder of real data sets. Skips where GNN_ECOMMERCE_DATA does not name one."
    folder = os.environ.get("GNN_ECOMMERCE_DATA")
    if not folder:
        pytest.skip("GNN_ECOMMERCE_DATA is unset: no real data here")
    if not Path(folder).is_dir():
        pytest.fail(f"GNN_ECOMMERCE_DATA: expected a folder, found {folder!r}")
    return Path(folder)


@pytest.fixture(scope="session")
def postgres():
    "A PostgreSQL that runs. Skips where it is not installed."
    from postgres import Postgres, why_not

    if why_not():
        pytest.skip(why_not())
    server = Postgres()
    try:
        yield server.start()
    finally:
        server.remove()


@pytest.fixture(params=["sqlite", "postgres"])
def store_url(request, tmp_path):
    "Address of an empty database: the same tests run on both kinds."
    return (
        f"sqlite:///{tmp_path}/store.db"
        if request.param == "sqlite"
        else request.getfixturevalue("postgres").database()
    )


@pytest.fixture
def store(store_url):
    "An open store in an empty database."
    from gnn_ecommerce.shop.stores import Store

    found = Store(store_url)
    yield found
    found.close()


def git(folder, *args):
    "Run git in a folder with an identity of its own; returns what it prints."
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", *identity, *args], cwd=folder, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="session")
def clone():
    "A function that puts a copy of the project, as it stands, into a folder and makes it a Git repository."

    def make(folder):
        folder = Path(folder)
        files = git(ROOT, "ls-files", "--cached", "--others", "--exclude-standard", "-z").split("\0")
        for name in files:
            if not name or not (ROOT / name).is_file():
                continue
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
        git(folder, "init", "--quiet", "--initial-branch=main")
        git(folder, "add", "--all")
        git(folder, "commit", "--quiet", "--message=copy")
        return folder

    return make
