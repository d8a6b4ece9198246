"""Names and values that want to be code: nothing of them runs on a page, nothing leaves the run folder."""

import itertools
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

import featalign as fa
from featalign import storage
from featalign.errors import CorruptFile
from featalign.report import Section, coded, page, rich, write_page
from featalign.report.page import json_text

pytestmark = pytest.mark.long

PAYLOADS = [
    "<img src=x onerror=__pwned=1>",
    "<!--<script>",
    "</script><script>__pwned=1</script>",
    "\"'><svg onload=__pwned=1> onmouseover='__pwned=1'",
    "<a href=\"javascript:__pwned=1\" style='position:fixed'>x</a>",
    "{{7*7}}{% include 'page.html' %}${__pwned=1}%{x}",
    "a\u2028b\u2029c]]></title></style><script>__pwned=1</script>",
    "\u202eevil \u05e2\u05d1\u05e8\u05d9\u05ea &lt;b&gt; <b>bold</b> &amp;",
    "long " + "x" * 3000,
    "/etc/passwd",
    "nul\0 and half a pair \ud800",
    "__proto__",
]
PACKED = ("u8", "u16", "u32", "f32", "shards")  # numbers: text of cards lies in the table of strings
FOREIGN = """[...document.querySelectorAll('*')].filter((e) => ['IMG', 'IFRAME', 'OBJECT'].includes(e.tagName) ||
    [...e.attributes].some((a) => a.name.startsWith('on') ||
        (/href|src|action/.test(a.name) && /javascript:/i.test(a.value)))).length"""


def module(names, seed):
    """Three layers with names of one's choice."""
    torch.manual_seed(seed)
    layers = [nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, len(PAYLOADS))]
    found = nn.Sequential()
    for name, layer in zip((names[0], "r1", names[1], "r2", "head"), layers):
        found.add_module(name, layer)
    return found


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 12, generator=generator)
    return x, (x @ torch.randn(12, len(PAYLOADS), generator=generator)).argmax(1)


@pytest.fixture(scope="module")
def compared(data, tmp_path_factory):
    """A run folder of networks whose layers have bad names."""
    x, y = data
    names = (PAYLOADS[0], PAYLOADS[9])
    result = fa.compare(
        [module(names, 0), module(names, 1)], probe=x, evaluate=(x, y), curve=3, progress=False,
        methods=("vanilla", "ot-acts", "feature-project"),
    )  # fmt: skip
    return result.save(tmp_path_factory.mktemp("compared") / "run")


def rebuild(folder):
    """Write the page anew from what the run folder holds."""
    return write_page(folder / "report.html", fa.load(folder).page())


@pytest.fixture(scope="module")
def diagnosed(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("diagnosed") / "run"
    model = module((PAYLOADS[2], PAYLOADS[9]), 0)
    options = {"steps": 60, "sweep_steps": 10, "progress": False}
    fa.diagnose(model, data, class_names=PAYLOADS, title=PAYLOADS[6], out=folder, **options)
    return folder


def frames_tampered(folder, to, order):
    """Every text in frames, facts, options and widgets becomes a payload, the same one wherever it stands."""
    kept, turn, known = (
        {"inputs", "png", "kind", "basis", "stage", "measure", "study", "name", "metric", *PACKED},
        itertools.cycle(order),
        {},
    )

    def walk(value, key):
        if isinstance(value, dict):
            return {k: walk(v, k) for k, v in value.items()}
        if isinstance(value, list):
            return [walk(v, key) for v in value]
        if key in kept or not isinstance(value, str) or not value:
            return value
        return known.setdefault(value, f"{next(turn)} {len(known)}")

    shutil.copytree(folder, to)
    for name in ("results.json", "widgets.json"):
        storage.write_json(to / name, walk(json.loads((folder / name).read_text()), ""))
    return to


def looked_at(chromium, path, bypass_csp):
    """Open a page, click everything, and return what it did and shows."""
    context = chromium.new_context(bypass_csp=bypass_csp)
    view = context.new_page()
    errors, requests = [], []
    view.on("pageerror", lambda error: errors.append(str(error)))
    view.on("dialog", lambda dialog: errors.append(dialog.message))
    view.on("request", lambda request: requests.append(request.url))
    view.goto(path.as_uri())
    view.wait_for_function("document.querySelectorAll('.js-plotly-plot').length > 0")
    view.wait_for_selector(".features .feature")
    for place in range(view.locator(".features .toggle").count()):
        view.locator(".features .toggle").nth(place).click()
        view.locator(".features .toggle").nth(place).click()
    for place in range(min(4, view.locator(".features .row").count())):
        view.locator(".features .row").nth(place).click()
        view.wait_for_timeout(30)
    for text in ("x", "<img", ""):
        view.fill(".features .search", text)
    view.evaluate("document.querySelectorAll('main *').forEach((e) => e.dispatchEvent(new Event('mouseover')))")
    view.wait_for_timeout(100)
    found = {
        "pwned": view.evaluate("window.__pwned !== undefined || ({}).__pwned !== undefined"),
        "foreign": view.evaluate(FOREIGN),
        "sections": view.locator("main > section").count(),
        "figures": view.locator(".js-plotly-plot").count(),
        "title": view.title(),
        "text": view.evaluate("document.body.textContent"),
        "errors": errors,
        "requests": [url for url in requests if not url.startswith(("file:", "data:", "blob:"))],
    }
    context.close()
    return found


def sections_of(folder):
    return (folder / "report.html").read_text().count("<section")


def harmless(found, sections):
    assert not found["pwned"] and found["foreign"] == 0 and found["errors"] == [] and found["requests"] == []
    assert found["sections"] == sections and "49{%" not in found["text"]


@pytest.mark.browser
@pytest.mark.parametrize("bypass_csp", [True, False])
def test_layer_names_on_the_compare_page(compared, chromium, bypass_csp):
    found = looked_at(chromium, compared / "report.html", bypass_csp)
    harmless(found, 11)
    assert found["figures"] == 8
    assert f"Space {PAYLOADS[0]}" in found["text"] and f"Space {PAYLOADS[9]}" in found["text"]


@pytest.mark.browser
@pytest.mark.parametrize("bypass_csp", [True, False])
def test_layer_and_class_names_on_the_diagnosis_page(diagnosed, chromium, bypass_csp):
    found = looked_at(chromium, diagnosed / "report.html", bypass_csp)
    harmless(found, sections_of(diagnosed))
    assert PAYLOADS[6] in found["title"] and f"Layer {PAYLOADS[2]}" in found["text"]


@pytest.mark.browser
def test_a_tampered_run_folder(compared, diagnosed, chromium, tmp_path, monkeypatch):
    """Every text of a run folder, names of methods, clients and spaces: all payloads take turns."""
    order = PAYLOADS[6:] + PAYLOADS[:6]
    monkeypatch.setattr(f"{__name__}.PAYLOADS", order)
    for run, sections in ((compared, 11), (diagnosed, sections_of(diagnosed))):
        folder = frames_tampered(run, tmp_path / run.parent.name, order)
        rebuild(folder)
        found = looked_at(chromium, folder / "report.html", True)
        harmless(found, sections)
        assert sum(payload in found["text"] for payload in order) >= 3  # shown as what they are: text


def test_nothing_is_written_outside_the_run_folder(compared, diagnosed):
    for folder in (compared, diagnosed):
        assert sorted(path.name for path in folder.parent.iterdir()) == ["run"]
        assert all(path.resolve().is_relative_to(folder) for path in folder.rglob("*"))
    assert (compared / "saes" / "A" / storage.safe_name("/etc/passwd") / "cfg.json").is_file()
    assert (diagnosed / "dictionaries" / storage.safe_name(PAYLOADS[2]) / "cfg.json").is_file()


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content["frames"].pop("methods"),
        lambda content: content["frames"].update(spaces=[1, 2]),
        lambda content: content["config"].update(mixing="much"),
        lambda content: content["facts"].clear(),
        lambda content: content["facts"].update(metrics=[]),
        lambda content: content["frames"]["rows"][0].update(kind="unknown"),
        lambda content: content["frames"]["scores"][0].update(value="high"),
    ],
)
def test_results_of_another_shape_are_named(compared, damage, tmp_path):
    shutil.copytree(compared, tmp_path / "run")
    content = json.loads((compared / "results.json").read_text())
    damage(content)
    storage.write_json(tmp_path / "run" / "results.json", content)
    with pytest.raises(CorruptFile) as caught:
        rebuild(tmp_path / "run")
    assert len(str(caught.value).splitlines()) == 1


