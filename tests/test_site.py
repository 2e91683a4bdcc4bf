"""The documentation site: built once, every link followed, and looked at in a browser without a network."""

import json
import re
import subprocess
import sys

import nbformat
import pytest
import yaml
from check_site import check
from conftest import ROOT
from notebooks import PLOTLY, for_a_page, module, notebooks, numbered, site

pytestmark = pytest.mark.slow
FIVE = ("index", "tutorial", "nbs/guides/benchmarks", "api/explain/shares", "nbs/06_explainability")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    "The site, built as `make docs` does, with the notebooks as they are; its folder."
    folder = tmp_path_factory.mktemp("site")
    site(out=folder / "src")
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "--fail-on-warning",
        "--keep-going",
        "--quiet",
        "--builder",
        "html",
        "-c",
        str(ROOT / "docs"),
    ]
    done = subprocess.run(
        [*command, str(folder / "src"), str(folder / "html")], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr[-4000:]
    return folder / "html"


# The pages, without a browser


def test_every_link_leads_somewhere_and_nothing_is_loaded_from_elsewhere(built):
    report = check(built)
    print(f"{report.pages} pages, {report.links} links")
    assert not report.broken, "\n".join(report.broken[:40])
    assert report.pages > 50 and report.links > 5000


def test_every_notebook_and_module_has_a_page(built):
    for file in notebooks():
        if file.name != "index.ipynb":
            assert (built / file.relative_to(ROOT)).with_suffix(".html").is_file()
    for file in numbered():
        assert (built / "api" / f"{module(file).replace('.', '/')}.html").is_file(), module(file)


def test_search_knows_the_words_of_the_pages(built):
    text = (built / "searchindex.js").read_text(encoding="utf8")
    index = json.loads(re.fullmatch(r"Search\.setIndex\((.*)\)", text, re.S)[1])

    def pages(word):
        found = [index[where].get(word, []) for where in ("terms", "titleterms")]
        return {index["docnames"][i] for many in found for i in ([many] if isinstance(many, int) else many)}

    assert "nbs/06_explainability" in pages("sentenc")  # words are stemmed
    assert "guides/papermill" in pages("crontab")
    assert any(page.startswith("api/") for page in pages("embed"))
    assert any("GnnEcommerceError" in str(entry) for entry in index["objects"].items())


def test_reference_shows_shapes_defaults_and_errors(built):
    shares = (built / "api" / "explain" / "shares.html").read_text(encoding="utf8")
    text = re.sub(r"<[^>]+>", "", shares)
    assert "float64 (h, k)" in text
    events = re.sub(r"<[^>]+>", "", (built / "api" / "explore" / "eda.html").read_text(encoding="utf8"))
    assert "Raises DataError" in events and re.search(r"\(default\s+'2GB'\)", events)
    settings = re.sub(r"<[^>]+>", "", (built / "api" / "data" / "sample_data.html").read_text(encoding="utf8"))
    assert "how strongly customers follow their tastes" in settings


def test_the_checker_sees_what_is_broken(tmp_path):
    (tmp_path / "index.html").write_text(
        '<a href="b.html#here"></a><a href="b.html#gone"></a><a href="c.html"></a><img src="https://example.org/x.png">'
        '<a href="https://example.org"></a><a href="/b.html"></a><link rel="stylesheet" href="a.css">'
        '<script src="x.js"></script>'
    )
    (tmp_path / "b.html").write_text('<p id="here">')
    (tmp_path / "a.css").write_text("p { background: url('lost.svg') }")
    (tmp_path / "x.js").touch()
    report = check(tmp_path)
    assert report.pages == 2 and report.outside == {"https://example.org", "https://example.org/x.png"}
    for url, why in {
        "#gone": "anchor",
        "c.html": "found none",
        "x.png": "address elsewhere",
        "/b.html": "relative",
        "lost.svg": "found none",
        "x.js": "something in it",
    }.items():
        assert any(url in line and why in line for line in report.broken), url
    assert len(report.broken) == 6


def test_a_figure_becomes_a_page_and_a_widget_does_not():
    figure = {
        "data": [{"y": [1, 2], "name": "</script>"}],
        "layout": {"height": 222},
        "config": {"plotlyServerURL": "https://plot.ly"},
    }
    out = for_a_page(nbformat.v4.new_output("display_data", {PLOTLY: figure, "text/plain": "Figure"}))
    assert (
        list(out.data) == ["text/plain", "text/html"]
        and out.data["text/html"].count("</script>") == 1
        and "height:222px" in out.data["text/html"]
    )
    assert json.loads(re.search(r'json">(.*)</script>', out.data["text/html"])[1])["data"][0]["name"] == "</script>"
    assert for_a_page(nbformat.v4.new_output("display_data", {"application/vnd.jupyter.widget-view+json": {}})) is None


# The pages in a browser


@pytest.fixture
def tab(browser):
    "A new page that notes what it asks the network for, and its errors."
    context = browser.new_context(viewport={"width": 390, "height": 844})
    page = context.new_page()
    page.asked, page.errors = [], []
    context.route(re.compile("^https?:"), lambda route: (page.asked.append(route.request.url), route.abort()))
    page.on("pageerror", lambda err: page.errors.append(str(err)))
    yield page
    context.close()


def address(built, page):
    return f"file://{built / page}.html"


def test_plotly_figures_draw_from_files_in_both_colours(built, tab):
    tab.goto(address(built, "nbs/guides/benchmarks"))
    figure = tab.locator(".plotly-figure").first
    figure.scroll_into_view_if_needed()
    tab.wait_for_selector(".plotly-figure[data-drawn] .main-svg .trace", state="attached")

    def ink():
        return figure.locator(".xtick text").first.evaluate("e => getComputedStyle(e).fill")

    tab.evaluate("document.documentElement.dataset.theme = 'light'")
    tab.wait_for_timeout(300)
    light = ink()
    tab.evaluate("document.documentElement.dataset.theme = 'dark'")
    tab.wait_for_timeout(300)
    assert light != ink(), "expected a figure to follow the page's colours"
    behind = figure.evaluate(
        """e => {
            while (getComputedStyle(e).backgroundColor === 'rgba(0, 0, 0, 0)') e = e.parentElement;
            return getComputedStyle(e).backgroundColor
        }"""
    )
    assert max(map(int, re.findall(r"\d+", behind)[:3])) < 80, (
        f"expected a dark ground in the dark theme, found {behind}"
    )
    assert not tab.asked and not tab.errors


def test_tables_in_outputs_are_tables(built):
    "Markdown that a cell printed is read with its tables."
    page = (built / "nbs" / "guides" / "benchmarks.html").read_text(encoding="utf8")
    assert page.count("<table") > 5 and "| \u2014 |" not in page and "|---" not in page


@pytest.mark.parametrize("page", FIVE)
def test_pages_fit_a_phone(built, tab, page):
    tab.goto(address(built, page))
    wide = tab.evaluate("""() => [...document.querySelectorAll('body *')]
        .filter(e => e.getBoundingClientRect().right > innerWidth + 1 && e.checkVisibility())
        .filter(e => !e.closest('.highlight, .cell_output, table, .formula, dialog, .pst-scrollable-table-container'))
        .map(e => e.outerHTML.slice(0, 120))""")
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390, wide[:5]
    assert not tab.asked and not tab.errors


def test_search_finds_pages(built, tab):
    tab.goto(f"file://{built}/search.html?q=papermill")
    tab.wait_for_selector("#search-results li a[href*='guides/papermill']")  # results appear one after the other
    tab.wait_for_selector("#search-results li a[href*='run/01_pipeline']")


SEARCHED = {
    "event weights": "nbs/02_graph_build",
    "recall": "nbs/ranking/03_evaluation",
    "cold start": "nbs/models/05_fold_in",
    "shopify export": "nbs/guides/bring_your_shop",
    "run every night": "guides/papermill",
    "api key": "guides/serving",
    "csv": "nbs/guides/own_shop",
    "how often to retrain": "nbs/guides/backtest",
    "negative sampling": "nbs/models/02_losses",
    "save model": "nbs/models/03_checkpoint",
}


def test_search_brings_the_right_page_first(built, tab):
    first = {}
    for words in SEARCHED:
        tab.goto(f"file://{built}/search.html?q={words.replace(' ', '+')}")
        link = tab.locator("#search-results li a").first
        first[words] = re.sub(r"\.html.*", "", link.get_attribute("href"))
    assert first == SEARCHED


def test_pages_of_lists_are_cards(built):
    "Every guide and notebook has a card with a sentence and its minutes; pictures are files of the site."
    for page in ("guides", "notebooks"):
        text = (built / f"{page}.html").read_text(encoding="utf8")
        cards = re.findall(r'class="sd-card .*?class="sd-stretched-link.*?</a>', text, re.S)
        assert len(cards) == len(re.findall(r"\d+ min", text)) > 10
        for card in cards:
            sentence = re.search(r'class="sd-card-text">(.+?)</p>', card, re.S)
            assert sentence and len(sentence[1]) > 20, card
    assert text.count("sd-card-img-top") > 15


def test_a_page_that_is_not_there_says_where_home_is(built):
    text = (built / "404.html").read_text(encoding="utf8")
    assert "No such page" in text and 'href="index.html"' in text


def test_pages_have_a_title_a_description_and_the_file_they_are_written_in(built):
    pages = {
        "index": "docs/index.md",
        "nbs/04_training": "nbs/04_training.ipynb",
        "api/models/losses": "nbs/models/02_losses.ipynb",
        "contributing": "CONTRIBUTING.md",
    }
    titles = set()
    for page, file in pages.items():
        text = (built / f"{page}.html").read_text(encoding="utf8")
        titles.add(re.search(r"<title>\s*(.*?)\s*</title>", text, re.S)[1])
        assert re.search(r'<meta name="description" content="[^"]{20,}"', text), page
        assert page == "index" or f"/edit/main/{file}" in text, page
    assert len(titles) == 4 and not any(title.startswith("gnn_ecommerce") for title in titles)


# Workflows


def test_workflows_follow_the_schema():
    files = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
    assert [f.stem for f in files] == ["docs", "tests"]
    done = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", *map(str, files)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def test_workflows_run_what_there_is():
    "The commands of the workflows' steps are files and make targets of the project."
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf8"), re.M))
    commands = [
        step["run"]
        for f in (ROOT / ".github" / "workflows").glob("*.yml")
        for job in yaml.safe_load(f.read_text(encoding="utf8"))["jobs"].values()
        for step in job["steps"]
        if "run" in step
    ]
    named = set(re.findall(r"\bmake ([a-z-]+)", "\n".join(commands)))
    assert named and named <= targets
    assert [c for c in commands if ".ci/run" in c] and (ROOT / ".ci/run").stat().st_mode & 0o111


# The tutorial


def test_code_of_the_tutorial_runs(tmp_path):
    "Its Python, in a small project; and the files that it names are there afterwards."
    from gnn_ecommerce.core import example_project, run_stage

    text = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf8")
    code = re.findall(r"^```python\n(.*?)^```", text, re.S | re.M)
    assert len(code) >= 4
    params = example_project(
        "explainability", {"training": {"filter": "paths"}, "explainability": {"number": 3, "check": 0}}, tmp_path
    )
    run_stage("explainability", params)
    done = subprocess.run([sys.executable, "-c", "\n".join(code)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    named = set(re.findall(r"`((?:reports|data|model-\w+)/[\w./-]+)`", text)) - {"reports/run.log"}  # of `make demo`
    lost = [name for name in named if not (tmp_path / name).exists() and "notebooks" not in name]
    assert named and not lost
