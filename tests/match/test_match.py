"""`fa.match` from its arguments to its page: any bases, any inputs, three clients, no inputs; bad input in one line."""

import json
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import featalign as fa
from featalign.align.geometry import MatchWarning
from featalign.dictionaries import random_dictionary, train
from featalign.errors import BadOption, CorruptFile, DictionaryError, FolderExists, ProbeError, SpaceMismatch
from featalign.studies.match.config import MatchRunConfig
from tests.match.planted import Given, planted

QUIET = {"progress": False}


@pytest.fixture(scope="module")
def truth():
    return planted(4000, 60, 15, 8, density=0.03)


@pytest.fixture(scope="module")
def given(truth):
    return [torch.from_numpy(codes) for codes in truth.codes]


@pytest.fixture(scope="module")
def result(truth, given, tmp_path_factory):
    folder = tmp_path_factory.mktemp("match") / "page"
    bases = [Given(codes.shape[1]) for codes in given]
    return fa.match(*bases, inputs=given, out=folder, **QUIET)


@pytest.fixture(scope="module")
def sparse():
    """Activations `[rows, 16]` of 40 sparse features, and two dictionaries of them."""
    draw = torch.Generator().manual_seed(0)
    atoms = nn.functional.normalize(torch.randn(40, 16, generator=draw), dim=1)
    z = torch.rand(4000, 40, generator=draw) * (torch.rand(4000, 40, generator=draw) < 0.05)
    acts = z @ atoms
    return acts, [train(acts, width=48, k=2, steps=200, seed=seed) for seed in (0, 1)]


def test_frames_say_what_was_planted(truth, result):
    pairs = result.pairs
    assert list(pairs.columns) == [
        *("site", "client_a", "client_b", "latent_a", "latent_b", "score", "rival", "null", "gain", "energy"),
        *("overlap", "kind", "together"),
    ]
    kept = set(zip(pairs["latent_a"], pairs["latent_b"]))
    assert len(kept & truth.pairs) >= 0.97 * max(len(kept), len(truth.pairs))
    assert (pairs["score"] > pairs["null"]).all() and (pairs["score"] > 0.3).all()
    matched = pairs[pairs["kind"] == "matched"]
    assert (matched["score"] > matched["rival"]).all() and matched["together"].isna().all()
    assert (pairs.loc[pairs["kind"] == "split", "together"] > 0.7).all()
    features = result.features
    assert list(features.columns) == [
        *("site", "client", "latent", "density", "mean", "max", "energy", "kind", "partner_client", "partner"),
        *("score", "relative_norm", "latent_scaling"),
    ]
    assert np.allclose(features.groupby("client")["energy"].sum(), 1)
    assert set(result.own["kind"]) == {"own"} and len(result.own) >= 0.95 * 30
    assert (features.loc[features["kind"] == "merged", "client"] == "B").all()


def test_numbers_are_what_their_definitions_say(given, result):
    row = result.pairs.iloc[0]
    a, b = given[0][:, row["latent_a"]].double(), given[1][:, row["latent_b"]].double()
    assert row["score"] == pytest.approx(float(torch.corrcoef(torch.stack([a, b]))[0, 1]), abs=1e-5)
    slope = float(((a - a.mean()) * (b - b.mean())).mean() / a.var(unbiased=False))
    assert row["gain"] == pytest.approx(slope, rel=1e-4)
    assert row["overlap"] == pytest.approx(float(((a > 0) & (b > 0)).sum() / ((a > 0) | (b > 0)).sum()))
    latent = result.features[(result.features["client"] == "A") & (result.features["latent"] == row["latent_a"])].iloc[
        0
    ]
    assert latent["density"] == pytest.approx(float((a > 0).double().mean()))
    assert latent["mean"] == pytest.approx(float(a[a > 0].mean()), rel=1e-5) and latent["max"] == float(a.max())


def test_controls_find_nothing(result):
    summary = result.summary.set_index("control")
    assert summary.loc["none", "shared"] > 0.5 > 0.1 > summary.loc[["shuffled", "untrained"], "shared"].max()
    assert summary.loc["none", "mcc"] > 2 * summary.loc[["shuffled", "untrained"], "mcc"].max()
    assert summary.loc["none", "gap"] <= 1e-9 and summary.loc["none", "rows"] == 4000


