"""`make gallery`: every script's figure or page as a small WebP beside it. Needs Chromium."""

from __future__ import annotations

import io
import runpy
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

HERE = Path(__file__).parent
SIZE = (760, 460)  # pixels of a figure
PAGE = (1200, 900)  # of the window that shows a page
LARGEST = 60_000  # bytes of a thumbnail
PATIENCE = 300_000  # milliseconds for a page of some megabytes on a busy machine


def main(names: list[str]) -> None:
    for script in sorted(HERE.glob("[0-9]*.py")):
        if names and not any(script.stem.startswith(name) for name in names):
            continue
        drawn = runpy.run_path(str(script))
        picture = Image.open(io.BytesIO(of_page(drawn["page"]) if "page" in drawn else of_figure(drawn["figure"])))
        size = stored(picture.convert("RGB"), script.with_suffix(".webp"))
        print(f"{script.stem}: {size} bytes")


def stored(picture: Image.Image, path: Path) -> int:
    """Write it at the best quality that keeps to the limit; bytes written."""
    picture.thumbnail((SIZE[0], SIZE[0]))
    for quality in (90, 75, 60, 40):
        picture.save(path, "WEBP", quality=quality, method=6)
        if path.stat().st_size <= LARGEST:
            break
    return path.stat().st_size


def of_figure(figure: Any) -> bytes:
    """PNG of a plotly figure."""
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "figure.html"
        figure.update_layout(width=SIZE[0] - 20, height=SIZE[1] - 20)
        figure.write_html(page, config={"displayModeBar": False})
        return of_page(page, SIZE)


def of_page(page: Path, size: tuple[int, int] = PAGE) -> bytes:
    """PNG of the top of a page."""
    from playwright.sync_api import sync_playwright

    browser = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        tab = opened.new_page(viewport={"width": size[0], "height": size[1]})
        tab.goto(page.as_uri(), timeout=PATIENCE)
        tab.wait_for_timeout(1500)
        return tab.screenshot(timeout=PATIENCE)


if __name__ == "__main__":
    main(sys.argv[1:])