def test_data_blocks_hold_no_markup():
    text = json_text({payload: [payload, float("nan")] for payload in PAYLOADS})
    assert not set("<>&\u2028\u2029") & set(text)
    assert list(json.loads(text)) == PAYLOADS


def test_plain_text_is_escaped_and_rich_text_escapes_its_values(tmp_path):
    section = Section(PAYLOADS[0]).text(PAYLOADS[2]).verdict(PAYLOADS[5]).code(PAYLOADS[1])
    section.table([PAYLOADS[3]], [[PAYLOADS[0]]], classes=[PAYLOADS[3]]).text(rich("<b>{}</b>", PAYLOADS[0]))
    text = page(PAYLOADS[6], [PAYLOADS[0]], [section])
    body = re.sub(r"<script.*?</script>|<style.*?</style>", "", text, flags=re.DOTALL)
    tags = {tag.lower() for tag in re.findall(r"<\s*/?([a-zA-Z0-9!-]+)", body)}
    allowed = (
        "!doctype html head meta title body header h1 div p nav a main section h2 pre table thead tbody tr th td b"
    )
    assert tags <= set(allowed.split())
    unquoted = re.sub(r'="[^"]*"', "=", body)
    assert not re.search(r"<[^>]*\son\w+\s*=", unquoted) and "{{7*7}}" in body
    with pytest.raises(TypeError, match="Markup"):
        section.add("<p>text</p>")
    assert write_page(tmp_path / "a.html", page(PAYLOADS[10], [], [])).read_bytes().decode("utf-8")


def test_code_between_backticks_is_escaped_too():
    assert coded("as `a < b` says & more") == "as <code>a &lt; b</code> says &amp; more"
    assert coded("a lone ` <b>") == "a lone ` &lt;b&gt;"


def test_columns_of_words_stand_left_and_numbers_right(tmp_path):
    rows = [["a", 12, "–", "none", "3.5 ± 0.1", "MB"], ["b", "+0.23", "1,234", "public probe", "7 %", "x"]]
    text = page("t", [], [Section("s").table(["run", "up", "n", "refit", "score", "u"], rows)])
    assert text.count('<td class="words">') == 2 and '<th class="words">refit</th>' in text


def test_markup_is_made_by_templates_alone():
    """No HTML from f-strings: `Markup` of anything but a constant or an asset appears nowhere, nor does `|safe`."""
    for path in Path(fa.__file__).parent.rglob("*"):
        if path.suffix in {".py", ".html"}:
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"Markup\(\s*f[\"']|\|\s*safe\b|innerHTML", text), path
            if path.suffix == ".html":
                continue
            assert path.name == "page.py" or not re.search(r"rich\(\s*f[\"']", text), path
    for path in (Path(fa.__file__).parent / "report").glob("*.js"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text), (
            path
        )
        assert len(text.splitlines()) < 400
