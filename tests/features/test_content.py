"""What the browser reads, and the export: every latent is there with its numbers, text is that of the tokens."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from featalign.align.feature import match_features
from featalign.dictionaries import NeuronBasis
from featalign.dictionaries.bases import untrained
from featalign.errors import BadOption, SpaceMismatch
from featalign.report.pack import Strings, numbers
from featalign.studies.features import browser_content, feature_cards, to_neuronpedia
from featalign.studies.features.frames import PairRow, latent_frame, match_frames, pair_frame, pair_kinds
from featalign.studies.features.layout import layout
from featalign.studies.features.words import word_at
from tests.features.content import rows_of, unpacked
from tests.features.test_cards import LATENTS, LENGTH, VOCABULARY, WIDTH, Language, Letters

SCHEMA = Path(__file__).parents[2] / "docs" / "schemas" / "exports" / "neuronpedia-features.json"


@pytest.fixture(scope="module")
def matched():
    """Two dictionaries of one layer whose atoms are the same ones in another order, and their cards."""
    model, draw = Language(), torch.Generator().manual_seed(2)
    ids = torch.randint(0, VOCABULARY, (40, LENGTH), generator=draw)
    atoms = nn.functional.normalize(torch.randn(LATENTS, WIDTH, generator=draw), dim=1)
    order = torch.randperm(LATENTS, generator=draw)
    bases = [untrained(atoms, 3), untrained(atoms[order], 3)]
    cards = [feature_cards(basis, model, "embed", ids, tokenizer=Letters(), contexts=5, window=3) for basis in bases]
    acts = model.embed(ids).detach().reshape(-1, WIDTH)
    frames = match_frames(match_features(*bases, [(acts, acts)]), "embed", ("A", "B"), cards)
    return cards, frames, order


@pytest.fixture(scope="module")
def content(matched):
    cards, frames, _ = matched
    return browser_content({("A", "embed"): cards[0], ("B", "embed"): cards[1]}, *frames)


def test_every_latent_is_there_with_its_numbers(matched, content):
    cards, (_, features), _ = matched
    for place, card in enumerate(cards):
        block, rows = content["blocks"][place], rows_of(content, place)
        assert block["latents"] == len(rows) == LATENTS and block["rows"] == card.rows
        assert [row is not None for row in rows] == (card.counts > 0).tolist()
        for name in ("density", "mean", "max", "energy"):
            assert np.allclose(unpacked(block[name]), getattr(card, name).numpy())
        for latent, row in enumerate(rows):
            if row is not None:
                assert sum(row[0][1]) == card.counts[latent]
                assert row[5][0][0] == card.neighbours[latent, 0]
    assert len(features) == 2 * LATENTS and set(features["kind"]) <= {"matched", "own", "dead"}
    assert json.loads(json.dumps(content))["version"] == 1


def test_contexts_are_tokens_of_the_inputs_with_both_clients_activations(matched, content):
    cards, (pairs, _), order = matched
    assert len(pairs) and (order[pairs["latent_b"].to_numpy()].numpy() == pairs["latent_a"]).mean() > 0.9
    rows, table = rows_of(content, 0), content["strings"]
    for pair in pairs.itertuples():
        row = rows[pair.latent_a]
        assert row[7] == [1, pair.latent_b]
        for kind, member, position, value, middle, words, acts, theirs in row[8]:
            found = cards[0].top if kind == 0 else cards[0].lower
            places = (found.input[pair.latent_a] == member) & (found.position[pair.latent_a] == position)
            assert places.any() and abs(found.value[pair.latent_a][places][0] - value) < 0.01 * value
            text = "".join(table[word] for word in words)
            assert text == Letters().decode(_window(cards[0], member, position)) and len(acts) == len(words)
            if order[pair.latent_b] == pair.latent_a:
                assert np.abs(np.array(acts) - theirs).max() <= 1
            assert acts[middle] > 0


def _window(card, member, position):
    ids = card.source.inputs.example(40).tokens[member]
    return ids[max(0, position - 3) : position + 4].tolist()


def test_pairs_and_kinds(matched, content):
    _, (pairs, _), _ = matched
    (table,) = content["pairs"]
    assert unpacked(table["latent_a"]).tolist() == pairs["latent_a"].tolist()
    assert np.allclose(unpacked(table["score"]), pairs["score"]) and table["a"] == 0 and table["b"] == 1
    assert pair_kinds([0, 0, 1, 2, 3], [5, 6, 7, 7, 8]) == ["split", "split", "merged", "merged", "matched"]


def test_clients_and_latents_without_cards_are_refused(matched):
    cards, (_, features), _ = matched
    with pytest.raises(SpaceMismatch, match="client 'C' at site 'embed' has no cards"):
        browser_content({("A", "embed"): cards[0]}, pair_frame([PairRow("embed", "A", "C", 0, 0, 1.0)]), features[:0])
    with pytest.raises(SpaceMismatch, match="has 24 latents, not 99"):
        browser_content({("A", "embed"): cards[0]}, pair_frame([PairRow("embed", "A", "A", 98, 0, 1.0)]), features[:0])


def test_one_client_alone_and_pictures_with_patches():
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 36, 2))
    cards = feature_cards(NeuronBasis(3), model, "0", torch.rand(30, 1, 8, 8), contexts=2)
    content = browser_content({("A", "conv"): cards}, pair_frame([]), latent_frame(cards, "conv", "A"))
    (sheet,), (block,) = content["sheets"], content["blocks"]
    shown = set(unpacked(sheet["members"]).tolist())
    assert block["field"]["grid"] == (6, 6) and content["row"] == "positions" and content["pairs"] == []
    assert {context[1] for row in rows_of(content, 0) if row for context in row[8]} <= shown and sheet["png"]


def test_columns_of_a_table_name_features():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))
    cards = feature_cards(NeuronBasis(4), model, "1", torch.randn(200, 5))
    frame = latent_frame(cards, "1", "A")
    content = browser_content({("A", "1"): cards}, pair_frame([]), frame, columns=["age", "<b>", "height", "d", "e"])
    assert any(text in ("age ↑", "age ↓", "<b> ↑", "<b> ↓") for text in content["strings"])
    assert content["row"] == "inputs"


def test_words_around_a_token():
    assert word_at(list("so love is"), 4) == "love" and word_at(["the", " lo", "ve", "ly", " end"], 2) == "lovely"
    assert word_at(list("a b"), 1) == "␣" and word_at(["\n"], 0) == "↵" and word_at(["x" * 50], 0) == "x" * 24


def test_maps_of_permuted_dictionaries_lie_on_each_other():
    torch.manual_seed(0)
    atoms = torch.randn(60, 12) * torch.linspace(3, 0.1, 12)
    turn, order = torch.linalg.qr(torch.randn(12, 12)).Q, torch.randperm(60)
    places = layout(
        {"a": atoms, "b": (atoms @ turn)[order]}, {"a": 0, "b": 1}, [("a", "b", order.numpy(), np.arange(60))], "pca"
    )
    assert np.abs(places["a"][order.numpy()] - places["b"]).max() < 1e-3
    assert places["a"].min() >= 0 and places["a"].max() <= 1
    with pytest.raises(BadOption, match="tsne"):
        layout({"a": atoms}, {"a": 0}, [], "tsne")


def test_numbers_and_strings():
    assert unpacked(numbers([0, 1, 70000, float("nan")], "u16")).tolist() == [0, 1, 65535, 0]
    assert np.isnan(unpacked(numbers(pd.Series([None, 1.5]), "f32"))[0])
    strings = Strings()
    assert strings.add_all(["a", "b", "a", ""]).tolist() == [1, 2, 1, 0] and strings.table == ["", "a", "b"]


def test_the_export_follows_its_schema(matched, tmp_path):
    jsonschema = pytest.importorskip("jsonschema")
    card = matched[0][0]
    path = to_neuronpedia(card, tmp_path / "features.json", model_id="tiny", vectors=True)
    found = json.loads(path.read_text())
    jsonschema.validate(found, json.loads(SCHEMA.read_text()))
    assert found["model_id"] == "tiny" and len(found["features"]) == len(card.alive)
    for feature in found["features"]:
        latent = feature["feature_index"]
        assert sum(feature["freq_hist_data_bar_heights"]) == card.counts[latent]
        assert feature["vector"] == card.atoms[latent].tolist()
        first = feature["activations"][0]
        assert first["values"][first["qualifying_token_index"]] == pytest.approx(float(card.max[latent]), abs=1e-4)
    with pytest.raises(BadOption, match="'model' is no fact"):
        to_neuronpedia(card, tmp_path / "b.json", model="x")
