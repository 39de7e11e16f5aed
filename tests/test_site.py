"""The rendered book in a real browser that has no network: as files, and from a static server on this machine."""
import json
import re
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import yaml
from conftest import ROOT

CONTENTS = yaml.safe_load((ROOT / "_toc.yml").read_text())
PAGES = [CONTENTS["root"], *(entry["file"] for part in CONTENTS["parts"] for entry in part["chapters"])]


@pytest.fixture
def visit(browser):
    """`visit(url, width, scheme)` -> the loaded page; what went wrong meanwhile is collected in `visit.problems`."""
    contexts, problems = [], []

    def open_page(url: str, width: int = 1280, scheme: str = "light"):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        home = url.split("/", 3)[:3]
        page.on("console", lambda m: problems.append(f"console: {m.text} ({m.location.get('url', '')})") if m.type == "error" else None)
        page.on("pageerror", lambda e: problems.append(f"script: {e}"))
        page.on("requestfailed", lambda r: problems.append(f"request failed: {r.url[:200]}"))
        page.on("response", lambda r: problems.append(f"{r.status}: {r.url}") if r.status >= 400 else None)
        page.on("request", lambda r: problems.append(f"left home: {r.url[:200]}") if not r.url.startswith(("data:", "blob:"))
                and r.url.split("/", 3)[:3] != home else None)
        page.goto(url)
        page.wait_for_function("async () => !window.MathJax || Boolean(await MathJax.startup?.promise?.then(() => true))")
        page.wait_for_timeout(300)
        return page

    open_page.problems = problems
    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def server(site):
    """The site from a static server; yields its address."""
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args): pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=site)) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", PAGES)
def test_page(site, visit, name, width):
    page = visit((site / f"{name}.html").as_uri(), width)
    for theme in ("light", "dark"):
        page.evaluate("theme => document.documentElement.dataset.theme = theme", theme)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    for image in page.query_selector_all(".bd-article img"):
        assert (image.get_attribute("alt") or "").strip(), f"a figure has no alt text: {image.get_attribute('src')[:80]}"
        assert image.evaluate("i => i.complete && i.naturalWidth > 0"), f"a figure is broken: {image.get_attribute('alt')}"
    assert not page.query_selector_all("mjx-merror, .math.notranslate:not(:has(mjx-container))"), "an equation is not typeset"
    assert not visit.problems


@pytest.mark.parametrize("name", PAGES)
def test_no_directive_is_shown(site, name):
    text = re.sub(r"<[^>]+>", "", (site / f"{name}.html").read_text())
    assert not re.search(r"#\|\s*(export|hide|default_exp|eval)", text) and "default_exp" not in text


def test_first_page_is_the_scoreboard(site, visit):
    page = visit((site / "index.html").as_uri())
    page.wait_for_url("**/chapters/index.html")
    assert page.query_selector(".bd-article img") and page.query_selector(".bd-article table")
    assert not visit.problems


def test_dark_mode_switches_and_stays(server, visit):
    page = visit(f"{server}/{PAGES[1]}.html")
    ground = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(ground) == "rgb(255, 255, 255)"
    for _ in range(3):
        page.locator(".theme-switch-button:visible").first.click()
        if page.evaluate("document.documentElement.dataset.theme") == "dark":
            break
    dark = page.evaluate(ground)
    assert max(map(int, re.findall(r"\d+", dark)[:3])) < 64
    page.goto(f"{server}/{PAGES[2]}.html")
    assert page.evaluate(ground) == dark
    assert not visit.problems


@pytest.mark.parametrize("served", [True, False], ids=["server", "files"])
def test_search_finds_a_page(site, server, visit, served):
    page = visit((server if served else site.as_uri()) + "/search.html?q=dominance")
    page.wait_for_selector("#search-results li a", timeout=20_000)
    page.wait_for_timeout(500)
    assert page.query_selector_all("#search-results li a")
    assert not visit.problems


def test_widget_panel_has_a_visible_static_fallback(site, visit):
    page = visit((site / "chapters/02_posable_faces.html").as_uri(), 390)
    page.wait_for_selector(".jupyter-widgets", timeout=20_000)
    grid = page.locator(".cell:has(.jupyter-widgets) ~ .cell img").first
    assert grid.is_visible() and grid.bounding_box()["width"] > 200
    assert len(grid.get_attribute("alt")) > 40
    assert not visit.problems


@pytest.mark.parametrize("name", [p for p in PAGES if p.startswith("chapters/")])
def test_chapter_can_be_downloaded_and_launched(site, name):
    html = (site / f"{name}.html").read_text()
    [source] = set(re.findall(r'href="\.\./(_sources/[^"]+\.ipynb)"', html))
    notebook = json.loads((site / source).read_text())
    assert notebook["nbformat"] == 4 and "papermill" not in notebook["metadata"]
    for place in ("colab.research.google.com/github/", "mybinder.org/v2/gh/"):
        assert re.search(rf'href="https://{re.escape(place)}[^"]+{name}\.ipynb"', html), f"no launch button for {place}"
