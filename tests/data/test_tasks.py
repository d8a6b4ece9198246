"""What a network is for: losses, metrics, ensembles; one line with the remedy for what does not fit."""

import numpy as np
import pytest
import sklearn.metrics
import torch
from torch.nn import functional as F

from featalign import data
from featalign.data import TASKS, Batch, Classification, Metric, MultiLabel, NextToken, Regression, Scores, task_of
from featalign.errors import BadOption, TaskError, UnknownName

torch.manual_seed(0)
LOGITS, LABELS = torch.randn(12, 4), torch.arange(12) % 4


def score(task, outputs, targets, pieces=1, **batch):
    scores = Scores(task)
    args = torch.zeros(len(outputs), 1)
    for part in torch.arange(len(outputs)).chunk(pieces):
        cut = [targets[int(k)] for k in part] if isinstance(targets, list) else targets[part]
        scores.update(outputs[part], Batch((args[part],), {}, cut))
    return scores.result()


def guess(outputs, targets, args=None, **kwargs):
    return task_of(None, outputs, Batch((torch.zeros(len(outputs), 1) if args is None else args,), kwargs, targets))


@pytest.mark.parametrize("pieces", [1, 5])
@pytest.mark.parametrize(
    "labels",
    [
        LABELS,
        LABELS[:, None],
        LABELS.float(),
        LABELS.int(),
        LABELS.numpy(),
        LABELS.numpy().astype(np.uint8),
        LABELS.double().numpy(),
        LABELS.tolist(),
    ],
    ids=["int64", "[N, 1]", "float", "int32", "numpy", "uint8", "numpy float", "list"],
)
def test_labels_in_any_form(labels, pieces):
    task = guess(LOGITS, labels)
    found = score(task, LOGITS, labels, pieces)
    assert isinstance(task, Classification)
    assert found["accuracy"] == pytest.approx(float((LOGITS.argmax(1) == LABELS).float().mean()))
    assert found["loss"] == pytest.approx(F.cross_entropy(LOGITS, LABELS).item(), rel=1e-6)


def test_names_ids_and_masks():
    expected = score(Classification(), LOGITS, LABELS)
    names = [("cat", "dog", "emu", "fox")[k] for k in LABELS]
    found = task_of(None, LOGITS, Batch((LOGITS,), {}, names), ("cat", "dog", "emu", "fox"))
    assert score(found, LOGITS, names) == expected == score(found, LOGITS, np.array(names))
    gaps = torch.tensor([3, 7, 20, -5])
    assert score(Classification(class_ids=(3, 7, 20, -5)), LOGITS, gaps[LABELS]) == expected
    masked = LABELS.clone()
    masked[::3] = -100
    kept = masked >= 0
    found = score(Classification(), LOGITS, masked, pieces=3)
    assert found["loss"] == pytest.approx(F.cross_entropy(LOGITS[kept], LABELS[kept]).item(), rel=1e-6)
    assert score(
        Classification(class_ids=(3, 7, 20, -5)), LOGITS, torch.where(kept, gaps[LABELS], -100)
    ) == pytest.approx(found)
    with pytest.raises(TaskError, match="every target is masked"):
        score(Classification(), LOGITS, torch.full((12,), -100))


@pytest.mark.parametrize("shape", [(12,), (12, 1)])
def test_one_logit_stands_for_two_classes(shape):
    z = LOGITS[:, 0].reshape(shape)
    for labels in (LABELS % 2, (LABELS % 2).float(), (LABELS % 2).bool(), (LABELS % 2)[:, None]):
        task = guess(z, labels)
        assert isinstance(task, Classification)
        found = score(task, z, labels)
        expected = F.binary_cross_entropy_with_logits(z.flatten(), (LABELS % 2).float())
        assert found["loss"] == pytest.approx(expected.item(), rel=1e-5)
        assert found["accuracy"] == pytest.approx(float(((z.flatten() > 0) == (LABELS % 2).bool()).float().mean()))
    both = task.combine([z, -z], (0.3, 0.7))
    assert both.shape == z.shape and torch.allclose(both.sigmoid(), 0.3 * z.sigmoid() + 0.7 * (-z).sigmoid(), atol=1e-6)


def test_positions_in_both_layouts():
    last, labels = torch.randn(5, 7, 4), torch.randint(4, (5, 7))
    expected = F.cross_entropy(last.flatten(0, 1), labels.flatten()).item()
    a, b = guess(last, labels), guess(last.movedim(-1, 1), labels)
    assert (a.class_dim, b.class_dim) == (-1, 1)
    assert score(a, last, labels)["loss"] == pytest.approx(expected, rel=1e-6)
    assert score(b, last.movedim(-1, 1), labels)["loss"] == pytest.approx(expected, rel=1e-6)
    mixed = b.combine([last.movedim(-1, 1)] * 2, (0.5, 0.5))
    assert torch.allclose(mixed.softmax(1), last.movedim(-1, 1).softmax(1), atol=1e-6)


