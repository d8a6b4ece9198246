"""Every page of the site has an example, and all of them run, one process for all pages."""

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


@pytest.mark.parametrize("half", [0, 1])
def test_code_of_the_pages_runs(half, tmp_path):
    """Each page starts from the same few names; registered names differ, since one process runs several pages."""
    scripts = []
    for name in pages()[half::2]:
        if name in EXTRAS and find_spec(EXTRAS[name]) is None:
            continue
        found = blocks((ROOT / "docs" / name).read_text())
        if found:
            scripts.append(f"{name.removesuffix('.md').replace('-', '_')}.py")
            (tmp_path / scripts[-1]).write_text("\n".join([BESIDES.get(name, ""), *found]))
    for name, text in (("given.txt", GIVEN), ("runner.py", RUNNER)):
        (tmp_path / name).write_text(text)
    done = run_here("runner.py", "given.txt", *scripts, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]


def test_no_page_is_without_an_example():
    without = {name for name in pages() if not blocks((ROOT / "docs" / name).read_text())}
    assert without <= WITHOUT, without - WITHOUT
