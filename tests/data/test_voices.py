"""By how much clients are heard, told from their answers alone."""

import pytest
import torch

from featalign.clients import Ensemble
from featalign.clients.cohort import Cohort
from featalign.clients.evaluation import voices_of
from featalign.data import Inputs
from featalign.data.tasks import Classification
from featalign.data.voices import Voices, competence, heard, tempered

CLASSES, ROWS = 5, 400
TRUTH = torch.arange(ROWS) % CLASSES


def client(knows, sure=6.0, seed=0):
    """Logits of a network that was taught some classes and calls everything else by the first of them."""
    noise = torch.randn(ROWS, CLASSES, generator=torch.Generator().manual_seed(seed))
    known = torch.isin(TRUTH, torch.tensor(knows))
    said = torch.where(known, TRUTH, torch.full_like(TRUTH, knows[0]))
    return torch.nn.functional.one_hot(said, CLASSES) * torch.where(known, sure, sure / 3)[:, None] + 0.3 * noise


def test_competence_finds_the_classes_that_clients_were_taught():
    logits = torch.stack([client([0, 1, 2], seed=1), client([2, 3, 4], seed=2), client([0, 1, 4], seed=3)])
    known = competence(logits.double().softmax(-1))
    taught = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1], [1, 1, 0, 0, 1]], dtype=torch.bool)
    shares = known / known.sum(0)
    assert shares[taught].min() > 0.35 and shares[~taught].max() < 0.1
    swapped = competence(logits[[2, 0, 1]].double().softmax(-1))
    assert torch.allclose(swapped, known[[2, 0, 1]])  # whoever comes first


def test_a_client_that_is_sure_of_everything_does_not_drown_the_others():
    """A network taught one class, with huge logits everywhere: by energies alone all inputs would be its own."""
    logits = [client([0, 1, 2], seed=1), client([2, 3, 4], seed=2), client([3, 1, 4], seed=3)]
    loud = torch.zeros(ROWS, CLASSES)
    loud[:, 0] = 90.0
    told, weights, task = [*logits, loud], (0.25,) * 4, Classification()

    def right(voices):
        return float((task.head_target(told, weights, voices, "evidence").argmax(1) == TRUTH).double().mean())

    voices = task.voices(told)
    assert right(None) == pytest.approx(0.2) and right(voices) > 0.55 and 0 <= voices.temper < 0.1
    assert task.voices(logits).temper > voices.temper


def test_the_temper_is_the_largest_that_lets_all_be_heard():
    energies = torch.randn(4, 300, generator=torch.Generator().manual_seed(0)).double() * 3
    energies[0] += 4
    for most in (1.2, 1.6):
        temper = tempered(energies, most)
        said = [float((t * energies).softmax(0).mean(1).max()) * 4 for t in (temper, temper + 1e-3)]
        assert 0 < temper < 1 and said[0] <= most + 1e-9 < said[1]
    assert tempered(energies, 4.0) == 1.0 and tempered(torch.ones(3, 10), 1.0) == 1.0


def test_evidence_goes_from_the_mixture_of_answers_to_energies():
    told, weights, task = [client([0, 1, 2], seed=1), client([2, 3, 4], seed=2)], (0.3, 0.7), Classification()
    cold = task.head_target(told, weights, Voices(temper=0.0), "evidence").softmax(-1)
    assert torch.allclose(cold, task.mixture(told, weights))
    assert torch.equal(task.head_target(told, weights, Voices(), "evidence"), task.evidence(told, weights))
    alone = task.head_target(told[:1], (1.0,), task.voices(told).of([0]), "evidence")
    assert torch.allclose(alone.softmax(-1), told[0].double().softmax(-1), atol=1e-9)


def test_label_counts_that_are_known_take_the_place_of_competence():
    logits = torch.stack([client([0, 1, 2], seed=1), client([2, 3, 4], seed=2)])
    counts = torch.tensor([[5.0, 5, 1, 0, 0], [0, 0, 9, 5, 5]])
    assert torch.equal(heard(logits, counts).counts, counts) and heard(logits[:1]).counts is None


def test_voices_are_read_on_the_probe_batch_by_batch():
    x = torch.randn(60, 6, generator=torch.Generator().manual_seed(0))
    modules = [torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4)) for _ in range(3)]
    cohort = Cohort.of(modules, Inputs.of(x).batched(7), task="classification")
    whole = Classification().voices([module(x).detach() for module in modules])
    found = cohort.voices("evidence")
    assert torch.allclose(found.counts, whole.counts) and found.temper == pytest.approx(whole.temper)
    assert found is cohort.voices("evidence") and cohort.voices("mean-logits") == Voices()
    together = Ensemble(modules, task=Classification(), voices=found, head="evidence")
    parts = torch.cat([together(part) for part in x.split(20)])
    assert torch.allclose(parts, together(x), atol=1e-6)  # what is heard does not depend on the batch
    assert voices_of(modules[:1], Inputs.of(x), Classification()) == Voices()
