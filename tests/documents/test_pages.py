"""The code in README.md, CONTRIBUTING.md and on every page of the site runs: imports take as long as a page."""

from importlib.util import find_spec

import pytest

from tests.documents.given import BESIDES, GIVEN, ROOT, blocks, run_here

pytestmark = pytest.mark.long

WITHOUT = {
    *("install.md", "bibliography.md"),  # commands and a list
    *("vision.md", "paper.md"),  # tables, each with its command
}
EXTRAS = {"federated.md": "flwr"}  # pages whose code wants a package that is not always installed
RUNNER = """
import os, sys, traceback
given, *pages = map(os.path.abspath, sys.argv[1:])
for page in pages:
    names = {"__name__": page}
    os.mkdir(page + ".d")
    os.chdir(page + ".d")
    try:
        exec(compile(open(given).read(), given, "exec"), names)
        exec(compile(open(page).read(), page, "exec"), names)
    except Exception:
        traceback.print_exc()
        print("FAILED", page, file=sys.stderr)
        sys.exit(1)
"""


def pages():
    return sorted(path.name for path in (ROOT / "docs").glob("*.md"))


def test_code_of_all_documents_runs(tmp_path):
    """Each starts from the same few names in a folder of its own; registered names differ, for the process is one."""
    scripts = []
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs" / name for name in pages())):
        if path.name in EXTRAS and find_spec(EXTRAS[path.name]) is None:
            continue
        if found := blocks(path.read_text()):
            scripts.append(f"{path.stem.replace('-', '_')}.py")
            (tmp_path / scripts[-1]).write_text("\n".join([BESIDES.get(path.name, ""), *found]))
    for name, text in (("given.txt", GIVEN), ("runner.py", RUNNER)):
        (tmp_path / name).write_text(text)
    done = run_here("runner.py", "given.txt", *scripts, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    for name in ("README", "CONTRIBUTING"):
        assert (tmp_path / f"{name}.py.d" / "page" / "report.html").is_file()


def test_no_page_is_without_an_example():
    without = {name for name in pages() if not blocks((ROOT / "docs" / name).read_text())}
    assert without <= WITHOUT, without - WITHOUT
