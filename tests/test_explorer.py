"""The explorer: its state without a browser, its page in a browser without a kernel, its view in a real JupyterLab."""

import os
import re
import shlex
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from postgres import free_port
from conftest import ROOT

from gnn_ecommerce.graph.wording import short_name

sys.path.insert(0, str(ROOT))
from benchmarks.explorer import jupyterlab  # noqa: E402

OVERLAY = {
    "sample_data": {"events": 10_000, "users": None, "items": 200},
    "graph_build": {"min_user_events": 3},
    "training": {"epochs": 4, "dim": 16},
    "refit": {"until": "none", "check": False},
}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    "A small trained shop."
    from gnn_ecommerce.core import example_project

    return example_project("inference", OVERLAY, tmp_path_factory.mktemp("shop")).parent


@pytest.fixture()
def state(project):
    from gnn_ecommerce.explore.state import ExplorerState

    return ExplorerState.from_project(project)


# The state


def test_list_is_the_recommenders_and_every_split_adds_up_to_its_score(state, project):
    from gnn_ecommerce.models.checkpoint import load_checkpoint
    from gnn_ecommerce.core import ProjectPaths
    from gnn_ecommerce.graph.interactions import InteractionGraph

    served = ProjectPaths(project).served
    model = load_checkpoint(served.checkpoint, InteractionGraph.load(served.graph))
    for _ in range(5):
        state.surprise()
        explored = state.model
        items, scores = model.recommend(np.array([state.view.user]), explored.k, "bought", explored.also_exclude)
        assert state.recommendations().item.tolist() == items[0].tolist()
        for item in items[0][:3]:
            state.pick(item)
            assert state.score() == pytest.approx(scores[0][list(items[0]).index(item)], abs=1e-4)
            sums = state.splits().groupby("split").share.sum()
            assert len(sums) == 4 and np.allclose(sums, state.score(), atol=1e-6)


def test_a_loaded_recommender_is_explained_like_its_project(project):
    from gnn_ecommerce.models.checkpoint import load_checkpoint
    from gnn_ecommerce.explore.state import ExplorerState
    from gnn_ecommerce.graph.interactions import InteractionGraph

    model = load_checkpoint(
        project / "model-checkpoints/lightgcn", InteractionGraph.load(project / "data/processed/graph")
    )
    state = ExplorerState(model)
    state.surprise()
    assert state.selection.mode == "shares"
    assert len(state.splits()) > 0
    assert len(state.timeline()) > 0


def test_what_if_is_what_the_explainer_says_and_can_be_undone(state):
    state.surprise("buyers")
    before, item = state.recommendations(), int(state.products().item[0])
    state.toggle(item)
    effect = state.effect()
    expected = state.model.explainer.what_if(state.view.user, [item], effect.item)
    assert np.allclose(effect.after, expected.after, atol=1e-9)
    assert np.abs(effect.change).max() > 1e-4
    new = state.recommendations()
    assert (np.diff(new.score) <= 1e-12).all()
    explainer, name = state.model.explainer, short_name(state.model.graph, item)
    assert np.allclose(explainer.shares(state.view.user, new.item, [item]).total, new.score, atol=1e-5)
    assert not new.reason.str.contains(re.escape(name) + r"\b").any() and (new.reason.str.len() > 10).all()
    for state.selection in [replace(state.selection, item=int(i)) for i in new.item]:
        assert not any(item in path[1:-1] for path in state.paths().path.map(lambda p: p[1::2] + p[-1:]))
    assert (new.rank_before > 0).all()
    assert not set(new.item) & set(state.history().item[state.history().event == "purchase"]), (
        "what was bought stays out"
    )
    state.toggle(item)
    pd.testing.assert_frame_equal(state.recommendations(), before)


def test_what_if_splits_the_new_score_and_names_nothing_that_was_taken_out(state):
    from gnn_ecommerce.explore.figures import shares_figure

    state.surprise("buyers")
    item = int(state.products().item[0])
    name = short_name(state.model.graph, item)
    assert name in {bar.name for bar in shares_figure(state).data}
    state.toggle(item)
    chosen = state.selection.item
    expected = state.model.explainer.what_if(state.view.user, [item], [chosen]).after.iloc[0]
    assert state.score() == pytest.approx(expected, abs=1e-6)
    sums = state.splits().groupby("split").share.sum()
    assert list(sums.index) == ["events", "products"] and np.allclose(sums, expected, atol=1e-6)
    figure = shares_figure(state)
    assert name not in {bar.name for bar in figure.data}
    assert figure.layout.title.text.startswith("score without what is taken out")
    state.toggle(item)
    assert state.splits().split.nunique() == 4