def test_a_saved_match_is_the_same(result, tmp_path):
    found = fa.load(result.folder)
    for name, frame in result.frames.items():
        assert found.frames[name].equals(frame), name
    assert found.page() == result.page() and found.lines() == result.lines()
    text = result.to_json(tmp_path / "match.json")
    assert (tmp_path / "match.json").read_text() == text and json.loads(text)["study"] == "match"
    folder = result.to_csv(tmp_path / "frames")
    assert sorted(path.name for path in folder.iterdir() if path.suffix == ".csv") == sorted(
        f"{name}.csv" for name in result.frames
    )
    with pytest.raises(FolderExists):
        fa.match(inputs=0, out=result.folder, **QUIET)


def test_parquet_needs_pyarrow(result, tmp_path):
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        with pytest.raises(BadOption, match="pip install pyarrow"):
            result.to_parquet(tmp_path / "frames")
    else:
        assert (result.to_parquet(tmp_path / "frames") / "pairs.parquet").is_file()


def test_the_page_says_what_the_frames_say(result):
    page = (result.folder / "report.html").read_text()
    assert f"{result.summary.loc[0, 'matched']} of" in page and "after the samples of one" in page
    assert set(result.figures) == {"activations/A/B/scores", "activations/A/B/flow"}
    assert "untrained dictionaries" in page and "What this cannot say" in page


def test_the_same_dictionary_in_another_order_matches_wholly(sparse, tmp_path):
    acts, (one, _) = sparse
    order = torch.randperm(one.width, generator=torch.Generator().manual_seed(3))
    folders = [one.save(tmp_path / "one"), one.permuted(order).save(tmp_path / "two")]
    found = fa.match(*folders, inputs=acts, **QUIET)
    row = found.summary.iloc[0]
    assert (row["client_a"], row["client_b"]) == ("one", "two")
    assert row["mcc"] == pytest.approx(1, abs=1e-6) and row["pw_mcc"] == pytest.approx(1, abs=1e-6)
    assert (order[found.pairs["latent_b"].to_numpy()].numpy() == found.pairs["latent_a"]).all()
    assert np.allclose(found.quality["explained_variance"], one.quality.explained_variance, atol=0.05)


def test_three_clients_make_a_universe_of_consistent_cycles():
    truth = planted(3000, 40, 8, 0, density=0.03)
    third = truth.codes[0][:, ::-1] * np.random.default_rng(1).lognormal(0, 0.2, truth.codes[0].shape)
    codes = [torch.from_numpy(np.ascontiguousarray(part, dtype=np.float32)) for part in (*truth.codes, third)]
    found = fa.match(*(Given(part.shape[1]) for part in codes), inputs=codes, names=["x", "y", "z"], **QUIET)
    cycles = found.frames["cycles"].set_index("matching")
    assert cycles.loc["universe", "consistency"] == 1 and cycles.loc["pairs", "consistency"] > 0.95
    assert cycles["null"].max() < 0.2 and cycles["coverage"].min() > 0.7
    common = found.frames["universe"]
    everywhere = common[common["members"] == 3]
    assert everywhere["feature"].nunique() >= 0.97 * 40
    assert len(found.summary) == 9 and set(found.features["client"]) == {"x", "y", "z"}


def test_without_inputs_geometry_speaks_with_a_warning(sparse):
    _, (one, other) = sparse
    with pytest.warns(MatchWarning, match="one ancestry"):
        found = fa.match(one, other, **QUIET)
    assert found.facts["compared"] == "cosine" and found.summary.iloc[0]["matched"] > 20
    assert found.pairs["overlap"].isna().all() and found.quality["explained_variance"].isna().all()
    assert "geometry of their decoders" in found.page()
    strangers = [random_dictionary(torch.randn(100, n), 40, 2, seed=n) for n in (16, 12)]
    with pytest.warns(MatchWarning, match="look unrelated"):
        found = fa.match(*strangers, **QUIET)
    assert found.facts["compared"] == "gromov" and len(found.pairs) <= 2


