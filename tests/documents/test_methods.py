"""The method guide: every registered method has a page with all its parts, without anybody listing it."""

import pytest

from featalign.align import MATCHERS, SpaceMap, matcher
from featalign.fuse import METHODS
from sitegen import methods, pictures
from tests.documents.given import ROOT

PARTS = ("## Equation", "## Picture", "## Options", "## Needs and stages", "## Figures", "## Run it")
OWN = sorted(set(METHODS.names()))


@pytest.mark.parametrize("name", OWN)
def test_a_page_has_all_its_parts(name):
    text = methods.page(name)
    assert all(part in text for part in PARTS) and "$$" in text
    for option in METHODS[name].options:
        assert f"`{option}`" in text and "| Union |" not in text and "| Literal |" not in text
    assert METHODS[name].summary in text


def test_shipped_methods_say_when_they_win():
    shipped = [name for name in OWN if METHODS[name].function.__module__.startswith("featalign.")]
    missing = [name for name in shipped if not (ROOT / "docs" / "methods" / f"{name}.md").exists()]
    assert not missing, f"write docs/methods/NAME.md: equation and when it wins, for {missing}"


def test_a_new_method_has_a_page_by_itself():
    @matcher("page-of-its-own", default=False)
    def mine(pair, *, power: float = 2.0) -> SpaceMap:
        """Units left where they are.

        Args:
            power: of nothing at all,
                over two lines.
        """
        return SpaceMap.identity(pair.target.size)

    try:
        text = methods.pages()["methods/page-of-its-own.md"]
        assert "Units left where they are." in text and "* `power`: of nothing at all, over two lines." in text
        assert "| `power` | a number | `2.0` |" in text and "page-of-its-own" in pictures.missing()
    finally:
        del MATCHERS._entries["page-of-its-own"]
        METHODS._entries.pop("page-of-its-own", None)


def test_pictures_show_a_twin_where_it_stands():
    """The method that matches by activations finds the planted order: its map is a diagonal."""
    problem, turn = pictures.planted_pair(linear=False)
    drawn = pictures.maps(problem, turn, "ot-acts")
    for row in range(pictures.WIDTH):
        assert f'x="{row * pictures.CELL}" y="{row * pictures.CELL}"' in drawn
    assert drawn.count("fill-opacity") == 2 * pictures.WIDTH
    assert pictures.maps(problem, turn, "vanilla") != drawn