def test_search_is_by_the_beginning_of_the_id(state):
    ids = state.model.graph.user_ids.ids
    for prefix in ("", "1", str(ids[3])[:2], str(ids[-1])):
        expected = [i for i in ids.tolist() if str(i).startswith(prefix)]
        matches, count = state.model.find(prefix, n=10**6)
        assert (sorted(matches), count) == (expected, len(expected))


def test_viewers_are_customers_without_a_purchase(state):
    buyers, viewers = (state.model.find("", group, 10**6)[0] for group in ("buyers", "viewers"))
    assert buyers
    assert not set(buyers) & set(viewers)
    state.surprise("viewers")
    assert state.id in viewers
    assert not (state.history().event == "purchase").any()


def test_new_customers_get_a_list_and_a_note(state):
    new, count = state.model.find("", "new", 10**6)
    assert count == len(new) > 0
    state.choose(new[0])
    assert state.view.note
    assert not state.view.personal
    assert len(state.recommendations()) == state.model.k


def test_surprise_never_repeats_the_customer_on_the_screen(state):
    for group in ("all", "buyers", "viewers", "new"):
        before = state.id
        state.surprise(group)
        assert state.id != before


def test_unknown_customers_get_the_popular_list_and_are_told(state):
    for id in (-5, 10**17, "nobody", "12x", "", "007", None, 3.5):
        state.choose(id)
        assert "No customer" in state.view.note
        assert "most customers buy" in state.view.note
        assert len(state.recommendations()) == state.model.k
        empty = ("history", "timeline", "paths", "products", "splits", "similar_customers")
        assert {name: len(getattr(state, name)()) for name in empty} == dict.fromkeys(empty, 0)


def test_what_is_left_out_of_the_list_of_somebody_new(state):
    from dataclasses import replace
    from types import SimpleNamespace
    from gnn_ecommerce.explore.state import HISTORY_COLUMNS, ExplorerState

    state.choose("nobody")
    first = state.recommendations().item.tolist()[:2]
    ids = state.model.graph.item_ids.ids[first]
    outside = pd.DataFrame({"user_id": [10**15] * 2, "product_id": ids, "bought": [True, False]})
    events = SimpleNamespace(outside=outside, of=lambda id: pd.DataFrame(columns=HISTORY_COLUMNS))
    for exclude, gone in (("bought", first[:1]), ("seen", first), ("none", [])):
        other = ExplorerState(replace(state.model, events=events, exclude=exclude))
        other.choose(10**15)
        assert [i for i in first if i not in other.recommendations().item.tolist()] == gone


def test_five_thousand_events_and_products_without_a_name(tmp_path):
    from gnn_ecommerce.explore.figures import effect_figure, history_figure, paths_figure, shares_figure
    from gnn_ecommerce.explore.state import ExplorerState
    from gnn_ecommerce.graph.interactions import InteractionGraph, random_graph
    from gnn_ecommerce.training import TrainingSettings, fit

    base = random_graph(300, 900, 6000, seed=3)
    user, item = (
        np.concatenate([base.user[base.user > 0], np.zeros(800, int)]),
        np.concatenate([base.item[base.user > 0], np.arange(800)]),
    )
    names = pd.DataFrame(
        {
            "product_id": np.arange(900),
            "name": [None] * 450 + [f"<b>Brush & comb {i}</b>" for i in range(450)],
            "brand": [None] * 900,
            "price": [np.nan] * 900,
        }
    )
    graph = InteractionGraph.from_arrays(
        user, item, n_users=300, n_items=900, purchased=np.arange(len(user)) % 3 == 0, items=names
    )

    class Events:
        outside = pd.DataFrame({"user_id": [], "product_id": [], "bought": []})

        def of(self, user_id):
            n = 5000 if user_id == 0 else 3
            return pd.DataFrame(
                {
                    "event_time": pd.date_range("2020-01-01", periods=n, freq="40min"),
                    "event_type": np.resize(["view", "cart", "purchase"], n),
                    "product_id": np.resize(np.arange(800), n),
                    "price": np.nan,
                }
            )

    state = ExplorerState(fit(graph, TrainingSettings(epochs=1, dim=8)), events=Events())
    state.choose(0)
    figures = [f(state) for f in (history_figure, paths_figure, shares_figure, effect_figure)]
    assert (len(state.timeline()), len(state.history())) == (5000, 800)
    assert sum(len(trace.x) for trace in figures[0].data) < 500
    assert "product 3" in set(state.history().name)
    assert not any("<b>Brush" in f.to_json() or "\\u003cb\\u003eBrush" in f.to_json() for f in figures[1:]), (
        "names are escaped"
    )


