"""Self-contained HTML pages from run folders."""

from featalign.report.compare import build
from featalign.report.page import Section, page

__all__ = ["Section", "build", "page"]
