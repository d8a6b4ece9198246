"""The method guide: a page for every registered method, from its docstring, signature, pictures and figures.

`docs/methods/NAME.md`, where there is one, adds the equation and when the method wins; a method without it has a page
all the same.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

from featalign.options import describe
from sitegen.measured import method_rows, shown

NOTES = Path(__file__).parent.parent / "docs" / "methods"
REFIT = {
    "optional": "The closed-form refit may follow (`refit=True`).",
    "required": "The closed-form refit always follows: without it the network means nothing.",
    "none": "No refit: what the method proposes is the network.",
}
RULE = "$$W = \\sum_k \\lambda_k\\, O_k\\, W_k\\, R_k$$"
INTRODUCTION = f"""# Methods

Every method chooses, for each hidden space and each client, an out-map $O_k$ and an in-map $R_k$ (or a whole network);
one rule turns them into weights:

{RULE}

`fa.fuse(models, probe=x, method=NAME)` runs one, `fa.compare(..., methods=(NAME, ...))` puts several into one table,
and `featalign fuse A B --probe x.npz --out fused --method NAME --option KEY=VALUE` does it from the command line. A
method of your own is [one decorated function](../own.md); it appears here by itself.

| name | basis | what every fused space holds |
|---|---|---|
"""


def names() -> list[str]:
    from featalign.fuse import METHODS

    return METHODS.names()


def pages() -> dict[str, str]:
    """An index and `methods/NAME.md` for each registered method."""
    from featalign.fuse import METHODS

    rows = [f"| [`{name}`]({name}.md) | {METHODS[name].basis} | {METHODS[name].summary} |" for name in names()]
    return {"methods/index.md": INTRODUCTION + "\n".join(rows) + "\n"} | {
        f"methods/{name}.md": page(name) for name in names()
    }


def page(name: str, drawn: set[str] | None = None) -> str:
    """One method; `drawn` are the pictures that there are (all, unless said otherwise)."""
    from featalign.fuse import METHODS

    method = METHODS[name]
    notes = NOTES / f"{name}.md"
    parts = [f"# `{name}`", paragraph(method), notes.read_text("utf-8").strip() if notes.exists() else generic(method)]
    parts += ["## Picture", picture(name, drawn), "## Options", options(method), "## Needs and stages", needs(method)]
    parts += ["## Figures", figures(name), "## Run it", example(name, method)]
    return "\n\n".join(parts) + "\n"


def paragraph(method: Any) -> str:
    """The docstring of the function that was registered, its arguments as a list."""
    text = inspect.cleandoc(inspect.unwrap(method.function).__doc__ or method.summary)
    if "Args:" not in text:
        return text
    before, _, rest = text.partition("Args:\n")
    listed, _, after = rest.partition("\n\n")
    items = re.sub(r"^    (\w+): ", r"* `\1`: ", re.sub(r"\n {8}", " ", listed), flags=re.M)
    return f"{before}{items}\n\n{after}".strip()


def generic(method: Any) -> str:
    """Equation of a method that has no notes."""
    kind = {"neuron": "units", "feature": "latents", "pool": "a pool of all clients' units", "none": "positions"}
    return f"## Equation\n\n{RULE}\n\nwith maps chosen from {kind.get(method.basis, method.basis)}."


MAPS = (
    "What each fused unit (a row) takes from the units of two networks, A on the left, B on the right. They are twins "
    "up to the order of their units (or a rotation of a linear space) and some noise; B's units stand where their "
    "twins stand, so that a diagonal is the truth."
)
RESPONSE = (
    "Two toy models with the same 24 features in 8 dimensions, fused: row `i` is what comes out when only feature `i` "
    "goes in, so that a diagonal is a network that kept its features."
)


def picture(name: str, drawn: set[str] | None) -> str:
    """The pictures of a method, of those that there are."""
    shown = {f"{name}-maps.svg": MAPS, f"{name}-response.svg": RESPONSE}
    parts = [
        f"![{words.partition('.')[0]}]({file})\n\n{words}"
        for file, words in shown.items()
        if drawn is None or file in drawn
    ]
    return "\n\n".join(parts) or "None: the method takes neither of the two small pairs that are drawn here."


def options(method: Any) -> str:
    if not method.options:
        return "None."
    rows = ["| option | type | default |", "|---|---|---|"]
    for name, (kind, default) in method.options.items():
        rows.append(f"| `{name}` | {describe(kind)} | `{default}` |")
    return "\n".join(rows)


def needs(method: Any) -> str:
    from featalign.fuse.needs import NEEDS

    lines = [f"* {REFIT[method.refit]}"]
    lines += [f"* `{need}`: {(NEEDS[need].__doc__ or '').strip().splitlines()[0]}" for need in method.needs]
    lines.append("* A network fused with itself comes back." if method.exact else "* Not exact on identical networks.")
    if not method.default:
        lines.append("* Runs only when it is named.")
    return "\n".join(lines)


def figures(name: str) -> str:
    found = method_rows(name)
    if not found:
        return "None measured yet; `featalign compare --methods " + name + "` gives yours."
    lines = []
    for title, command, row in found:
        values = ", ".join(f"{key.replace('_', ' ')} {shown(value)}" for key, value in row.items() if key != "method")
        lines.append(f"* [{title}](../measured.md) (`{command}`): {values}")
    return "\n".join(lines)


def example(name: str, method: Any) -> str:
    refit = ", refit=True" if method.refit == "optional" else ""
    return f"```python\nfused = fa.fuse([model_a, model_b], probe=x, method={name!r}{refit})\nfused.module\n```"
