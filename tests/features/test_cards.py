"""Cards against brute force: contexts, masks, windows, histograms, profiles, effects, neighbours, patches, columns."""

import pytest
import torch
from torch import nn

from featalign.data import Inputs
from featalign.data.tasks import Classification
from featalign.dictionaries import NeuronBasis
from featalign.dictionaries.bases import untrained
from featalign.errors import DictionaryError, SpaceMismatch
from featalign.spaces.graph import Site
from featalign.studies.features import feature_cards
from featalign.studies.features import source as source_module
from featalign.studies.features.pictures import patches_of
from featalign.studies.features.running import bin_edges, position_bin, position_names

VOCABULARY, WIDTH, LENGTH, LATENTS = 20, 8, 11, 24


class Language(nn.Module):
    """Tokens to logits through one residual stream and a hidden layer, with or without a final norm."""

    def __init__(self, norm=None):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.up, self.act, self.down = nn.Linear(WIDTH, 16), nn.ReLU(), nn.Linear(16, WIDTH)
        self.norm = norm or nn.Identity()
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, input_ids, attention_mask=None):
        stream = self.embed(input_ids)
        return self.head(self.norm(stream + self.down(self.act(self.up(stream)))))


class Letters:
    """Decodes token ids to letters."""

    def decode(self, ids):
        return "".join(chr(97 + k) for k in ids)


@pytest.fixture(scope="module")
def language():
    model = Language()
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(0, VOCABULARY, (30, LENGTH), generator=draw)
    mask = torch.ones_like(ids)
    mask[::3, 7:] = 0  # padding on the right
    mask[1::3, :3] = 0  # and on the left
    basis = untrained(nn.functional.normalize(torch.randn(LATENTS, WIDTH, generator=draw), dim=1), 3)
    return model, {"input_ids": ids, "attention_mask": mask}, basis


@pytest.fixture(scope="module")
def cards(language):
    model, inputs, basis = language
    return feature_cards(basis, model, "embed", inputs, tokenizer=Letters(), contexts=4, window=3)


def dense(language):
    """All codes `[inputs, tokens, F]`, zero at padding."""
    model, inputs, basis = language
    codes = basis.encode(model.embed(inputs["input_ids"]).detach().reshape(-1, WIDTH))
    return codes.reshape(30, LENGTH, -1) * inputs["attention_mask"][..., None]


def test_statistics_are_those_of_all_kept_rows(language, cards):
    codes, kept = dense(language), language[1]["attention_mask"].bool()
    rows = codes[kept]
    assert cards.rows == len(rows) and cards.inputs == 30 and len(cards.counts) == LATENTS
    assert torch.equal(cards.counts, (rows > 0).sum(0))
    assert torch.allclose(cards.max, rows.max(0).values)
    assert torch.allclose(cards.mean, rows.sum(0) / (rows > 0).sum(0).clamp_min(1), atol=1e-5)
    assert torch.allclose(cards.density, (rows > 0).double().mean(0))


def test_histograms_sum_to_the_firings_and_hold_the_activations(language, cards):
    assert torch.equal(cards.histogram.sum(1).long(), cards.counts)
    assert torch.allclose(cards.histogram.sum(1).double(), cards.density * cards.rows)
    edges = bin_edges()
    for latent in cards.alive.tolist():
        filled = torch.nonzero(cards.histogram[latent]).flatten()
        assert edges[filled[-1]] <= cards.max[latent] * (1 + 1e-6) and cards.max[latent] <= edges[filled[-1] + 1]


def test_top_contexts_are_the_strongest_of_different_inputs(language, cards):
    codes = dense(language)
    best = codes.max(1)
    for latent in cards.alive.tolist():
        value = best.values[:, latent].sort(descending=True).values
        count = min(4, int((value > 0).sum()))
        assert torch.allclose(cards.top.value[latent, :count], value[:count])
        assert (cards.top.value[latent, count:] == -torch.inf).all()
        for k in range(count):
            where = cards.top.input[latent, k], cards.top.position[latent, k]
            assert codes[where[0], where[1], latent] == value[k]
        assert len(set(cards.top.input[latent, :count].tolist())) == count


