"""`fa.compare` on modules of one's own: every task, bad input, one network, no hidden space, default methods."""

import numpy as np
import pytest
import torch
from torch import nn

import featalign as fa
from featalign.errors import BadOption, FeatalignError
from featalign.fuse import METHODS
from featalign.spaces import collect
from tests.compare.conftest import trained
from tests.features.content import rows_of

pytestmark = pytest.mark.long

QUICK = {"curve": 0, "evidence": False, "progress": False}


def test_table_page_and_files_in_one_call(own, tmp_path):
    modules, x, y = own
    before = [parameter.clone() for parameter in modules[0].parameters()]
    result = fa.compare(
        modules, x[:200], (x, y), methods=("vanilla", "ot-acts"), curve=3, progress=False, out=tmp_path / "r"
    )
    frame = result.to_frame()
    assert frame.loc["ot-acts+refit", "accuracy"] > frame.loc["vanilla", "accuracy"]
    assert "ot-acts" in result._repr_html_() and {"scores", "mixing", "polysemanticity"} <= set(result.figures)
    assert "ot-acts" in repr(result) and len(repr(result)) < 10_000
    assert all(torch.equal(p, q) for p, q in zip(before, modules[0].parameters()))
    page = (tmp_path / "r" / "report.html").read_text().partition("<body>")[2].rpartition("<script>")[0]
    assert "2 networks compared" in page and not any(
        word in page for word in ("digits", "special", "--config", "data set")
    )
    assert fa.load(tmp_path / "r").page() == result.page()


def test_defaults_are_what_the_networks_allow_and_the_rest_says_why(own):
    modules, x, y = own
    wide = trained(2, x, y, widths=(20, 12), steps=20)
    result = fa.compare([wide, modules[1]], x[:200], (x, y), expansion=0.5, **QUICK)
    methods = result.frames["methods"].set_index("method")
    assert set(methods.index) == set(METHODS.names())
    assert (methods["available"] == (methods["reason"] == "")).all()
    assert "20 units in client A and 16" in methods.loc["vanilla", "reason"]
    assert "defaults" in methods.loc["sinkhorn", "reason"] and methods.loc["ot-acts", "available"]
    assert set(result.frames["rows"]["method"]) - {""} == set(methods.index[methods["available"]])
    with pytest.raises(BadOption, match="'vanilla' is not possible here"):
        fa.compare([wide, modules[1]], x[:200], (x, y), methods=("vanilla",), **QUICK)


def test_a_default_that_fails_on_the_way_does_not_end_the_run(own, monkeypatch):
    from dataclasses import replace

    modules, x, y = own

    def fails(problem):
        raise BadOption("the pool is smaller than the layer")

    monkeypatch.setitem(METHODS._entries, "zip", replace(METHODS["zip"], function=fails))
    result = fa.compare(modules, x[:200], (x, y), expansion=0.5, **QUICK)
    methods = result.frames["methods"].set_index("method")
    assert methods.loc["zip", "reason"] == "the pool is smaller than the layer" and methods.loc["ot-acts", "available"]
    assert "the pool is smaller" in result.page()
    with pytest.raises(BadOption, match="pool"):
        fa.compare(modules, x[:200], (x, y), methods=("zip",), **QUICK)


def test_dictionaries_that_cannot_be_trained_leave_the_rest_alone(own):
    modules, x, y = own
    result = fa.compare(modules, x[:24], (x, y), curve=0, progress=False)
    methods, spaces = result.frames["methods"].set_index("method"), result.frames["spaces"]
    assert "dictionaries" in methods.loc["feature-project", "reason"] and methods.loc["ot-acts", "available"]
    assert spaces["regime"].notna().all() and set(result.frames["matches"]["basis"]) == {"neuron"}
    assert result.page()
    with pytest.raises(FeatalignError, match="32 or more"):
        fa.compare(modules, x[:24], (x, y), methods=("feature-project",), **QUICK)


@pytest.mark.parametrize("count", [1, 2])
def test_one_network_and_no_hidden_space(count, tmp_path):
    x = torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
    modules = [nn.Linear(5, 3) for _ in range(count)]
    result = fa.compare(modules, x, (x, x[:, :3].argmax(1)), progress=False, out=tmp_path / "r")
    page = (tmp_path / "r" / "report.html").read_text()
    assert ("nothing to align or to fuse" if count == 1 else "no hidden space") in page
    assert len(result.to_frame()) == (1 if count == 1 else 11)
    assert fa.load(tmp_path / "r").frames["scores"].equals(result.frames["scores"])


def test_regressors_speak_of_their_own_metric(own, tmp_path):
    _, x, _ = own
    y = (x[:, :2] ** 2).sum(1, keepdim=True)
    modules = [trained(s, x, y, nn.functional.mse_loss, outputs=1, steps=60) for s in (0, 1)]
    result = fa.compare(
        modules, x[:200], (x, y), curve=3, methods=("vanilla", "ot-acts"), evidence=False, progress=False
    )
    frame = result.to_frame()
    assert result.metric.name == "mse" and "ensemble-mean-logits" not in frame.index
    assert frame[frame["kind"] == "one-shot"]["mse"].is_monotonic_increasing
    assert (frame["to_best_client"] <= 0).loc["vanilla"]
    page = result.page().partition("<body>")[2]
    assert "Mse: lower is better" in page and "ccuracy" not in page
    assert result.figures["mixing"].layout.yaxis.title.text == "mse"


