"""The diagnosis: what it says about trained, untrained and random; the page and its clicks."""

import shutil

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

import featalign as fa
from featalign.dictionaries import random_dictionary
from featalign.errors import ProbeError, SpaceMismatch


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


QUICK = {"steps": 300, "sweep_steps": 20, "progress": False}


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("diagnosis") / "run"
    return fa.diagnose(network(data, 300), data, out=folder, title="digits", **QUICK)


def test_a_trained_layer_gets_a_verdict_with_its_control(trained):
    (layer,) = trained.layers.values()
    assert layer.readable and layer.learned and "features on average" in layer.verdict
    assert layer.latent_selectivity.value > layer.latent_selectivity.null
    assert layer.splice.recovered > 0.9
    assert len(trained.to_frame()) == 1


def test_an_untrained_network_is_no_evidence(data):
    found = fa.diagnose(network(data, 0), data, **QUICK)
    (layer,) = found.layers.values()
    assert layer.verdict.startswith("No evidence") and "no evidence" in layer.class_verdict


def test_a_random_dictionary_is_no_evidence(data, trained):
    model = network(data, 300)
    name = next(iter(trained.layers))
    basis = random_dictionary(model[:2](data[0]).detach(), 96, 6, seed=5)
    found = fa.diagnose(model, data, dictionaries={name: basis}, **QUICK)
    assert found.layers[name].verdict.startswith("No evidence: the dictionary explains no more")


def test_shuffled_labels_are_no_evidence_for_classes(data):
    names = data[1][torch.randperm(len(data[1]), generator=torch.Generator().manual_seed(3))]
    found = fa.diagnose(network(data, 300), (data[0], names), **QUICK)
    (layer,) = found.layers.values()
    assert "no evidence" in layer.class_verdict


def test_bad_input_is_named(data):
    model = network(data, 0)
    with pytest.raises(ProbeError, match="10 inputs"):
        fa.diagnose(model, data[0][:10])
    with pytest.raises(SpaceMismatch, match="nowhere"):
        fa.diagnose(model, data, spaces=["nowhere"])
    name = next(space.name for space in _graph(model, data).hidden)
    with pytest.raises(SpaceMismatch, match="writes 7 units"):
        fa.diagnose(model, data, dictionaries={name: random_dictionary(torch.randn(100, 7), 8)}, **QUICK)


def _graph(model, data):
    from featalign.spaces import trace

    return trace(model, data[0][:2])


def test_the_page_is_one_small_file(trained):
    from plotly.offline import get_plotlyjs

    text = (trained.folder / "report.html").read_text()
    assert len(text) - len(get_plotlyjs()) < 3e6
    assert 'src="http' not in text and "Verdict" in text


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
        view.wait_for_selector("#card h3")
        assert view.inner_text("#card h3").startswith("Unit")
        view.click("#card [data-link^='features-']:not([disabled]) >> nth=0")
        assert view.inner_text("#card h3").startswith("Feature")
        view.click("#card [data-link^='units-']:not([disabled]) >> nth=0")
        assert view.inner_text("#card h3").startswith("Unit")
        browser.close()
    assert errors == []