def test_windows_hold_the_same_latent_at_every_token_and_nothing_at_padding(language, cards):
    codes, ids, mask = dense(language), language[1]["input_ids"], language[1]["attention_mask"]
    for contexts in (cards.top, cards.lower):
        for latent, k in torch.nonzero(contexts.value > -torch.inf).tolist():
            member, position = int(contexts.input[latent, k]), int(contexts.position[latent, k])
            assert mask[member, position] == 1 and contexts.acts[latent, k, 3] == contexts.value[latent, k]
            for offset in range(-3, 4):
                at, place = position + offset, (latent, k, 3 + offset)
                token, act = contexts.tokens[place], contexts.acts[place]
                if 0 <= at < LENGTH and mask[member, at]:
                    assert token == ids[member, at] and act == codes[member, at, latent]
                else:
                    assert token == -1 and act.isnan()
    latent = int(cards.alive[0])
    assert cards.text(latent).count("[[") == 1
    middle = ids[cards.top.input[latent, 0], cards.top.position[latent, 0]]
    assert f"[[{chr(97 + int(middle))}]]" in cards.text(latent)


def test_parts_do_not_matter(language, cards, monkeypatch):
    monkeypatch.setattr(source_module, "ENTRIES", 600)
    model, inputs, basis = language
    again = feature_cards(basis, model, "embed", inputs, tokenizer=Letters(), contexts=4, window=3)
    assert torch.equal(again.counts, cards.counts) and torch.equal(again.histogram, cards.histogram)
    assert torch.equal(again.top.value, cards.top.value)
    assert torch.equal(again.lower.value > -torch.inf, cards.lower.value > -torch.inf)


def test_ordinary_contexts_are_spread_over_the_firings(cards):
    known = cards.lower.value > -torch.inf
    assert (known.sum(1) == cards.counts.clamp_max(4)).all()
    assert (cards.lower.value.diff(dim=1)[known[:, 1:]] <= 0).all()


def test_codes_are_read_again_at_any_place(language, cards):
    codes = dense(language)
    latent, member, position = torch.tensor([3, 5, 0, 3]), torch.tensor([29, 0, 2, 4]), torch.tensor([2, 6, 5, 10])
    member, position = torch.cat([member, cards.top.input[3, :2]]), torch.cat([position, cards.top.position[3, :2]])
    latent = torch.cat([latent, torch.tensor([3, 3])])
    found = cards.source.read(latent, member, position, 2)
    assert found.shape == (6, 5) and torch.equal(found[:, 2], codes[member, position, latent]) and found[4, 2] > 0


def test_positions_in_bins_that_double(language, cards):
    assert position_bin(torch.tensor([0, 1, 2, 3, 4, 7, 8])).tolist() == [0, 1, 2, 2, 3, 3, 4]
    assert position_names(4) == ["0", "1", "2–3", "4–7"]
    codes, mask = dense(language), language[1]["attention_mask"]
    expected = codes[:, 2:4].sum((0, 1)) / mask[:, 2:4].sum()
    assert torch.allclose(cards.positions[:, 2].float(), expected, atol=1e-6)


def test_direct_logit_effect_without_a_norm(language, cards):
    model, _, basis = language
    logits = basis.atoms @ model.head.weight.detach().T
    logits = logits - logits.mean(1, keepdim=True)
    effect = cards.effect
    for latent in range(LATENTS):
        order = logits[latent].argsort(descending=True)
        assert effect.raised[latent, 0] == order[0] and effect.lowered[latent, 0] == order[-1]
        assert torch.allclose(effect.up[latent, 0], logits[latent].max(), atol=1e-5)


def test_logit_effect_through_a_norm_and_a_hidden_layer():
    norm = nn.LayerNorm(WIDTH)
    with torch.no_grad():
        norm.weight.copy_(torch.rand(WIDTH) + 0.5)
    model = Language(norm)
    ids = torch.randint(0, VOCABULARY, (10, LENGTH))
    cards = feature_cards(NeuronBasis(16), model, "act", ids, window=2)
    assert cards.effect is None  # `act` has a name of its own: what writes it to the stream cannot be told
    cards = feature_cards(NeuronBasis(WIDTH), model, "embed", ids, window=2)
    matrix = norm.weight.detach()[:, None] * model.head.weight.detach().T
    matrix = matrix - matrix.mean(0)
    matrix = matrix - matrix.mean(1, keepdim=True)
    assert torch.equal(cards.effect.raised[:, 0], matrix.argmax(1))


def test_neighbours_are_the_nearest_atoms_that_fire(cards):
    atoms = cards.atoms
    similar = atoms @ atoms.T
    similar.fill_diagonal_(-2)
    similar[:, cards.counts == 0] = -2
    for latent in cards.alive.tolist():
        assert cards.neighbours[latent, 0] == similar[latent].argmax()
        assert torch.isclose(cards.cosines[latent, 0], similar[latent].max(), atol=1e-5)


