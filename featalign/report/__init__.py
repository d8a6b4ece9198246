"""Self-contained HTML pages from run folders."""

from featalign.report.compare import build
from featalign.report.page import Section, page, paragraph, rich, write_page

__all__ = ["Section", "build", "page", "paragraph", "rich", "write_page"]
