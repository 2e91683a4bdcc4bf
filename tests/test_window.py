"""The shop window and the page of the monitor: what they may load, whom they answer, and what a browser shows."""

import asyncio
import re
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from conftest import ROOT
from shop import Api, Model, wait_for

from gnn_ecommerce import monitoring
from gnn_ecommerce.api_server import WINDOW_SCOPES, api_settings, create_app
from gnn_ecommerce.model_server import ModelMetrics, Shared
from gnn_ecommerce.shop.stores import Store

PAGES = {file.name: file for file in files("gnn_ecommerce.shop").joinpath("window").iterdir()}


@pytest.fixture(scope="module")
def monitor():
    "Monitoring of synthetic traffic, as Prometheus asks it; its address."
    events, served = monitoring.example_traffic(lists=300, items=60)
    watch = monitoring.Monitor(
        lambda since: (events, served),
        lambda: monitoring.Reference(monitoring.Profile.from_events(events), None, 60),
        hours=24 * 30,
        now=lambda: served.served_at.max(),
    )
    server, thread = monitoring.listen(watch, 0)
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def api(monitor, tmp_path_factory):
    model = Model().start()
    server = Api(tmp_path_factory.mktemp("window"), model.url, SHOP_WINDOW="on", MONITOR_URL=monitor)
    server.env["WINDOW_KEY"], _ = server.store.create_key("window", WINDOW_SCOPES)
    yield server.start()
    server.stop()
    model.stop()


@pytest.fixture
def shop(api):
    with api.client() as client:
        yield client


def read(folder, *paths, **settings):
    "Status and text of some pages of a server in this process, whose store is in a folder."
    at = {"database_url": f"sqlite:///{folder}/x.db", "spool": str(folder), "model_url": "http://127.0.0.1:1"}

    async def calls():
        app = create_app(api_settings(**at, **settings))
        http = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x")
        async with app.router.lifespan_context(app), http:
            return [(answer.status_code, answer.text) for answer in [await http.get(path) for path in paths]]

    return asyncio.run(calls())


# Pages


@pytest.mark.parametrize("path", ["/", "/monitor", *(f"/window/{name}" for name in PAGES)])
def test_a_page_may_load_its_own_files_alone(shop, path):
    answer = shop.get(path)
    assert answer.status_code == 200
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';") and "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("name", PAGES)
def test_a_file_loads_nothing_from_elsewhere_and_makes_no_markup_of_text(name):
    text = PAGES[name].read_text(encoding="utf8").replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?:|innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text)
    assert not re.search(r"<style|<script(?![^>]*src=)|\s(style|on\w+)=", text)


@pytest.mark.parametrize("name", ["nothing.js", "..%2fdocs.html", "window"])
def test_no_other_file_is_given_out(shop, name):
    assert shop.get(f"/window/{name}").status_code == 404


def test_pages_are_part_of_the_package():
    assert '"shop/window/*"' in (ROOT / "setup.py").read_text()
    manifest = (ROOT / "MANIFEST.in").read_text()
    assert all(f"*{Path(name).suffix}" in manifest for name in PAGES)


def test_without_the_setting_there_is_no_window(tmp_path):
    paths = ("/window/key", "/v1/window/customers", "/", "/monitor")
    key, customers, page, monitor = read(tmp_path, *paths)
    assert (key[0], customers[0], monitor[0]) == (404, 404, 200)
    assert "The API of this shop" in page[1]


# Keys


def test_the_windows_key_reads_lists_and_sends_events_and_can_do_no_more(api, shop):
    key = httpx.get(f"{api.url}/window/key", trust_env=False).json()["key"]
    with api.client(key) as window:
        assert window.get("/v1/customers/17/recommendations").status_code == 200
        event = {"event_id": "w1", "event_type": "view", "product_id": 5, "customer_id": "window-key"}
        assert window.post("/v1/events", json={"events": [event]}).status_code == 200
        calls = ("GET", "/v1/admin/status"), ("GET", "/v1/admin/monitor"), ("DELETE", "/v1/customers/17")
        assert [window.request(*call).status_code for call in calls] == [403] * 3