@pytest.mark.parametrize("outputs", [(30,), (30, 1)])
@pytest.mark.parametrize("targets", [(30,), (30, 1)])
def test_regression_in_any_layout(outputs, targets):
    y = torch.randn(30) * 3 + 1e3
    z = y + torch.randn(30)
    task = guess(z.reshape(outputs), y.reshape(targets))
    assert isinstance(task, Regression)
    found = score(task, z.reshape(outputs), y.reshape(targets), pieces=4)
    assert found["r2"] == pytest.approx(sklearn.metrics.r2_score(y.double(), z.double()), abs=1e-6)
    assert found["mse"] == pytest.approx(sklearn.metrics.mean_squared_error(y.double(), z.double()), rel=1e-6)
    assert score(task, z.reshape(outputs), y.reshape(targets).numpy()) == pytest.approx(found, rel=1e-5)
    y[::4] = float("nan")
    known = ~torch.isnan(y)
    found = score(task, z.reshape(outputs), y.reshape(targets))
    assert found["r2"] == pytest.approx(sklearn.metrics.r2_score(y[known].double(), z[known].double()), abs=1e-6)
    assert score(task, torch.ones(4), torch.ones(4)) == {"mse": 0.0, "r2": 1.0}


def test_multi_label_with_missing_labels():
    labels = (torch.randn(12, 4) > 0).long()
    task = guess(LOGITS, labels)
    assert isinstance(task, MultiLabel) and isinstance(guess(LOGITS, labels.bool()), MultiLabel)
    masked = labels.clone()
    masked[0] = -1
    expected = F.binary_cross_entropy_with_logits(LOGITS[1:], labels[1:].float()).item()
    assert score(task, LOGITS, masked)["loss"] == pytest.approx(expected, rel=1e-6)
    assert score(task, LOGITS, masked, 5)["accuracy"] == pytest.approx(
        float(((LOGITS[1:] > 0) == labels[1:].bool()).float().mean())
    )
    assert torch.allclose(task.combine([LOGITS], (1.0,)), LOGITS, atol=1e-4)