class Tokens(nn.Module):
    """A language model of one block without attention: embedding, residual layer, readout."""

    def __init__(self, vocabulary=11, width=8):
        super().__init__()
        self.embed, self.fc1, self.fc2 = nn.Embedding(vocabulary, width), nn.Linear(width, 16), nn.Linear(16, width)
        self.act, self.head = nn.ReLU(), nn.Linear(width, vocabulary)

    def forward(self, tokens):
        h = self.embed(tokens)
        return self.head(h + self.fc2(self.act(self.fc1(h))))


def test_language_models_are_scored_by_loss_and_shown_as_text(tmp_path):
    torch.manual_seed(0)
    tokens = torch.randint(0, 11, (60, 7))
    modules = [Tokens() for _ in range(2)]
    words = [f"w{k}" for k in range(11)]

    class Decoder:
        def decode(self, ids):
            return " ".join(words[i] for i in ids)

    result = fa.compare(
        modules,
        tokens,
        methods=("vanilla", "ot-acts"),
        curve=0,
        progress=False,
        tokenizer=Decoder(),
        out=tmp_path / "r",
    )
    assert result.facts["task"] == "next-token" and result.metric.unit == "nats"
    assert any("on the probe" in note for note in result.facts["notes"])
    shown = result.widgets["browser"]
    assert shown["classes"] == [] and shown["row"] == "tokens"
    assert any(text.startswith("w") for text in shown["strings"])
    row = next(row for row in rows_of(shown, 0) if row)
    assert row[2] == [] and all(len(context[5]) == len(context[6]) > 0 for context in row[8])
    assert "loss, nats" in result.page()


def test_cards_show_the_inputs_that_drive_a_latent(own):
    """The strongest input of a card is where the latent's code is largest."""
    modules, x, y = own
    result = fa.compare(modules, x[:200], (x, y), methods=("vanilla",), curve=0, progress=False)
    trial, browser = result.trials[0], result.widgets["browser"]
    firsts = [place for place, block in enumerate(browser["blocks"]) if block["client"] == 0]
    assert [browser["sites"][browser["blocks"][place]["site"]] for place in firsts] == list(
        trial.trained["dictionaries"]
    )
    for place in firsts:
        space = browser["sites"][browser["blocks"][place]["site"]]
        dictionary, site = trial.trained["dictionaries"][space][0], trial.problem.graphs[0][space].after
        codes = dictionary.encode(collect(trial.cohort.modules[0], x, [site])[site])
        rows = rows_of(browser, place)
        assert len(rows) == codes.shape[1] and [row is not None for row in rows] == (codes > 0).any(0).tolist()
        for latent, row in enumerate(rows):
            if row:
                assert codes[:, latent].argmax() == row[8][0][1] and sum(row[0][1]) == (codes[:, latent] > 0).sum()


def test_loader_as_probe_equals_the_tensor(own):
    modules, x, y = own
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x[:200]), batch_size=64)
    frames = [
        fa.compare(modules, probe, (x, y), methods=("ot-acts",), **QUICK).to_frame() for probe in (x[:200], loader)
    ]
    assert np.allclose(frames[0]["accuracy"], frames[1]["accuracy"])


def test_options_change_the_row_and_the_plan(own):
    modules, x, y = own
    options = {"ot-acts": {"cost": "correlation"}}
    result = fa.compare(modules, x[:200], (x, y), methods=("ot-acts",), options=options, **QUICK)
    assert "ot-acts(cost=correlation)" in result.to_frame().index


def test_bad_modules_probes_and_options_are_named(own):
    modules, x, y = own
    options = {"methods": ("vanilla",), **QUICK}
    deeper = nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 4))
    broken = trained(0, x, y, steps=1)
    with torch.no_grad():
        broken[2].weight[0, 0] = np.nan
    cases = [
        (([modules[0], deeper], x, (x, y)), {}, "equal widths"),
        ((modules, x[:0], (x, y)), {}, "empty"),
        ((modules, x[:, :7], (x, y)), {}, "rejects the probe"),
        (([], x, (x, y)), {}, "zero clients"),
        (([broken, modules[1]], x, (x, y)), {}, "NaN"),
        ((modules, x, (x, y[:5])), {}, "5 targets"),
        ((modules, x, (x, y + 0.5)), {}, "shape|fractions"),
        ((modules, x, (x, y)), {"methods": ("vanila",)}, "did you mean 'vanilla'"),
        ((modules, x, (x, y)), {"options": {"vanilla": {"speed": 1}}}, "no option 'speed'"),
        ((modules, x, (x, y)), {"curves": 3}, "did you mean 'curve'"),
        ((modules, x, (x, y)), {"augment": "shift"}, "shift"),
        ((modules, x, (x, y)), {"architecture": "top"}, "topk"),
        ((modules, x, (x, y)), {"head": "mean"}, "head 'mean'"),
        ((modules, x, (x, y)), {"task": "clasification"}, "did you mean 'classification'"),
    ]
    for arguments, more, message in cases:
        with pytest.raises(FeatalignError, match=message) as caught:
            fa.compare(*arguments, **{**options, **more})
        assert len(str(caught.value).splitlines()) == 1
