import dataclasses
import warnings

import pytest
import torch
from torch import nn

from featalign.federated import ClientWarning, Failure, Federation, InProcess, Local, run
from tests.federated.conftest import blobs, net, small


class Meddling(InProcess):
    """Clients in process, of which the reports of one are changed in the second round."""

    def __init__(self, federation, change, client="B", number=2):
        super().__init__(federation, Local())
        self.change, self.client, self.number, self.last = change, client, number, None

    def __call__(self, orders):
        for answer in super().__call__(orders):
            meddled = answer.client == self.client and answer.round == self.number
            yield from self.change(self, answer) if meddled else [answer]
            if answer.client == self.client:
                self.last = answer


def changed(**parts):
    return lambda engine, report: [dataclasses.replace(report, **{k: f(getattr(report, k)) for k, f in parts.items()})]


def poisoned(weights):
    name = next(iter(weights))
    bad = weights[name].clone()
    bad.view(-1)[3] = float("nan")
    return {**weights, name: bad}


def cut(weights):
    name = next(iter(weights))
    return {**weights, name: weights[name][:-1]}


FAULTS = {
    "died": (lambda engine, report: [Failure(report.round, report.client, "connection lost")], "died", "dropped"),
    "silent": (lambda engine, report: [], "died", "dropped"),
    "late": (lambda engine, report: [engine.last], "late", "dropped"),
    "slow": (changed(statistics=lambda s: {**s, "seconds": 1e6}), "late", "dropped"),
    "twice": (lambda engine, report: [report, report], "twice", None),
    "nan": (changed(weights=poisoned), "not-finite", "dropped"),
    "shape": (changed(weights=cut), "shape", "dropped"),
    "architecture": (
        changed(weights=lambda w: nn.Sequential(nn.Linear(6, 3)).state_dict()),
        "architecture",
        "dropped",
    ),
    "hundredfold": (None, "update-norm", "clipped"),
}


@pytest.mark.parametrize("name", list(FAULTS))
def test_a_faulty_client_is_dropped_or_clipped_with_a_warning_and_the_round_completes(federation, name):
    change, fault, action = FAULTS[name]
    if name == "hundredfold":

        def change(engine, report):
            start = engine.base
            far = {key: start[key] + 100 * (value - start[key]) for key, value in report.weights.items()}
            return [dataclasses.replace(report, weights=far)]

    class Engine(Meddling):
        def __call__(self, orders):
            self.base = orders[0].weights
            return super().__call__(orders)

    with pytest.warns(ClientWarning, match=f"client B, round 2: {fault}"):
        result = run(federation, 3, engine=Engine(federation, change), deadline=1000.0, progress=False)
    frames = result.frames
    assert len(frames["rounds"]) == 3
    found = frames["faults"]
    assert found["fault"].tolist() == [fault] and found["round"].tolist() == [2]
    row = frames["clients"].query("round == 2 and client == 'B'").iloc[0]
    assert row["status"] == {"dropped": "dropped", "clipped": "clipped", None: "used"}[action]
    assert (row["weight"] == 0) == (action == "dropped")
    assert all(torch.isfinite(value).all() for value in result.module.state_dict().values())
    assert frames["rounds"]["value"].iloc[-1] > frames["rounds"]["value"].iloc[0]


def test_a_clipped_update_has_the_allowed_norm_and_honest_rounds_none(federation):
    with warnings.catch_warnings():
        warnings.simplefilter("error", ClientWarning)
        run(federation, 3, progress=False)

    def change(engine, report):
        return [dataclasses.replace(report, weights={k: 1e4 * v for k, v in report.weights.items()})]

    with pytest.warns(ClientWarning, match="update-norm"):
        result = run(federation, 2, engine=Meddling(federation, change), progress=False)
    clients = result.frames["clients"].query("round == 2").set_index("client")
    others = sorted(clients.drop("B")["drift"])
    assert clients["drift"]["B"] < 12 * others[1]


def test_uneven_clients_are_not_taken_for_faulty():
    """One sample beside three hundred: the long update and the fast one are honest."""
    data = [*blobs(2, 300), *[(x[:1], y[:1]) for x, y in blobs(2)]]
    federation = Federation.gather(data, net(), evaluate=blobs(1)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error", ClientWarning)
        result = run(federation, 8, progress=False)
    assert result.frames["faults"].empty


def test_a_dropped_report_leaves_the_aggregate_of_the_others(federation):
    change = FAULTS["nan"][0]
    with pytest.warns(ClientWarning):
        faulty = run(federation, 1, engine=Meddling(federation, change, number=1), progress=False)
    data = blobs(4)
    others = Federation.gather(
        [each for k, each in enumerate(data) if k != 1],
        net(),
        federation.probe,
        blobs(1, 200, seed=9)[0],
        names=["A", "C", "D"],
        recipe=federation.recipe,
    )
    # the same orders of samples: seeds follow the client's place
    engine = InProcess(others, Local())

    def moved(orders):
        seeds = {"A": 0, "C": 2, "D": 3}
        return engine([dataclasses.replace(order, order_seed=seeds[order.client]) for order in orders])

    alone = run(others, 1, engine=moved, progress=False)
    for name, value in alone.module.state_dict().items():
        assert torch.allclose(value, faulty.module.state_dict()[name], atol=1e-6)


def test_another_clients_dictionary_is_refused():
    federation = small(3)
    federation = dataclasses.replace(federation, own=tuple(own.subset(slice(0, 40)) for own in federation.own))
    stolen = {}

    class Engine(InProcess):
        def __call__(self, orders):
            for report in super().__call__(orders):
                if report.client == "A":
                    stolen.update(report.dictionaries)
                yield dataclasses.replace(report, dictionaries=stolen) if report.client == "B" else report

    with pytest.warns(ClientWarning, match="client B, round 1: foreign-dictionary"):
        result = run(federation, 1, fuse="feature-project", engine=Engine(federation, Local()), progress=False)
    assert result.frames["faults"]["fault"].tolist() == ["foreign-dictionary"]
    assert result.rows["rounds"][0].reported == 2


def test_a_client_that_was_not_asked_and_moments_that_are_missing_are_refused(federation):
    class Engine(InProcess):
        def __call__(self, orders):
            answers = list(super().__call__(orders))
            yield from answers
            yield dataclasses.replace(answers[0], client="stranger")

    with pytest.warns(ClientWarning, match="client stranger, round 1: uninvited"):
        run(federation, 1, engine=Engine(federation, Local()), progress=False)
    change = changed(moments=lambda m: {})
    with pytest.warns(ClientWarning, match="moments were asked for"):
        fuse = ("vanilla", {"refit": "moments"})
        result = run(federation, 1, fuse=fuse, engine=Meddling(federation, change, number=1), progress=False)
    assert result.rows["rounds"][0].reported == 3


def test_a_round_without_any_report_keeps_the_network(federation):
    with pytest.warns(ClientWarning):
        result = run(federation, 1, engine=lambda orders: [], progress=False)
    start = federation.make(0).state_dict()
    assert all(torch.equal(value, start[name]) for name, value in result.module.state_dict().items())
    assert result.rows["rounds"][0].reported == 0
