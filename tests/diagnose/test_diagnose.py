"""The diagnosis against planted truths: superposed or not, changed or not, monosemantic or not; any task; the page."""

import shutil

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

import featalign as fa
from featalign.data import Inputs
from featalign.dictionaries import NeuronBasis, random_dictionary
from featalign.errors import BadOption, CorruptFile, DictionaryError, ProbeError, SpaceMismatch, TaskError
from featalign.studies.diagnose.controls import shuffled_samples, shuffled_weights
from tests.features.content import rows_of

pytestmark = pytest.mark.long

QUICK = {"steps": 150, "sweep_steps": 0, "progress": False}


def sparse(samples, features, density, seed=0):
    draw = torch.Generator().manual_seed(seed)
    on = torch.rand(samples, features, generator=draw) < density
    return torch.rand(samples, features, generator=draw) * on


def planted(units, features, seed=1):
    """A linear layer that writes each feature in a direction of its own, and reads it back."""
    directions = nn.functional.normalize(
        torch.randn(features, units, generator=torch.Generator().manual_seed(seed)), dim=1
    )
    model = nn.Sequential(nn.Linear(features, units, bias=False), nn.Linear(units, features))
    with torch.no_grad():
        model[0].weight.copy_(directions.T)
        model[1].weight.copy_(directions)
    return model


def summing(pairs, together):
    """A ReLU layer whose units each read one input, or the sum of two."""
    model = nn.Sequential(nn.Linear(2 * pairs, pairs, bias=False), nn.ReLU(), nn.Linear(pairs, 4))
    with torch.no_grad():
        weight = torch.zeros(pairs, 2 * pairs)
        weight[range(pairs), range(0, 2 * pairs, 2)] = 1
        if together:
            weight[range(pairs), range(1, 2 * pairs, 2)] = 1
        model[0].weight.copy_(weight)
    return model


@pytest.fixture(scope="module")
def data():
    digits = load_digits()
    return torch.from_numpy(digits.data).float() / 16, torch.from_numpy(digits.target).long()


def network(data, steps):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10))
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(steps):
        loss = nn.functional.cross_entropy(model(data[0]), data[1])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("diagnosis") / "run"
    names = [f"digit {k}" for k in range(10)]
    partner = {"other": network(data, 100)}
    return fa.diagnose(
        network(data, 300), data, partners=partner, class_names=names, out=folder, title="digits",
        **{**QUICK, "sweep_steps": 20},
    )  # fmt: skip


def only(result):
    (name,) = result.layers
    return result.layer(name)


def test_64_features_in_16_dimensions_are_superposed():
    found = fa.diagnose(planted(16, 64), sparse(4000, 64, 0.05), **{**QUICK, "steps": 600})
    row = only(found)
    assert row["superposed"] == "yes" and "more features than units" in row["superposition"]
    assert "its dictionary" in row["superposition"] and "random directions" in row["superposition"]
    directions = found.measure(row["layer"], "directions")
    assert directions["low"] > 1 > directions["null"] - 0.6


@pytest.mark.parametrize("features", [16, 8])
def test_features_that_fit_are_not_superposed(features):
    row = only(fa.diagnose(planted(16, features), sparse(3000, features, 0.1), **{**QUICK, "steps": 400}))
    assert row["superposed"] == "no"


def test_noise_is_not_superposed():
    row = only(fa.diagnose(planted(16, 64), torch.randn(2000, 64), **QUICK))
    assert row["superposed"] != "yes"


def test_units_that_sum_two_unrelated_inputs_are_not_monosemantic():
    x = sparse(2000, 24, 0.06)
    identity = {"0": NeuronBasis(12)}  # a perfect dictionary of this layer: it sees one feature in each unit
    both = fa.diagnose(summing(12, True), x, dictionaries=identity, **QUICK)
    assert (both.frames["units"]["effective"] < 1.01).all()
    assert "0 are monosemantic" in only(both)["meaning"] and "several kinds of inputs" in only(both)["meaning"]
    alone = fa.diagnose(summing(12, False), x, dictionaries=identity, **QUICK)
    counted = int(only(alone)["meaning"].split(" are monosemantic")[0].rsplit(" ", 1)[-1])
    assert counted >= 8


def test_a_trained_layer_is_changed_and_an_untrained_one_is_not(data, trained):
    row = only(trained)
    assert row["changed"] == "yes" and "that of shuffled weights" in row["training"]
    assert "select classes:" in row["classes"]
    fresh = only(fa.diagnose(network(data, 0), data, **QUICK))
    assert fresh["changed"] == "no" and "a tie" in fresh["training"]
    assert "with nothing learned" in fresh["classes"] or "no evidence" in fresh["classes"]