def test_graph_filter_and_plain_recommenders_are_shown_too(state):
    from gnn_ecommerce.models.baselines import BASELINES
    from gnn_ecommerce.explore.figures import effect_figure, map_figure, paths_figure, shares_figure
    from gnn_ecommerce.explore.state import ExplorerState
    from gnn_ecommerce.filter.graph_filter import GraphFilter

    for method in ("paths", "chebyshev", "regression"):
        other = ExplorerState(GraphFilter(method, 20).fit(state.model.graph))
        other.surprise("buyers")
        assert len(other.paths()) > 0
        assert np.allclose(other.splits().groupby("split").share.sum(), other.score(), atol=1e-6)
        assert len(paths_figure(other).data) > 2
    svd = ExplorerState(BASELINES["svd"](seed=0).fit(state.model.graph))
    svd.surprise()
    assert svd.selection.mode == "shortest"
    assert [len(table) > 0 for table in (svd.paths(), svd.similar(), svd.splits())] == [True, True, False]
    for figure in (paths_figure, shares_figure, effect_figure):
        figure(svd)
    assert sum(len(trace.x) for trace in map_figure(svd, method="pca").data) >= svd.model.graph.n_items


# The page


@pytest.fixture(scope="module")
def static(project):
    from gnn_ecommerce.explore.figures import page
    from gnn_ecommerce.explore.state import ExplorerState

    state = ExplorerState.from_project(project)
    ids = [state.surprise("buyers"), state.model.find("", "new")[0][0]]
    return page(state, project / "why.html", ids), ids


def test_page_works_without_kernel_and_network(static, browser):
    file, ids = static
    context = browser.new_context(offline=True, viewport={"width": 1000, "height": 800})
    view, problems = context.new_page(), []
    view.on("pageerror", lambda e: problems.append(str(e)))
    view.on("request", lambda r: problems.append(r.url) if not r.url.startswith(("file:", "data:", "blob:")) else None)
    view.goto(file.as_uri())
    view.wait_for_selector("#paths .main-svg")
    rows, title = view.locator("#list tr"), view.locator("#paths .gtitle")
    assert rows.count() == 10 and rows.nth(0).get_attribute("aria-selected") == "true"
    first = title.text_content()
    rows.nth(2).click()
    assert rows.nth(2).get_attribute("aria-selected") == "true" and title.text_content() != first
    lines = view.locator("#paths .scatterlayer .trace").count()
    view.locator("#top").press("End")
    assert view.locator("#count").text_content() == "10" and view.locator("#paths .scatterlayer .trace").count() > lines
    view.get_by_label("shortest paths").check()
    assert "shortest" in title.text_content()
    with view.expect_download() as saved:
        view.locator("#svg").click()
    assert (
        saved.value.suggested_filename == "paths.svg"
        and "<svg" in Path(saved.value.path()).read_text(encoding="utf8")[:200]
    )
    view.locator("#customer").select_option(label=str(ids[1]))
    assert view.locator("#note").is_visible() and "most customers buy" in view.locator("#note").text_content()
    assert view.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert not problems
    context.close()


# JupyterLab


def notebook_for(project, folder):
    "The guide's notebook, on the small shop."
    nb = nbformat.read(ROOT / "nbs/guides/explorer.ipynb", 4)
    for cell in nb.cells:
        cell["outputs"] = [] if cell.cell_type == "code" else cell.get("outputs")
        if cell.cell_type != "code":
            cell.pop("outputs", None)
        if "parameters" in cell.metadata.get("tags", ()):
            cell.source = f"project, customer = {str(project)!r}, ''"
    nbformat.write(nb, folder / "explorer.ipynb")


@pytest.fixture(scope="module")
def lab(project, tmp_path_factory):
    "A JupyterLab of its own, on a port that the system chose; its address."
    folder = tmp_path_factory.mktemp("lab")
    notebook_for(project, folder)
    with jupyterlab(folder) as url:
        yield url


