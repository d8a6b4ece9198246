"""Splicing: the identity loses nothing and the mean everything, for any task, site and structure of outputs."""

import pytest
import torch
from torch import nn

from featalign.data.tasks import Classification
from featalign.errors import ProbeError, SpaceMismatch
from featalign.spaces import Site, splice


class Tupled(nn.Module):
    """Returns a tuple whose first tensor counts, as recurrent layers do."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(6, 8)

    def forward(self, x):
        return self.inner(x).relu(), {"rest": x}


class Taking(nn.Module):
    """Calls its layer by keyword and unpacks a tuple."""

    def __init__(self, outputs=3):
        super().__init__()
        self.first, self.last = Tupled(), nn.Linear(8, outputs)

    def forward(self, x):
        hidden, _ = self.first(x=x)
        return self.last(input=hidden)


class Language(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.mix, self.read = nn.Embedding(11, 8), nn.Linear(8, 8), nn.Linear(8, 11)

    def forward(self, input_ids, attention_mask=None):
        return self.read(self.mix(self.embed(input_ids)).relu())


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def cases():
    torch.manual_seed(1)
    x, images = torch.randn(300, 6), torch.randn(60, 3, 5, 5)
    mlp = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    conv = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 2))
    tokens = {"input_ids": torch.randint(0, 11, (20, 7)), "attention_mask": torch.ones(20, 7).long()}
    tokens["attention_mask"][:10, 5:] = 0
    return [
        ("logits", mlp, "2", x, mlp.eval()(x).argmax(1)),
        ("input site", mlp, Site("3", "in"), x, mlp(x).argmax(1)),
        ("named axis", mlp, Site("2", "out", 1, size=2, repeat=2, tile=2), x, mlp(x).argmax(1)),
        ("one logit", nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 1)), "1", x, (x[:, 0] > 0).long()),
        ("regression", nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 2)), "1", x, x[:, :2] * 3),
        ("channels", conv, "0", images, torch.arange(60) % 2),
        ("tuple", Taking(), "first", x, torch.arange(300) % 3),
        ("keyword input", Taking(), Site("last", "in"), x, torch.arange(300) % 3),
        ("next token", Language(), "mix", tokens, None),
    ]


@pytest.mark.parametrize("case", cases(), ids=lambda case: case[0])
def test_the_identity_loses_nothing_and_the_mean_everything(case):
    name, model, site, inputs, targets = case
    for parameter in model.parameters():
        parameter.data *= 2  # so that a layer matters
    seen = []
    whole = splice(model, site, lambda rows: seen.append(rows) or rows, inputs, targets, batch_size=64)
    assert whole.loss == pytest.approx(whole.loss_spliced, abs=1e-6) and whole.scores == pytest.approx(
        whole.scores_spliced, abs=1e-6
    )
    assert whole.loss_ablated != whole.loss
    if name == "next token":
        mask = inputs["attention_mask"].bool().flatten()
        mean = torch.cat(seen).double()[mask].mean(0)
    else:
        mean = torch.cat(seen).double().mean(0)
    gone = splice(model, site, lambda rows: mean.to(rows).expand_as(rows), inputs, targets, batch_size=64)
    assert gone.loss_spliced == pytest.approx(gone.loss_ablated, abs=1e-6)
    if gone.loss_ablated > gone.loss + 1e-3:
        assert whole.recovered == pytest.approx(1, abs=1e-4) and gone.recovered == pytest.approx(0, abs=1e-4)
    assert (gone.kl > 0) == (name != "regression") and not whole.kl > 1e-9
    assert set(whole.scores) == ({"mse", "r2"} if name == "regression" else {"accuracy", "loss"})


def test_batches_and_masked_labels_do_not_matter():
    _, model, site, x, y = cases()[0]
    half = splice(model, site, lambda rows: rows * 0.7, x[:150], y[:150])
    masked = torch.cat([y[:150], torch.full((150,), -100)])
    found = splice(model, site, lambda rows: rows * 0.7, x, masked, batch_size=37, task=Classification())
    assert (found.loss, found.loss_spliced) == pytest.approx((half.loss, half.loss_spliced), abs=1e-6)


def test_a_frozen_batch_normalisation_keeps_its_mode_and_nothing_stays_behind():
    _, model, site, x, y = cases()[0]
    model.train()
    model[1].eval()
    before = [part.training for part in model.modules()], {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(RuntimeError):
        splice(model, site, lambda rows: rows @ torch.zeros(3, 3), x, y)
    splice(model, site, lambda rows: rows, x, y)
    assert [part.training for part in model.modules()] == before[0]
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in before[1].items())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


def test_bad_input_is_named():
    _, model, _, x, y = cases()[0]
    with pytest.raises(SpaceMismatch, match="9"):
        splice(model, "9", lambda rows: rows, x, y)
    with pytest.raises(SpaceMismatch, match=r"\(300, 2\) of rows \(300, 8\)"):
        splice(model, "2", lambda rows: rows[:, :2], x, y)
    with pytest.raises(ProbeError, match="300 inputs and 4 targets"):
        splice(model, "2", lambda rows: rows, x, y[:4])
    with pytest.raises(ProbeError):
        splice(model, "2", lambda rows: rows, x[:0], y[:0])