def test_class_profiles_and_effects_on_few_outputs():
    torch.manual_seed(0)
    x = torch.rand(200, 6)
    labels = (x[:, 0] > 0.5).long() * 2  # the class in the middle has no samples
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(6))
        model[0].bias.zero_()
    task = Classification(class_names=("lo", "mid", "hi"))
    cards = feature_cards(NeuronBasis(6), model, "1", Inputs.of(x, labels), task=task)
    assert cards.class_names == ("lo", "mid", "hi")
    assert cards.classes[0, 1] == 0 and torch.isclose(cards.classes[0, 2].float(), x[labels == 2, 0].mean(), atol=1e-5)
    drawn = cards.lower.input[0]
    expected = (x[drawn, 0, None] * model[2].weight[:, 0].detach()).mean(0)  # the layer after is linear
    effect = cards.effect
    assert torch.isclose(effect.up[0, 0], expected.max(), atol=1e-5) and effect.names == ("lo", "mid", "hi")


def test_patch_of_a_planted_channel():
    """A channel that looks for a bright corner finds it, and its patch is where the corner is."""
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 144, 2))
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.zero_()
        model[0].weight[0] = 1 / 9
        model[0].weight[1, 0, 1, 1] = 1
    x = 0.1 * torch.rand(20, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    x[7, 0, 4:7, 8:11] = 1.0
    cards = feature_cards(NeuronBasis(2), model, "0", x)
    assert cards.top.input[0, 0] == 7 and cards.top.position[0, 0] == 5 * 12 + 9
    assert patches_of(cards.source).box(5 * 12 + 9) == (8, 4, 11, 7)
    assert patches_of(cards.source).box(0) == (0, 0, 2, 2)  # inside the picture
    assert len(set(cards.top.input[0].tolist())) == 8  # different pictures, one position of each


def test_patches_through_strides_and_pooling():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 1))
    cards = feature_cards(NeuronBasis(4), model, Site("3"), torch.rand(6, 3, 16, 16), effects=False)
    patches = patches_of(cards.source)
    assert patches.grid == (4, 4) and patches.step == (4.0, 4.0) and patches.box(5) == (3, 3, 8, 8)


def test_unusual_columns_of_a_table():
    torch.manual_seed(0)
    x = torch.randn(400, 5)
    model = nn.Sequential(nn.Linear(5, 2), nn.ReLU(), nn.Linear(2, 1))
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].weight[0, 3] = 1
        model[0].weight[1, 1] = -1
    cards = feature_cards(NeuronBasis(2), model, "1", x)
    assert cards.columns.index[:, 0].tolist() == [3, 1]
    top = x[cards.top.input[0], 3].mean()
    assert torch.isclose(cards.columns.deviation[0, 0], (top - x[:, 3].mean()) / x[:, 3].std(correction=0), atol=1e-3)
    assert cards.columns.deviation[1, 0] < -1


def test_loaders_and_dead_latents(language):
    model, inputs, _ = language
    from torch.utils.data import DataLoader, TensorDataset

    loader = DataLoader(TensorDataset(inputs["input_ids"], torch.zeros(30)), batch_size=7)
    cards = feature_cards(NeuronBasis(WIDTH), model, "embed", loader, contexts=2, window=1)
    whole = feature_cards(NeuronBasis(WIDTH), model, "embed", inputs["input_ids"], contexts=2, window=1)
    assert torch.equal(cards.top.input, whole.top.input) and torch.equal(cards.top.acts.isnan(), whole.top.acts.isnan())
    silent = torch.randn(3, WIDTH) * 0
    dead = feature_cards(untrained(silent, 1), model, "embed", inputs, window=1)
    assert len(dead.alive) == 0 and (dead.top.value == -torch.inf).all() and dead.to_frame()["density"].max() == 0


def test_bad_input_is_named_in_one_line(language):
    model, inputs, _ = language
    for arguments, options, error in (
        ((NeuronBasis(5), model, "embed", inputs), {}, SpaceMismatch),
        ((NeuronBasis(WIDTH), model, "embedding", inputs), {}, SpaceMismatch),
        ((NeuronBasis(WIDTH), model, "embed", inputs), {"contexts": 0}, DictionaryError),
        ((object(), model, "embed", inputs), {}, DictionaryError),
    ):
        with pytest.raises(error) as caught:
            feature_cards(*arguments, **options)
        assert len(str(caught.value).splitlines()) == 1
