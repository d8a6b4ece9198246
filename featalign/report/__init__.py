"""The page kit: self-contained HTML from sections, tables, figures and widgets."""

from featalign.report.pack import split
from featalign.report.page import Section, coded, page, paragraph, rich, write_page

__all__ = ["Section", "coded", "page", "paragraph", "rich", "split", "write_page"]