def test_a_crosscoder_tells_own_features_from_shared_ones():
    draw = torch.Generator().manual_seed(0)
    z = torch.rand(4000, 24, generator=draw) * (torch.rand(4000, 24, generator=draw) < 0.08)
    turns = [torch.linalg.qr(torch.randn(20, 20, generator=draw)).Q for _ in range(2)]
    acts = [z[:, :20] @ turns[0], torch.cat([z[:, :16], z[:, 20:]], 1) @ turns[1]]
    bases = [train(part, width=24, k=2, steps=250, seed=k) for k, part in enumerate(acts)]
    found = fa.match(*bases, inputs=acts, witness="crosscoder", steps=300, **QUIET)
    table = found.features.dropna(subset=["relative_norm"])
    middle = table.groupby(table["kind"] == "own")[["relative_norm", "latent_scaling"]].median()
    assert middle.loc[True, "relative_norm"] > 0.85 > 0.6 > middle.loc[False, "relative_norm"]
    assert middle.loc[True, "latent_scaling"] < 0.3 < 0.7 < middle.loc[False, "latent_scaling"]


class Tiny(nn.Module):
    """Tokens to logits with a layer to read; it can be taught what follows what."""

    def __init__(self, seed, units=12):
        super().__init__()
        torch.manual_seed(seed)
        self.embed, self.hidden, self.head = nn.Embedding(30, 24), nn.Linear(24, units), nn.Linear(units, 30)

    def forward(self, tokens, attention_mask=None):
        return self.head(self.hidden(self.embed(tokens)).relu())

    def taught(self):
        optimiser, ids = torch.optim.Adam(self.parameters(), 2e-2), tokens(40)
        for _ in range(60):
            loss = nn.functional.cross_entropy(self(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        return self


def tokens(count=300, length=20):
    start = torch.randint(0, 30, (count, 1), generator=torch.Generator().manual_seed(0))
    return (start + 7 * torch.arange(length)) % 30


def test_networks_alone_train_their_dictionaries(tmp_path):
    found = fa.match(
        models={"left": Tiny(0).taught(), "right": Tiny(1).taught()}, inputs=tokens(), site=["hidden", "embed"],
        steps=80, cards=20, out=tmp_path / "run", **QUIET,
    )  # fmt: skip
    assert set(found.quality["site"]) == {"hidden", "embed"} and set(found.quality["measured_on"]) == {"held-out"}
    assert (found.quality["rows"] == 60 * 20).all() and (found.quality["trained_rows"] == 240 * 20).all()
    assert (found.quality["loss_recovered"] > 0.5).all()
    loaded = fa.dictionaries.load(tmp_path / "run" / "dictionaries" / "left" / "hidden")
    assert loaded.metadata["hook_name"] == "hidden"
    assert found.quality["client"].tolist() == ["left", "left", "right", "right"]
    assert found.widgets["browser"]["clients"] == ["left", "right"] and not found.facts["notes"]
    assert "inputs that drive it most" in found.page()


def test_masked_tokens_are_no_rows():
    ids, model = tokens(60), Tiny(0)
    mask = (torch.arange(20) < 12).long().expand_as(ids)
    bases = [random_dictionary(torch.randn(100, 12), 30, 3, seed=seed) for seed in (0, 1)]
    found = fa.match(*bases, models=model, inputs={"tokens": ids, "attention_mask": mask}, site="hidden", **QUIET)
    assert (found.quality["rows"] == 60 * 12).all()
    with pytest.raises(ProbeError, match="every token masked"):
        fa.match(*bases, models=model, inputs={"tokens": ids, "attention_mask": mask * 0}, site="hidden", **QUIET)


def letters(texts):
    return torch.tensor([[ord(letter) % 30 for letter in text] for text in texts])


@pytest.mark.parametrize(
    ("bases", "options", "error", "words"),
    [
        (1, {}, BadOption, "one basis only"),
        (0, {}, BadOption, "nothing to match"),
        (2, {"inputs": torch.zeros(5, 7)}, SpaceMismatch, "reads 12 units, and 'activations' gives 7"),
        (2, {"inputs": ["a text"]}, BadOption, "give models= to read them with"),
        (2, {"inputs": [torch.zeros(5, 12)] * 3}, BadOption, "3 sets of activations for 2 bases"),
        (2, {"inputs": iter([torch.zeros(5, 12)])}, BadOption, "read more than once"),
        (2, {"models": Tiny(0), "inputs": tokens(), "site": "hiden"}, SpaceMismatch, "near it: hidden"),
        (2, {"models": Tiny(0), "inputs": tokens()}, BadOption, "no site"),
        (2, {"models": Tiny(0), "inputs": tokens(), "site": "embed"}, SpaceMismatch, "12 units, and 'embed' gives"),
        (2, {"models": [Tiny(0)] * 3, "inputs": tokens(), "site": "hidden"}, BadOption, "3 models for 2 bases"),
        (2, {"models": Tiny(0), "inputs": "short", "tokenizer": letters, "site": "hidden"}, BadOption, "shorter than"),
        (2, {"inputs": torch.randn(4, 12)}, ProbeError, "active on 10 of 4 samples"),
        (2, {"inputs": torch.randn(40, 12), "minimun": 0.2}, BadOption, "did you mean 'minimum'"),
        (0, {"models": [Tiny(0, 200), Tiny(1, 200)], "inputs": tokens(20), "site": "hidden"}, DictionaryError, "width"),
        (0, {"models": [Tiny(0), Tiny(1)], "inputs": tokens(4), "site": "hidden"}, ProbeError, "give at least 10"),
        (0, {"models": [Tiny(0), Tiny(1)], "site": "hidden"}, BadOption, "no inputs"),
        (2, {"names": ["x"]}, BadOption, "give 2 different ones"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(bases, options, error, words):
    given = [random_dictionary(torch.randn(100, 12), 30, 3, seed=seed) for seed in range(bases)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(error, match=words) as raised:
            fa.match(*given, **options, **QUIET)
    assert "\n" not in str(raised.value)


def test_a_dictionary_of_another_site_or_kind_is_refused(tmp_path):
    there = random_dictionary(torch.randn(100, 12), 30, 3, metadata={"hook_name": "head:in"})
    with pytest.raises(SpaceMismatch, match="belongs to 'head:in', not to 'hidden'"):
        fa.match(there, there, models=Tiny(0), inputs=tokens(), site="hidden", **QUIET)
    folder = there.save(tmp_path / "sae")
    config = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps({**config, "normalize_activations": "secret"}))
    with pytest.raises(DictionaryError, match="normalisation 'secret' is not one of"):
        fa.match(folder, folder, **QUIET)
    with pytest.raises(DictionaryError, match="is no basis"):
        fa.match(object(), object(), **QUIET)


def test_the_command(sparse, tmp_path):
    from typer.testing import CliRunner

    from featalign.cli import app

    folders = [str(each.save(tmp_path / name)) for each, name in zip(sparse[1], ("left", "right"))]
    runner, out = CliRunner(), tmp_path / "page"
    done = runner.invoke(app, ["match", *folders, "--out", str(out), "--quiet", "--csv", str(tmp_path / "csv")])
    assert done.exit_code == 0, done.output
    assert "are one feature" in done.output and (out / "report.html").is_file()
    assert (tmp_path / "csv" / "pairs.csv").is_file()
    assert MatchRunConfig.from_toml(out / "config.toml").bases == tuple(folders)
    again = runner.invoke(app, ["match", "--config", str(out / "config.toml"), "--out", str(tmp_path / "b"), "--quiet"])
    assert again.exit_code == 0 and fa.load(tmp_path / "b").pairs.equals(fa.load(out).pairs)
    wrong = runner.invoke(app, ["match", *folders, "--texts", "lines.txt", "--out", str(tmp_path / "c")])
    assert isinstance(wrong.exception, BadOption) and "--model" in str(wrong.exception)
    (tmp_path / "bad.toml").write_text("bases = ")
    assert isinstance(runner.invoke(app, ["match", "--config", str(tmp_path / "bad.toml")]).exception, CorruptFile)