def drawn(view, label):
    "The plot of a name, once it has been drawn."
    plot = view.locator(f".gx-plot[aria-label^='{label}:']")
    plot.locator(".main-svg").first.wait_for()
    return plot


def settle(view):
    "Wait until the kernel has nothing left to do and nothing is drawn any more."
    drawings = lambda: view.evaluate("[...document.querySelectorAll('[data-drawn]')].map(e => e.dataset.drawn).join()")
    view.wait_for_timeout(100)
    seen = None
    while seen != drawings():
        view.locator("#jp-main-statusbar").get_by_text("| Idle").wait_for()
        seen = drawings()
        view.wait_for_timeout(250)


def eventually(view, look, what, timeout=180):
    "What `look()` gives as soon as it gives something."
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        if seen := look():
            return seen
        view.wait_for_timeout(100)
    raise AssertionError(f"expected {what}, found none after {timeout} s")


def another_customer(paths, me):
    "Position and id of another customer among the nodes of the picture; None as long as they are not all drawn."
    texts = paths.evaluate(
        """e => (e.data ? e : e.querySelector('.js-plotly-plot')).data
            .filter(t => (t.mode || '').includes('markers')).flatMap(t => [...t.hovertext])"""
    )
    if len(texts) != paths.locator("path.point").count():
        return None
    ids = (re.match(r"<b>customer (\S+)</b>", text) for text in texts)
    return next(((at, m[1]) for at, m in enumerate(ids) if m and m[1] != me), None)


def changes(view, what, act, timeout=180):
    "Do something and wait until `what()` gives something else; returns both."
    before = what()
    act()
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        after = what()
        if after != before:
            settle(view)
            return before, after
        view.wait_for_timeout(100)
    raise AssertionError(f"expected a change, found {before!r} still after {timeout} s")


@pytest.mark.slow
def test_explorer_in_jupyterlab(lab, browser):
    "Choose a customer, click a product, slide, switch, take a product out, export; each changes what is shown."
    context = browser.new_context(viewport={"width": 1000, "height": 900}, accept_downloads=True)
    context.set_default_timeout(180_000)
    view = context.new_page()
    view.goto(f"{lab}lab/tree/explorer.ipynb?token=explorer&reset")
    view.locator(".jp-Notebook .jp-CodeCell").first.wait_for()
    view.locator("#jp-main-statusbar").get_by_text("| Idle").wait_for()
    view.locator(".lm-MenuBar-item", has_text="Run").click()
    view.locator('.lm-Menu-item:has-text("Run All Cells")').first.click()
    paths = drawn(view, "paths")
    title = lambda: paths.get_attribute("aria-label")
    listed = view.locator("table[aria-label=recommendations] tbody tr")
    settle(view)
    assert listed.count() == 10

    # another customer, by search
    head = view.locator(".gx-head").first
    search = view.get_by_placeholder("id, or its beginning")
    found = view.locator(".gx-dim", has_text=re.compile(r"^\d+ found"))
    everybody, some = changes(view, found.text_content, lambda: search.fill(head.text_content().split()[-1][:2]))
    assert everybody != some
    choices = view.locator("select", has=view.locator("option", has_text="choose one"))
    wanted = choices.locator("option").nth(2).text_content()
    changes(view, head.text_content, lambda: choices.select_option(label=wanted))
    assert wanted in head.text_content()

    # another product, with the keyboard
    picks = view.locator("table[aria-label=recommendations] .gx-pick")
    picks.nth(0).focus()
    view.keyboard.press("ArrowDown")
    changes(view, title, lambda: view.keyboard.press("Enter"))
    assert listed.nth(1).get_attribute("aria-selected") == "true"

    # and with the mouse; then more and fewer paths, and the shortest ones
    changes(view, title, lambda: listed.nth(3).click())
    slider = view.get_by_role("slider").first
    changes(view, title, lambda: slider.press("ArrowLeft"))
    assert re.search(r"heaviest [1-4] paths?", title())
    changes(view, title, lambda: view.get_by_role("button", name="shortest paths").click())
    assert "shortest" in title()
    changes(view, title, lambda: view.get_by_role("button", name="exact shares").click())

    # what if not
    effect = drawn(view, "effect")
    switch = view.locator("table[aria-label=history] .gx-toggle").first
    changes(view, lambda: effect.get_attribute("aria-label"), switch.click)
    assert (
        "without" in effect.get_attribute("aria-label")
        and view.locator("table[aria-label=history] .gx-toggle").first.get_attribute("aria-pressed") == "true"
    )

    # take along
    for button, ending, begins in (
        ("CSV", ".csv", "customer_id,"),
        ("SVG", ".svg", "<svg"),
        ("PNG", ".png", None),
        ("Page", ".html", "<!DOCTYPE html>"),
    ):
        with view.expect_download() as saved:
            view.locator(".jupyter-button", has_text=button).click()
        assert saved.value.suggested_filename.endswith(ending) and wanted in saved.value.suggested_filename
        content = Path(saved.value.path()).read_bytes()
        assert content.startswith(begins.encode() if begins else b"\x89PNG") and len(content) > 200

    # the customer before
    changes(view, head.text_content, lambda: view.get_by_title("the customer before this one").click())

    # the other tabs
    view.get_by_role("tab", name="Map of products").click()
    assert "products by brand" in drawn(view, "map").get_attribute("aria-label")
    view.get_by_role("tab", name="Similar").click()
    near = view.locator("table[aria-label='similar products'] tbody tr")
    near.first.wait_for()
    assert near.count() == 10

    # nothing sticks out
    fits = "[...document.querySelectorAll('.jp-OutputArea-output')].every(e => e.scrollWidth <= e.clientWidth + 1)"
    assert view.evaluate(fits)

    # another customer, by a node of the picture
    view.get_by_role("tab", name="Customer").click()
    settle(view)
    paths.scroll_into_view_if_needed()
    changes(view, title, lambda: slider.press("End"))
    me = head.text_content().split()[-1]
    at, other = eventually(view, lambda: another_customer(paths, me), "another customer in the picture")
    box = paths.locator("path.point").nth(at).bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    view.mouse.move(x - 1, y)
    view.wait_for_timeout(300)
    changes(view, head.text_content, lambda: view.mouse.click(x, y))
    assert other in head.text_content()
    context.close()