@pytest.mark.parametrize("scopes", [None, ["recommend"], [*WINDOW_SCOPES, "admin"]], ids=["none", "less", "more"])
def test_a_key_with_other_scopes_is_not_handed_out(tmp_path, scopes):
    key = Store(f"sqlite:///{tmp_path}/x.db").create_key("window", scopes)[0] if scopes else ""
    ((status, text),) = read(tmp_path, "/window/key", shop_window="on", window_key=key)
    assert status == 503 and "WINDOW_KEY: expected a valid key with the scopes events and recommend alone" in text
    assert not key or key not in text


def test_one_may_be_a_customer_whom_the_model_knows_but_no_deleted_one(shop):
    ask = lambda prefix: shop.get("/v1/window/customers", params={"prefix": prefix}).json()  # noqa: E731
    assert [c["customer"] for c in ask("99")][:3] == [99, 990, 991]
    assert [item["name"] for item in ask("123")[0]["recent"]] == ["product 124", "product 125"]
    shop.delete("/v1/customers/990")
    assert 990 not in [c["customer"] for c in ask("99")]


def test_the_monitor_reads_what_prometheus_reads(shop):
    body = shop.get("/v1/admin/monitor").json()
    assert "gnn_api_requests_total" in body["api"] and "gnn_ecommerce_monitor_alert_limit" in body["monitor"]
    assert (body["model"], body["bundles"]) == (None, []), "this model server has neither metrics nor versions"


@pytest.mark.parametrize("name", ["alerts.yml", "grafana.json"])
def test_every_metric_that_rules_and_dashboard_name_exists(shop, name):
    body = shop.get("/v1/admin/monitor").json()
    model = ModelMetrics(Shared(1), SimpleNamespace(engines=list), 1).text().decode()
    served = "".join(re.findall(r"# TYPE (\w+ )", body["api"] + body["monitor"] + model))
    text = (ROOT / "deploy" / "monitoring" / name).read_text(encoding="utf8")
    named = {metric.removesuffix("_bucket") for metric in re.findall(r"\bgnn_\w+", text)} - {"gnn_ecommerce"}
    assert len(named) >= 8 and named - set(served.split()) == set()


# In a browser


#: names of controls, and the contrast of each text with what is behind it
ACCESS = """() => {
  const light = c => c.slice(0, 3).map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, n) => sum + v * [.2126, .7152, .0722][n], 0)
  const rgb = text => text.match(/[\\d.]+/g).map(Number)
  const ground = e => rgb(getComputedStyle(e).backgroundColor)
  const behind = e => { while (ground(e)[3] === 0) e = e.parentElement; return ground(e) }
  const contrast = e => {
    const [a, b] = [light(rgb(getComputedStyle(e).color)), light(behind(e))]
    return (Math.max(a, b) + .05) / (Math.min(a, b) + .05)
  }
  const seen = [...document.body.querySelectorAll('*')].filter(e => e.getClientRects().length && !e.closest('svg'))
  const named = e => e.getAttribute('aria-label') || e.textContent.trim() || e.labels?.[0]?.textContent
  const texts = seen.filter(e => [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()))
  const nameless = seen.filter(e => e.matches('button, a, input, summary') && !named(e))
  return [...nameless, ...texts.filter(e => contrast(e) < 4.5)].map(e => `${contrast(e)} ${e.outerHTML.slice(0, 80)}`)
}"""


