"""Tables of the command line."""

import json

import numpy as np

from featalign.cli.output import print_rows


def test_a_dash_stands_for_what_there_is_no_figure_of(capsys):
    rows = [{"name": "one seed", "value": 0.123456, "spread": float("nan"), "why": None, "count": np.int64(3)}]
    print_rows(rows, as_json=False)
    found = [cell.strip() for cell in capsys.readouterr().out.splitlines()[3].strip("│").split("│")]
    assert found == ["one seed", "0.1235", "–", "–", "3"]
    print_rows([{"value": 0.123456}], as_json=True)
    assert json.loads(capsys.readouterr().out) == [{"value": 0.123456}]
