"""The report page in headless Chromium: no script errors, and clicking a pair shows both clients."""

import shutil

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")


def test_page_needs_no_network(finished):
    text = (finished.folder / "report.html").read_text()
    assert 'src="http' not in text and "Feature browser" in text
    assert len(text) < 9_000_000


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (Debian package 'chromium')")
def test_clicks_in_the_feature_browser(finished):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        page = browser.new_page(viewport={"width": 800, "height": 1000})
        errors = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"file://{finished.folder / 'report.html'}")
        page.wait_for_selector("#browser .feature")
        assert page.evaluate("document.documentElement.scrollWidth") <= 800
        first = page.inner_text("#browser .feature h3")
        page.click("#browser .row >> nth=1")
        page.wait_for_function(
            "(first) => document.querySelector('#browser .feature h3').innerText !== first", arg=first
        )
        assert page.locator("#browser .side").count() == 2
        assert page.locator("#browser .picture canvas").count() > 0
        assert page.locator(".js-plotly-plot").count() >= 5
        assert errors == []
        browser.close()
