"""The questions featalign answers, one package each: configuration, run, result, page.

`compare`: in which basis do networks agree, and what does each way of fusing them cost? Every result is a
`StudyResult`: tidy frames, arrays, `save`, `to_frame`, `figures`, `page`; `load` reads any of them back.
"""

from featalign.studies.result import StudyResult, load, schema, study

__all__ = ["StudyResult", "load", "schema", "study"]