def test_a_random_dictionary_says_nothing(data, trained):
    model = network(data, 300)
    basis = random_dictionary(model[:2](data[0]).detach(), 96, 6, seed=5)
    found = fa.diagnose(model, data, dictionaries={trained.layers[0]: basis}, **QUICK)
    row = only(found)
    assert row["changed"] == "unknown" and row["superposed"] == "unknown" and "cannot be read" in row["meaning"]
    assert found.frames["dictionaries"]["given"].tolist().count(True) == 1


def test_shuffled_labels_are_no_evidence_for_classes(data):
    names = data[1][torch.randperm(len(data[1]), generator=torch.Generator().manual_seed(3))]
    assert "no evidence" in only(fa.diagnose(network(data, 300), (data[0], names), **QUICK))["classes"]


def test_held_out_inputs_train_no_dictionary(data):
    model = network(data, 100)
    found = fa.diagnose(model, (data[0][:1000], data[1][:1000]), evaluate=(data[0][1000:], data[1][1000:]), **QUICK)
    own = found.frames["dictionaries"]
    assert set(own["measured_on"]) == {"held-out"} and set(own["rows"]) == {len(data[0]) - 1000}
    assert "neither the network nor the dictionaries" in found.page()
    same = fa.diagnose(model, data, held_out=0.0, **QUICK)
    assert set(same.frames["dictionaries"]["measured_on"]) == {"training"} and "on training data" in same.page()


def test_intervals_contain_their_estimate(trained):
    frame = trained.frames["measures"].dropna(subset=["value"])
    assert len(frame) > 6 and ((frame["low"] <= frame["value"]) & (frame["value"] <= frame["high"])).all()


def test_units_that_hardly_fire_are_not_ranked():
    model = summing(12, False)
    x = sparse(2000, 24, 0.06)
    x[:, 0] = 0
    x[0, 0] = 1.0  # unit 0 fires once
    found = fa.diagnose(model, x, **QUICK)
    units = found.frames["units"].set_index("unit")
    assert not units.loc[0, "ranked"] and units.loc[1, "ranked"]
    notes = found.widgets["browser"]["blocks"][0]["notes"]
    assert len(notes) == 12 and "effective features" in notes[1] and "rarely" not in notes[1]
    assert notes[0] == "constant on these inputs" or notes[0].endswith("too rarely to be ranked")


def test_the_control_estimates_batch_statistics_again():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
    with torch.no_grad():
        model[1].running_mean.fill_(50.0)  # what another network's activations had
    x = torch.randn(500, 8)
    control = shuffled_weights(model, Inputs.of(x))
    normed = (control[1](control[0](x)) - control[1].bias) / control[1].weight
    assert normed.mean(0).abs().max() < 0.1 and model[1].running_mean[0] == 50
    assert not control[1].training and control[1].momentum == 0.1


def test_shuffled_samples_keep_what_units_do_alone():
    acts = torch.randn(300, 1).repeat(1, 2)
    torn = shuffled_samples(acts)
    assert torch.equal(torn.sort(0).values, acts.sort(0).values)
    assert abs(np.corrcoef(torn.T.numpy())[0, 1]) < 0.3


class Language(nn.Module):
    def __init__(self, vocabulary=30, width=12):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.hidden, self.act, self.head = nn.Linear(width, 16), nn.ReLU(), nn.Linear(16, vocabulary)

    def forward(self, input_ids, attention_mask=None):
        return self.head(self.act(self.hidden(self.embed(input_ids))))


def tokens(samples=300, length=12):
    ids = torch.randint(0, 30, (samples, length), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[::3, 8:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def test_language_models_lose_nats_and_show_tokens():
    torch.manual_seed(0)
    found = fa.diagnose(Language(), tokens(), spaces=["hidden"], **QUICK)
    assert found.facts["task"] == "next-token"
    assert {"loss", "recovered", "kl"} <= set(found.frames["function"]["metric"])
    own = found.frames["dictionaries"].iloc[0]
    assert own["rows"] == int(
        tokens()["attention_mask"][torch.randperm(300, generator=torch.Generator().manual_seed(0))[:60]].sum()
    )
    content = found.widgets["browser"]
    assert content["clients"] == ["units", "features", "seed 1"] and content["row"] == "tokens"
    rows = [row for row in rows_of(content, 1) if row]
    assert rows and all(content["strings"][token].strip().isdigit() for row in rows for token in row[8][0][5])
    assert "not measured" in only(found)["classes"] and found.frames["units"]["kinds"].notna().any()


def test_regressors_have_no_accuracy():
    torch.manual_seed(0)
    x = torch.randn(400, 6)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))
    found = fa.diagnose(model, (x, model(x).detach() + 0.1 * torch.randn(400, 2)), **QUICK)
    assert set(found.frames["function"]["metric"]) == {"loss", "mse", "r2", "recovered"}
    assert "accuracy" not in found.page().split("</style>")[-1].split("<section", 1)[1].replace("balanced accuracy", "")
    assert found.function(found.layers[0], "recovered")["spliced"] > 0.5