@pytest.fixture(params=["light", "dark"])
def page(browser, api, request):
    "A page of the shop on a phone that must not complain: a breach of its policy is an error of the console."
    size = {"width": 390, "height": 844}
    context = browser.new_context(
        base_url=api.url, viewport=size, color_scheme=request.param, reduced_motion="reduce", service_workers="block"
    )
    page, errors = context.new_page(), []
    page.set_default_timeout(60_000)
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    assert page.evaluate(ACCESS) == []
    assert page.evaluate("document.documentElement.scrollWidth") == size["width"]
    context.close()
    assert errors == []


def tiles(page, shelf):
    return [tile.get_attribute("data-product") for tile in page.locator(f"#{shelf} .tile").all()]


def sent(api, customer):
    "What a customer did: event types and products, in their order."
    rows = api.store.table("events")
    return [[row.event_type, row.product_id] for row in rows[rows.user_id == customer].itertuples()]


def test_clicks_are_events_and_the_shelves_follow(page, api, request):
    customer = "17" if "light" in request.node.name else "417"
    first = int(customer) % 300 + 1
    page.goto(f"/#{customer}")
    page.get_by_role("heading", name=f"You are customer {customer}").wait_for()
    page.locator("#for-you .tile").first.wait_for()
    assert tiles(page, "for-you")[:3] == [str(first + n) for n in range(3)]

    page.get_by_role("button", name=f"Look at product {first}").first.click()
    page.get_by_role("heading", name=f"Because you looked at product {first}").wait_for()
    assert "Because of product" in page.locator("#product .why").inner_text()
    page.locator("#because .plain").first.click()
    shown = page.locator("#because > .why").inner_text()
    assert f"you looked at product {first}" in shown and re.search(r"Sum\s+is the score\s+1\.000", shown)

    page.locator("#product").get_by_role("button", name=f"To cart: product {first}").click()
    page.get_by_role("button", name=re.compile("^Cart: 1")).wait_for()
    page.locator("#for-you").get_by_role("button", name=f"Buy: product {first + 2}").click()
    page.locator(f"#for-you [data-product='{first + 2}']").wait_for(state="detached")
    wait_for(lambda: len(sent(api, customer)) == 3)
    assert sent(api, customer) == [["view", str(first)], ["cart", str(first)], ["purchase", str(first + 2)]]

    page.locator("#drawer > summary").click()
    curl = page.locator(".call pre").all_text_contents()
    assert any('-H "Authorization: Bearer $KEY" --json' in text and "purchase" in text for text in curl)
    assert api.env["WINDOW_KEY"] not in page.content()


@pytest.mark.parametrize("page", ["light"], indirect=True)
def test_a_product_that_is_named_like_markup_is_a_name(page):
    page.goto("/#17")
    name = "<script>document.title = 'run'</script>"
    page.get_by_role("button", name=f"Look at {name}").first.click()
    page.locator("#product h2", has_text=name).wait_for()
    page.get_by_role("heading", name=f"Because you looked at {name}").wait_for()
    assert page.title() == "Shop window"


@pytest.mark.parametrize("page", ["light"], indirect=True)
def test_a_new_visitor_sees_what_is_popular_and_then_what_fits(page):
    page.goto("/#somebody-new")
    page.locator("#popular .tile").first.wait_for()
    assert page.locator("#for-you").is_hidden() and page.locator("#buy-again").is_hidden()
    page.locator("#popular .look").nth(6).click()
    page.locator("#for-you .badge", has_text="folded in").wait_for()


def test_the_monitor_draws_what_it_reads_for_a_key_with_the_scope(page, api, shop):
    shop.get("/v1/customers/17/recommendations")
    page.goto("/monitor")
    page.get_by_label("Key").fill(api.key)
    page.get_by_role("button", name="Look").click()
    page.locator("#clicks .dot").first.wait_for()
    routes, drift = page.locator("#routes").inner_text(), page.locator("#drift").inner_text()
    assert "/v1/customers/{customer_id}/recommendations" in routes
    assert [name in drift for name in ("event type", "price", "brand", "hour")] == [True] * 4
    assert "within" in page.locator("#headline").inner_text()
