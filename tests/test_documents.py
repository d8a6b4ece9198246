"""The code in README.md and CONTRIBUTING.md runs, and what they point to is there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    *(str(p.relative_to(ROOT)) for p in ROOT.glob("docs/*.md")),
]
GIVEN = """
import functools
import torch
from torch import nn
import featalign as fa

fa.diagnose = functools.partial(fa.diagnose, steps=60, sweep_steps=20)  # what is asked here is whether it runs

def network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 3))

x, x_test = torch.randn(200, 12), torch.randn(100, 12)
y, y_test = x[:, :3].argmax(1), x_test[:, :3].argmax(1)
model_a, model_b = network(0), network(1)
cost, activations, module, example = torch.rand(6, 6), torch.randn(400, 8), model_a, x[:2]
"""


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_code_runs(name, tmp_path):
    """In one process of its own, from top to bottom, since registered names stay."""
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / name).read_text(), re.M | re.S)
    assert blocks
    script = tmp_path / "script.py"
    script.write_text("\n".join([GIVEN, *blocks]))
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "page" / "report.html").is_file()


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_and_commands_are_there(name):
    """Relative links lead to files; every `featalign ...` is a command with the options that it is shown with."""
    import typer

    from featalign.cli import app

    text = (ROOT / name).read_text()
    for link in re.findall(r"\]\(([^)#]+)", text):
        assert "://" in link or ((ROOT / name).parent / link).exists(), link
    top = typer.main.get_command(app)
    shown = "" if name == "CHANGELOG.md" else text  # it names commands that are gone
    for line in re.findall(r"(?:^|`)featalign ((?:[a-z0-9]+ ?)+[^`\n]*)", shown, re.M):
        words, command = line.split("#")[0].split(), top
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]
        assert command is not top, line
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        given = {word.split("=")[0].rstrip(",.;") for word in words if re.match(r"--?[a-z]", word)}
        assert given <= known | {"--help"}, (line, given - known)


def test_every_method_is_in_the_table():
    from featalign.fuse import METHODS

    text = (ROOT / "README.md").read_text()
    assert not [name for name in METHODS.names() if f"`{name}`" not in text]
