"""The page kit: self-contained HTML from sections, tables, figures and widgets."""

from featalign.report.pack import split
from featalign.report.page import Section, page, paragraph, rich, write_page

__all__ = ["Section", "page", "paragraph", "rich", "split", "write_page"]
