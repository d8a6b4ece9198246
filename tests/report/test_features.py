"""The feature browser in Chromium: bounded rows, keys, search, contrast, escaping, files beside, notebooks."""

import json
import sys
import types

import pytest

from featalign.errors import DataUnavailable
from featalign.report import Section, page, write_page
from featalign.report.page import json_text, script_of, styles
from featalign.report.widget import feature_browser
from tests.report.clicks import SHARD, synthetic, written
from tests.report.test_payloads import FOREIGN, PAYLOADS

pytestmark = [pytest.mark.browser, pytest.mark.long]
FEATURES = 1500
HEAD = ".features .feature h3"
CONTRAST = """() => {
    const parse = (text) => { const v = text.match(/[\\d.]+/g).map(Number); return v.length < 4 ? [...v, 1] : v; };
    const over = (a, b) => [0, 1, 2].map((k) => a[3] * a[k] + (1 - a[3]) * b[k]).concat(1);
    const ground = (e) => {
        const layers = [];
        for (let p = e; p; p = p.parentElement) layers.push(parse(getComputedStyle(p).backgroundColor));
        const body = parse(getComputedStyle(document.body).backgroundColor);
        return layers.reverse().reduce((below, layer) => over(layer, below), body);
    };
    const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    const light = (c) => [0, 1, 2].map((k) => linear(c[k] / 255))
        .reduce((sum, v, k) => sum + v * [0.2126, 0.7152, 0.0722][k], 0);
    const found = {};
    document.querySelectorAll('body *').forEach((e) => {
        const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
        if (!own || !e.getClientRects().length || e.closest('script, style')) return;
        const style = getComputedStyle(e), text = parse(e.namespaceURI.includes('svg') ? style.fill : style.color);
        const [a, b] = [light(over(text, ground(e))), light(ground(e))];
        const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        const name = e.tagName + '.' + (e.getAttribute('class') || '');
        found[name] = Math.min(found[name] ?? 99, ratio);
    });
    return found;
}"""


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return written(synthetic(FEATURES), tmp_path_factory.mktemp("features"))


@pytest.fixture
def view(chromium, path):
    opened, errors = opened_page(chromium, path)
    yield opened
    opened.context.close()
    assert errors == []


def opened_page(chromium, path, **options):
    opened = chromium.new_context(viewport={"width": 1200, "height": 1000}, **options).new_page()
    opened.set_default_timeout(120_000)
    errors = []
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.goto(path.as_uri())
    opened.wait_for_selector(HEAD)
    return opened, errors


def heading(view, other_than=""):
    view.wait_for_function("([head, old]) => document.querySelector(head).textContent !== old", arg=[HEAD, other_than])
    return view.text_content(HEAD)


def shown(view):
    return int(view.text_content(".features .status").split(" of ")[0].replace(",", ""))


