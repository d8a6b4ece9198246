"""The report page in headless Chromium: no script errors, and clicking a pair shows both clients."""

import shutil

import pytest

from featalign.compare import run
from featalign.config import RunConfig

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    config = RunConfig(
        seeds=1, epochs=8, probe=120, augmented=600, curve=3, methods=("vanilla", "ot-acts", "feature-ot")
    )
    return run(config, tmp_path_factory.mktemp("page") / "run", progress=False).folder


def test_page_needs_no_network(folder):
    text = (folder / "report.html").read_text()
    assert 'src="http' not in text and "Aligned-feature browser" in text
    assert len(text) < 9_000_000


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (Debian package 'chromium')")
def test_clicks_in_the_aligned_feature_browser(folder):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        page = browser.new_page()
        errors = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"file://{folder / 'report.html'}")
        page.wait_for_selector("#browser .list button")
        first = page.inner_text("#browser .cards")
        page.click("#browser .list button:nth-child(2)")
        assert page.inner_text("#browser .cards") != first
        assert page.locator("#browser .card").count() == 2
        assert page.locator("#browser .thumb canvas").count() > 0
        page.click('#browser button[data-kind="onlyB"]')
        assert page.locator("#browser .card").count() <= 1
        assert page.locator(".js-plotly-plot").count() >= 5
        assert errors == []
        browser.close()