def test_next_token_moves_the_tokens_and_leaves_padding_out():
    tokens, outputs = torch.randint(9, (3, 6)), torch.randn(3, 6, 9)
    assert isinstance(guess(outputs, None, tokens), NextToken)
    expected = F.cross_entropy(outputs[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    for batch in (
        Batch((tokens,)),
        Batch((), {"input_ids": tokens}),
        Batch((), {"input_ids": tokens}, tokens),  # transformers' labels are the tokens themselves
    ):
        task = task_of(None, outputs, batch)
        assert isinstance(task, NextToken)
        scores = Scores(task)
        scores.update(outputs, batch)
        assert scores.result()["loss"] == pytest.approx(expected.item(), rel=1e-6)
    for mask in ([1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1]):
        kept = torch.tensor(mask).bool()
        batch = Batch((), {"input_ids": tokens, "attention_mask": torch.tensor(mask).expand(3, -1)})
        scores = Scores(NextToken())
        scores.update(outputs, batch)
        real = outputs[:, kept], tokens[:, kept]
        expected = F.cross_entropy(real[0][:, :-1].flatten(0, 1), real[1][:, 1:].flatten())
        assert scores.result()["loss"] == pytest.approx(expected.item(), rel=1e-6)
    per_token = guess(outputs, (tokens + 1) % 9, tokens)  # other labels per token are classes
    assert isinstance(per_token, Classification)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_outputs_of_any_precision(dtype):
    z = LOGITS.to(dtype)
    assert score(Classification(), z, LABELS)["loss"] == pytest.approx(F.cross_entropy(LOGITS, LABELS).item(), rel=2e-2)
    for task, targets in ((Classification(), LABELS), (MultiLabel(), (LOGITS > 0).long()), (Regression(), LOGITS)):
        task.check(z, targets)
        assert task.loss(z, targets).isfinite().all()
        assert task.combine([z, z], (0.5, 0.5)).dtype == dtype
        assert task.head_target([z, z], (0.5, 0.5)).dtype == torch.float64


def test_combining_one_network_returns_it():
    for task in (Classification(), NextToken()):
        assert torch.allclose(task.combine([LOGITS], (1.0,)).softmax(-1), LOGITS.softmax(-1), atol=1e-6)
        assert torch.allclose(task.head_target([LOGITS], (1.0,), head="mean-logits"), LOGITS.double())
    counts = torch.tensor([[5, 0, 1, 1], [0, 5, 1, 1]])
    p = Classification().mixture([LOGITS, -LOGITS], (0.5, 0.5), counts)
    one, two = LOGITS.double().softmax(-1), (-LOGITS).double().softmax(-1)
    raw = torch.stack([one[:, 0], two[:, 1], (one[:, 2] + two[:, 2]) / 2, (one[:, 3] + two[:, 3]) / 2], 1)
    assert torch.allclose(p, raw / raw.sum(1, keepdim=True))


def test_evidence_lets_those_speak_who_know_an_input():
    knows = torch.tensor([[9.0, 0.0, 0.0], [0.0, 0.0, 9.0]])
    guesses = torch.tensor([[0.0, 3.5, 0.0], [0.0, 3.5, 0.0]])  # sure enough of class 1, which it alone was taught
    halves = (0.5, 0.5)
    for first, second in ((knows, guesses), (guesses, knows)):
        evidence = Classification().head_target([first, second], halves, head="evidence")
        assert evidence.argmax(1).tolist() == [0, 2]
        moved = Classification().head_target([first + 50, second - 7], halves, head="evidence")
        assert torch.allclose(moved, evidence)  # softmax leaves the mean of the logits open
    unheard = Classification().head_target([knows, 100 * guesses], (1.0, 0.0), head="evidence")
    assert torch.equal(unheard.argmax(1), knows.argmax(1))  # no weight, no word, however loud
    alone = Classification().head_target([knows], (1.0,), head="evidence")
    assert torch.allclose(alone.softmax(-1), knows.double().softmax(-1))
    flat = torch.tensor([[0.0], [5.0], [-5.0]])  # one logit stands for two classes
    told = Classification().head_target([flat, -3 * flat], halves, head="evidence")
    assert told.shape == (3, 1) and told[:, 0].sign().tolist() == [0, -1, 1]
    counts = torch.tensor([[0, 5, 5], [5, 5, 5]])
    unheard = Classification().head_target([knows, guesses], halves, counts, head="evidence")
    assert unheard.argmax(1).tolist() == [1, 2]  # who has seen nothing of a class does not speak for it
    with pytest.raises(BadOption, match=r"class_counts \[2, 3\]; give \[1, 3\]"):
        Classification().head_target([knows], (1.0,), counts, head="evidence")


def test_a_client_that_is_sure_of_everything_does_not_drown_the_others():
    """A network taught one class, with huge logits everywhere: by its energy all inputs would be its own."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.arange(400) % 5

    def client(*knows):
        known = torch.isin(truth, torch.tensor(knows))
        said = F.one_hot(torch.where(known, truth, knows[0]), 5) * torch.where(known, 6.0, 2.0)[:, None]
        return said + 0.3 * torch.randn(400, 5, generator=generator)

    sane = [client(0, 1, 2), client(2, 3, 4), client(3, 1, 4), client(4, 0, 1)]
    told, task, weights = [*sane, 90.0 * F.one_hot(torch.zeros_like(truth), 5)], Classification(), (0.2,) * 5

    def right(temper):
        said = task.head_target(told, weights, head="evidence", temper=temper)
        return float((said.argmax(1) == truth).double().mean())

    temper = task.temper(told, weights)
    assert task.temper(sane, (0.25,) * 4) == 1 and 0 < temper < 0.3
    assert right(1.0) == pytest.approx(0.2) and right(temper) > 0.35
    energies = torch.stack([z.double() - z.double().mean(-1, keepdim=True) for z in told]).logsumexp(-1)
    spoken = [5 * float((power * energies).softmax(0).mean(1).max()) for power in (temper, temper + 1e-3)]
    assert spoken[0] <= 2 + 1e-9 < spoken[1]
    cold = task.head_target(told, weights, head="evidence", temper=0.0)
    assert torch.allclose(cold.softmax(-1), task.mixture(told, weights))
    assert Regression().temper(told, weights) == 1


def test_a_task_from_outside_is_one_subclass(monkeypatch):
    monkeypatch.setattr(TASKS, "_entries", dict(TASKS._entries))

    @TASKS.register("absolute")
    class Absolute(data.Task):
        name, metrics = "absolute", (Metric("error", "m", higher_is_better=False),)

        def loss(self, outputs, targets):
            return (outputs - targets).abs()

    task = task_of("absolute", LOGITS, Batch((LOGITS,), {}, LOGITS + 2))
    assert score(task, LOGITS, LOGITS + 2) == {"error": pytest.approx(2, rel=1e-6)}
    assert task.metric.label == "error, m" and task.metric.gain(1.0, 3.0) == 2
    assert torch.allclose(task.combine([LOGITS, -LOGITS], (0.5, 0.5)), torch.zeros_like(LOGITS), atol=1e-6)
    with pytest.raises(BadOption, match="choices: mean, none"):
        task.head_target([LOGITS], (1.0,), head="log-mixture")
    assert isinstance(task_of(Absolute, LOGITS, Batch((LOGITS,), {}, LOGITS)), Absolute)
    with pytest.raises(TaskError, match="pass outputs="):
        task.outputs_for(Batch((LOGITS,), {}, LOGITS))


def test_outputs_follow_the_targets():
    assert Classification().outputs_for(Batch((LOGITS,), {}, LABELS)) == 4
    assert Classification(class_names=("a", "b")).outputs_for(Batch((LOGITS,), {}, LABELS)) == 2
    assert Regression().outputs_for(Batch((LOGITS,), {}, torch.randn(12))) == 1
    assert Regression().outputs_for(Batch((LOGITS,), {}, torch.randn(12, 3))) == 3
    assert MultiLabel().outputs_for(Batch((LOGITS,), {}, LOGITS > 0)) == 4
    assert NextToken().outputs_for(Batch((torch.tensor([[1, 5, 2]]),))) == 6


def bad(value):
    class Bad(data.Task):
        name, metrics = "bad", (Metric("m"),)

        def score(self, outputs, targets):
            return value

    return Bad()


@pytest.mark.parametrize(
    ("task", "outputs", "targets", "words"),
    [
        (bad({"m": "high"}), LOGITS, LABELS, "metric 'm' of task 'bad' is a str; return a number"),
        (bad({"m": None}), LOGITS, LABELS, "is a NoneType"),
        (bad([1.0]), LOGITS, LABELS, "returned a list; return {metric: value}"),
        (bad({"n": 1.0}), LOGITS, LABELS, "declares metric 'm', which score"),
        (Classification(), LOGITS, LABELS + 1, "labels run from 1 to 4.*class_ids"),
        (Classification(), LOGITS, LABELS - 1, "labels run from -1 to 2.*class_ids"),
        (Classification(class_ids=(0, 1)), LOGITS, LABELS, "label 2 is not among class_ids"),
        (Classification(class_ids=(0, 1, 2, 3, 9)), LOGITS, LABELS, "5 class_ids for 4 classes"),
        (Classification(), LOGITS, LABELS + 0.5, "with fractions.*regression"),
        (Classification(), LOGITS, torch.full((12,), float("nan")), "fractions or NaN"),
        (Classification(), LOGITS, ["cat"] * 12, "label 'cat' is a string.*class_names"),
        (Classification(("dog",)), LOGITS, ["cat"] * 12, r"names no class \(dog\)"),
        (Classification(), LOGITS, [None] * 12, "must be numbers, not NoneType"),
        (Classification(), LOGITS, LOGITS.long(), "one label per row"),
        (MultiLabel(), LOGITS, LABELS, "must have one shape"),
        (MultiLabel(), LOGITS, LOGITS, "0 and 1"),
        (MultiLabel(), LOGITS, ["a"] * 12, "must be numbers, not str"),
        (Regression(), LOGITS, LABELS, "must have one shape"),
        (Regression(), LOGITS, torch.full((12, 4), float("inf")), "hold infinity"),
        (Regression(), LOGITS, ["a"] * 12, "must be numbers, not str"),
        (NextToken(), LOGITS, LABELS, "next-token prediction wants"),
    ],
)
def test_what_does_not_fit_is_one_line(task, outputs, targets, words):
    with pytest.raises(TaskError, match=words) as caught:
        score(task, outputs, targets)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("task", "outputs", "targets", "words"),
    [
        (None, LOGITS, None, r"no targets.*evaluate=\(inputs, targets\)"),
        (None, LOGITS, torch.randn(12), "no task fits"),
        (None, LOGITS[:, :1], torch.tensor([-1, 1] * 6), "no task fits"),
        (None, LOGITS, LABELS + 1, "class_ids"),
        (3, LOGITS, LABELS, "pass a Task"),
        ("next-token", LOGITS, None, "needs integer tokens"),
        ("regression", LOGITS, LABELS, "task='classification'"),
        ("classification", LOGITS, LOGITS, "fractions"),
    ],
)
def test_no_task_is_guessed_where_none_fits(task, outputs, targets, words):
    with pytest.raises(TaskError, match=words):
        task_of(task, outputs, Batch((torch.zeros(12, 1),), {}, targets))
    with pytest.raises(UnknownName, match="classification"):
        task_of("clasification", outputs, Batch((outputs,), {}, LABELS))