def test_every_feature_is_in_the_list_and_few_rows_are_in_the_page(view):
    content = synthetic(FEATURES)
    pairs, several = FEATURES // 2 + 4 * (FEATURES // 50), FEATURES // 50
    alone = [FEATURES - FEATURES // 2 - 3 * several] * 2
    assert len(content["blocks"]) == 2
    total = int(view.text_content(".features .status").split(" of ")[1].split()[0].replace(",", ""))
    assert total == pairs + sum(alone)
    dead = sum(int(part.text_content()) for part in view.query_selector_all(".toggle.dead b"))
    assert shown(view) == total - dead and dead == 2 * (FEATURES // 10)  # those that fire too rarely to say included
    assert view.locator(".features .row").count() < 40 and view.locator(".features *").count() < 3000
    view.evaluate("document.querySelector('.features .list').scrollTop = 1e9")
    last = view.locator(".features .row").last
    # rows are drawn on the next frame, whenever a busy machine gets to it
    view.wait_for_selector(f".features .row[aria-posinset='{shown(view)}']", timeout=5000)
    assert last.get_attribute("aria-posinset") == last.get_attribute("aria-setsize") == str(shown(view))
    assert view.locator(".features .row").count() < 40


def test_keys(view):
    first = heading(view)
    view.focus(".features .list")
    view.keyboard.press("ArrowDown")
    second = heading(view, first)
    assert view.get_attribute(".features .row.on", "aria-posinset") == "2"
    active = view.get_attribute(".features .list", "aria-activedescendant")
    assert view.get_attribute(f"#{active}", "aria-selected") == "true"
    view.keyboard.press("End")
    end = heading(view, second)
    view.keyboard.press("Home")
    assert heading(view, end) == first
    view.keyboard.press("/")
    assert view.evaluate("document.activeElement.className") == "search"
    view.keyboard.type("w77")
    fewer = shown(view)
    view.keyboard.press("Enter")
    assert view.evaluate("document.activeElement.className") == "list" and "open: " in view.text_content(".status")
    view.keyboard.press("Escape")
    assert shown(view) > fewer and view.input_value(".features .search") == ""


def test_search_by_number_word_and_class_and_ranges(view):
    everything = shown(view)
    view.fill(".search", "7")
    titles = [row.text_content() for row in view.query_selector_all(".features .row .name")]
    assert titles[0] == "A 7 ↔ B 7" and len(titles) > 1
    view.fill(".search", "ship")
    some = shown(view)
    assert 0 < some < everything
    view.fill(".search", "<none of these>")
    assert shown(view) == 0 and "Esc clears" in view.text_content(".detail")
    view.fill(".search", "")
    view.fill("[aria-label='score from']", "0.5")
    assert 0 < shown(view) < everything
    values = [float(part.text_content()) for part in view.query_selector_all(".features .row .figure")]
    assert min(values) >= 0.5 and values == sorted(values, reverse=True)
    view.fill("[aria-label='active on, % from']", "5")
    assert shown(view) < everything / 2


def test_kinds_sorting_maps_and_flow(view):
    view.click(".toggle.matched")
    assert view.get_attribute(".toggle.matched", "aria-pressed") == "false"
    assert view.locator(".row .chip.matched").count() == 0
    view.click(".toggle.matched")
    view.click(".flow .segment.split >> nth=0")
    assert shown(view) == 2 * (FEATURES // 50)
    view.click(".flow .segment.split >> nth=0")
    view.select_option(".tools select", "density")
    before = heading(view)
    box = view.query_selector(".map canvas >> nth=1").bounding_box()
    for step in range(1, 30):
        view.mouse.click(box["x"] + step * box["width"] / 30, box["y"] + step * box["height"] / 30)
    assert heading(view, before).startswith("A ")
    assert view.locator(".flow .band").count() == 3


def test_both_clients_stand_side_by_side_on_the_same_inputs(view):
    view.click(".row:has(.chip.matched) >> nth=0")
    view.wait_for_selector(".side >> nth=1")
    assert view.locator(".side").count() == 2 and view.locator(".strip.two").count() >= 8
    strip = view.query_selector(".strip.two")
    words = [
        [token.text_content() for token in cell.query_selector_all(".tokens span")]
        for cell in strip.query_selector_all(".cell")
    ]
    assert words[0] == words[1] and len(words[0]) == 25
    assert view.locator(".strip.two >> nth=0 >> .top").count() == 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(chromium, path, scheme):
    opened, _ = opened_page(chromium, path, color_scheme=scheme)
    view_of_token = opened.evaluate("getComputedStyle(document.querySelector('.tokens .top')).backgroundColor")
    assert "rgb" in view_of_token and not view_of_token.endswith(", 0)")
    found = opened.evaluate(CONTRAST)
    opened.context.close()
    assert len(found) > 15 and {name: ratio for name, ratio in found.items() if ratio < 4.5} == {}


def test_no_width_needs_scrolling_sideways(chromium, path):
    opened, _ = opened_page(chromium, path)
    for width in (420, 800, 1400):
        opened.set_viewport_size({"width": width, "height": 900})
        assert opened.evaluate("document.documentElement.scrollWidth") <= width
    opened.context.close()


def test_files_beside_the_page(chromium, path, tmp_path):
    beside = written(synthetic(FEATURES), tmp_path, beside=True)
    assert beside.stat().st_size < path.stat().st_size and len(list((tmp_path / "features").glob("*.js"))) == 12
    opened, errors = opened_page(chromium, beside)
    first = opened.text_content(HEAD)
    opened.click(".features .row >> nth=3")
    assert heading(opened, first) and errors == []
    for file in (tmp_path / "features").glob("*.js"):
        file.unlink()
    opened.reload()
    opened.wait_for_selector(".detail .note")
    assert "beside this page is missing" in opened.text_content(".detail .note") and errors == []
    opened.context.close()


def test_names_and_tokens_that_want_to_be_code(chromium, tmp_path):
    content = synthetic(3 * SHARD // 2, strings=40, classes=PAYLOADS[:3], clients=PAYLOADS[:2])
    content["strings"] = ["", *(PAYLOADS[k % len(PAYLOADS)] + str(k) for k in range(39))]
    content["sites"], content["nouns"], content["row"] = [PAYLOADS[2]], [PAYLOADS[3]] * 2, PAYLOADS[4]
    content["blocks"][0]["notes"] = [PAYLOADS[2]] * content["blocks"][0]["latents"]
    content["pairs"][0]["terms"] = dict.fromkeys(content["pairs"][0]["terms"], PAYLOADS[0])
    for bypass in (True, False):
        opened, errors = opened_page(chromium, written(content, tmp_path), bypass_csp=bypass)
        opened.fill(".search", PAYLOADS[0])
        opened.evaluate("document.querySelectorAll('main *').forEach((e) => e.dispatchEvent(new Event('mouseover')))")
        assert opened.evaluate(FOREIGN) == 0 and not opened.evaluate("window.__pwned !== undefined") and errors == []
        assert PAYLOADS[0] in opened.text_content(HEAD) or PAYLOADS[1] in opened.text_content(HEAD)
        opened.context.close()


def test_data_that_cannot_be_read_are_said_in_one_line(chromium, tmp_path):
    broken = synthetic(SHARD)
    broken["blocks"][0]["density"] = {"f32": "no base64!"}
    half = synthetic(SHARD)
    half["shards"] = ["AAAA"] * len(half["shards"])
    sections = [Section("A").widget("features", "a", broken), Section("B").widget("features", "b", half)]
    path = write_page(tmp_path / "page.html", page("x", [], sections))
    opened = chromium.new_page()
    errors = []
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.goto(path.as_uri())
    opened.wait_for_selector("#b .detail .note")
    assert "cannot be read" in opened.text_content("#a") and "cannot be read" in opened.text_content("#b .detail")
    assert errors == []
    opened.close()


def test_the_same_browser_in_a_notebook(chromium, monkeypatch, tmp_path):
    fake = types.ModuleType("anywidget")
    fake.AnyWidget = type("AnyWidget", (pytest.importorskip("traitlets").HasTraits,), {})
    monkeypatch.setitem(sys.modules, "anywidget", fake)
    widget = feature_browser(synthetic(SHARD))
    assert widget._esm == script_of("widget.js") and styles("features.css") == widget._css and widget.content["pairs"]
    code = widget._esm.replace("export default", "const widget =")
    call = "widget.render({ model: { get: () => content }, el: document.getElementById('cell') });"
    text = (
        f"<html><head><style>{widget._css}</style></head><body><div id='cell'></div>"
        f"<script type='module'>{code}const content = {json_text(widget.content)};{call}</script></body></html>"
    )
    (tmp_path / "cell.html").write_text(text)
    opened, errors = opened_page(chromium, tmp_path / "cell.html")
    assert opened.locator("#cell .row").count() > 5 and errors == []
    opened.context.close()


def test_a_notebook_without_anywidget_says_so_in_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "anywidget", None)
    with pytest.raises(DataUnavailable, match="pip install anywidget") as caught:
        feature_browser({})
    assert len(str(caught.value).splitlines()) == 1


def test_content_is_plain_json():
    assert json.loads(json.dumps(synthetic(10)))["version"] == 1
