"""The page's feature browser in a notebook: the same script, the same content."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from featalign.errors import DataUnavailable
from featalign.report.page import script_of, styles


def feature_browser(content: Mapping[str, Any]) -> Any:
    """An `anywidget.AnyWidget` of what `browser_content` returns.

    Raises `DataUnavailable` where the package anywidget is not installed.
    """
    try:
        import anywidget
        import traitlets
    except ImportError:
        raise DataUnavailable("the browser in a notebook needs the package anywidget: pip install anywidget") from None

    class FeatureBrowser(anywidget.AnyWidget):
        """The content, and the script that draws it."""

        _esm = script_of("widget.js")
        _css = styles("features.css")
        content = traitlets.Dict().tag(sync=True)

    return FeatureBrowser(content=dict(content))