def test_positions_of_convolutions_are_rows():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 3))
    x = torch.randn(200, 1, 8, 8)
    found = fa.diagnose(model, (x, torch.randint(0, 3, (200,))), **QUICK)
    cards = found.widgets["browser"]
    assert cards["sheets"][0]["png"] and cards["blocks"][1]["field"]["field"] == (3, 3)
    assert any(row and row[8] for row in rows_of(cards, 1))
    assert found.frames["units"]["kinds"].isna().all()


def test_data_that_do_not_suffice_say_how_much_would():
    model = nn.Sequential(nn.Linear(10, 1536), nn.GELU(), nn.Linear(1536, 3))
    with pytest.raises(DictionaryError, match=r"needs 6144, about \d+ inputs like these"):
        fa.diagnose(model, torch.randn(330, 10), **QUICK)
    small = nn.Sequential(nn.Linear(10, 96), nn.ReLU(), nn.Linear(96, 3))
    narrow = only(fa.diagnose(small, torch.randn(300, 10), width=32, **QUICK))
    assert narrow["superposed"] == "unknown" and "32 latents for" in narrow["superposition"]


def test_bad_input_is_named(data):
    model = network(data, 0)
    with pytest.raises(ProbeError, match="10 inputs"):
        fa.diagnose(model, data[0][:10])
    with pytest.raises(SpaceMismatch, match="nowhere"):
        fa.diagnose(model, data, spaces=["nowhere"])
    with pytest.raises(TaskError):
        fa.diagnose(model, (data[0], data[1]), task="regression", **QUICK)
    with pytest.raises(BadOption, match="sweep_step"):
        fa.diagnose(model, data, sweep_step=3)
    with pytest.raises(SpaceMismatch, match="of 7 units does not fit '1', which has 24"):
        fa.diagnose(model, data, dictionaries={"0": random_dictionary(torch.randn(100, 7), 8)}, **QUICK)


def test_a_saved_diagnosis_loads_alike(trained, tmp_path):
    again = fa.load(trained.folder)
    assert again.to_frame().equals(trained.to_frame()) and set(again.figures) == set(trained.figures)
    assert "superposed" in repr(again) and "<table" in again._repr_html_()
    assert len(fa.studies.schema("diagnose")["properties"]["frames"]["properties"]) == len(trained.frames)
    (trained.folder / "results.json").rename(tmp_path / "kept.json")
    (trained.folder / "results.json").write_text("{}")
    with pytest.raises(CorruptFile):
        fa.load(trained.folder)
    (tmp_path / "kept.json").replace(trained.folder / "results.json")


def test_the_page_explains_itself_and_is_small(trained):
    from plotly.offline import get_plotlyjs

    text = (trained.folder / "report.html").read_text()
    assert len(text) - len(get_plotlyjs()) < 3e6 and 'src="http' not in text
    for word in ("digit 3", "psi", "exp(H)", "L0", "loss recovered", "firings per latent", "other", "ranked units"):
        assert word in text


@pytest.mark.browser
def test_units_and_features_link_to_each_other_by_clicks(trained):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        view = browser.new_page()
        errors: list[str] = []
        view.on("pageerror", lambda error: errors.append(str(error)))
        view.goto((trained.folder / "report.html").as_uri())
        view.wait_for_selector("#diagnosis .feature h3")
        first = view.inner_text("#diagnosis .feature h3")
        assert first.startswith("units") and "features" in first
        link = "#diagnosis .feature button.pill:has-text('features') >> nth=0"
        wanted = view.inner_text(link).split()[1]
        view.click(link)
        view.wait_for_function(
            "(first) => document.querySelector('#diagnosis .feature h3').innerText !== first", arg=first
        )
        assert f"features {wanted}" in view.inner_text("#diagnosis .feature h3")
        browser.close()
    assert errors == []