def listens(port):
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) == 0


def ink(view, place):
    "Red of the text and of the ground of an element: 0 is dark."
    colours = view.evaluate(
        "e => [getComputedStyle(e).color, getComputedStyle(e).backgroundColor]", view.query_selector(place)
    )
    return [int(re.findall(r"\d+", colour)[0]) for colour in colours]


@pytest.mark.slow
def test_page_of_make_explore(project, browser, tmp_path):
    "Voila with the options of `make explore`: the explorer, none of the cells that are only for the site, no error."
    notebook_for(project, tmp_path)
    options = re.search(
        r"voila nbs/guides/explorer.ipynb (.*) \$\(ARGS\)", (ROOT / "Makefile").read_text(encoding="utf8")
    )[1]
    port = free_port()
    with open(tmp_path / "log", "w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "voila", "explorer.ipynb", *shlex.split(options), "--no-browser", f"--port={port}"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), "JUPYTER_PATH": str(ROOT / "tools/jupyter")},
            stdout=log,
            stderr=log,
        )
    try:
        end = time.monotonic() + 180
        while not listens(port):
            assert server.poll() is None and time.monotonic() < end, (tmp_path / "log").read_text("utf8")[-2000:]
            time.sleep(0.1)
        context, problems = browser.new_context(viewport={"width": 1000, "height": 900}), []
        context.set_default_timeout(180_000)
        view = context.new_page()
        view.on("pageerror", lambda e: problems.append(str(e)))
        view.on("request", lambda r: problems.append(r.url) if r.url.startswith("https:") else None)
        view.goto(f"http://127.0.0.1:{port}")
        for name in ("history", "paths", "shares", "effect"):
            drawn(view, name)
        head = view.locator(".gx-head").first
        before = head.text_content()
        view.get_by_role("button", name="Surprise me").click()
        eventually(view, lambda: head.text_content() != before, "another customer")
        assert (
            view.locator("h2", has_text="How to read it").count()
            and not view.locator("h2", has_text="One customer").count()
        )
        assert view.evaluate("document.documentElement.scrollWidth <= innerWidth") and not problems
        light = [ink(view, place) for place in ("body", ".gx-head")]
        view.emulate_media(color_scheme="dark")
        dark = [ink(view, place) for place in ("body", ".gx-head")]
        assert light[0][1] > 200 > 90 > light[1][0] and dark[0][1] < 60 < 200 < dark[1][0], (light, dark)
        context.close()
    finally:
        server.terminate()
        server.wait(120)
