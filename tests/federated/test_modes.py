"""What leaves a client: calibration from sums, masked sums, noise, drawn probes, Gromov transport on Gram matrices."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from featalign.bench.modes import AVERAGE, ENSEMBLES, _ensemble, modes, summary
from featalign.clients import Ensemble, TrainConfig, evaluate
from featalign.clients.cohort import Cohort
from featalign.clients.evaluation import temper_of
from featalign.clients.families.mlp import MLPConfig
from featalign.errors import BadOption, SpaceMismatch
from featalign.federated import ClientWarning, Federation, InProcess, Local, run
from featalign.federated.calibrate import calibrate, readout_moments
from featalign.federated.sums import masked, summed
from featalign.fuse import FusionProblem
from featalign.fuse.moments import client_moments, gromov_alignments, input_moments, noised, synthetic_probe
from featalign.spaces import trace
from featalign.studies.federate import FederateConfig
from tests.federated.conftest import blobs, net, small

ENSEMBLE = next(iter(ENSEMBLES))
CALIBRATED = ("vanilla", {"calibrate": True})


@pytest.mark.parametrize("bias", [True, False])
def test_a_calibrated_readout_is_the_regression_on_pooled_data_at_its_old_norm(bias):
    federation, module = small(model=net(bias=bias)), net(bias=bias, seed=3)
    before = module[2].weight.detach().clone(), None if module[2].bias is None else module[2].bias.detach().clone()
    sizes = [len(own) for own in federation.own]
    sent = [readout_moments(module, federation.task, own)["2"] for own in federation.own]
    gram = sum(n / sum(sizes) * part.double() for n, part in zip(sizes, sent))
    calibrate(module, federation.example, gram, 1e-3)
    x, y = (torch.cat(parts) for parts in zip(*blobs(4)))
    with torch.no_grad():
        features = module[1](module[0](x)).double()
    features = torch.cat([features, torch.ones(len(x), 1)], 1) if bias else features
    second = features.T @ features / len(x)
    second = second + 1e-3 * second.diagonal().mean() * torch.eye(len(second))
    target = torch.nn.functional.one_hot(y, 3).double() - 1 / 3
    pooled = torch.linalg.solve(second, features.T @ target / len(x)).T
    parts = [module[2].weight.detach()] + ([module[2].bias.detach()[:, None]] if bias else [])
    found = torch.cat(parts, 1).double()
    norm = torch.cat([before[0], *([before[1][:, None]] if bias else [])], 1).double().norm()
    assert torch.allclose(found, pooled * norm / pooled.norm(), atol=1e-4)


def test_calibration_mends_the_readout_of_clients_with_one_class_each():
    data = []
    for k, (x, y) in enumerate(blobs(8, 60, classes=8)):
        kept = y == k
        data.append((x[kept], y[kept]))
    recipe = TrainConfig(epochs=3, batch_size=8, lr=0.05, momentum=0.9)
    federation = Federation.gather(data, net(classes=8), None, blobs(1, 200, classes=8, seed=9)[0], recipe=recipe)
    plain, mended = (run(federation, 3, fuse=fuse, progress=False).to_frame() for fuse in ("vanilla", CALIBRATED))
    assert mended["value"].iloc[0] > plain["value"].iloc[0] + 0.2, (plain, mended)
    assert (mended["bytes_down"] == 2 * plain["bytes_down"]).all()
    moments = 8 * 4 * (13 + 8) ** 2  # of eight clients: twelve units and a bias beside eight labels
    assert (mended["bytes_up"] - plain["bytes_up"] - moments == 8 * 8 * 2).all()


def test_the_ensemble_by_evidence_lets_no_client_speak_for_all():
    federation = small()
    members = [net(seed=k) for k in range(4)]
    with torch.no_grad():
        for member, factor in zip(members, (30, 30, 30, 3000)):
            member[2].weight.mul_(factor)
    reports = [SimpleNamespace(weights=member.state_dict(), statistics={"samples": 10}) for member in members]
    loud, weights = members[3], (0.25,) * 4
    temper = temper_of(members, federation.probe, federation.task, weights)
    assert temper < 0.1 and temper_of(members[2:], federation.probe, federation.task, (0.5, 0.5)) == 1
    assert temper_of(members, federation.probe, federation.task, (0.5, 0.5, 0, 0)) == 1  # two take part
    for power in (1.0, temper):
        together = Ensemble(members, weights, federation.task, head="evidence", temper=power)
        found = evaluate(together, federation.evaluation, federation.task)["accuracy"]
        alike = found == evaluate(loud, federation.evaluation, federation.task)["accuracy"]
        assert alike == (power == 1.0)
    assert _ensemble(federation, reports, "evidence") == found


@pytest.mark.parametrize(("start", "head"), [("shared", "log-mixture"), ("independent", "evidence")])
def test_evidence_is_for_one_shot_as_it_sharpens_what_goes_round(start, head):
    data = [(x[y == k], y[y == k]) for k, (x, y) in enumerate(blobs(3, 60))]
    recipe, model = TrainConfig(epochs=8, batch_size=16, lr=0.1), MLPConfig(6, (12,), 3)
    probe = torch.cat([x for x, _ in blobs(2, seed=5)])
    federation = Federation.gather(data, model, probe, blobs(1, 200, seed=9)[0], recipe=recipe)
    found, named = (
        run(federation, 1, fuse=("vanilla", {"refit": True, **given}), start=start, progress=False).module
        for given in ({}, {"head": head})
    )
    assert all(torch.equal(one, other) for one, other in zip(found.parameters(), named.parameters()))


def test_masked_sums_are_the_sums_and_a_message_alone_is_noise():
    names, parts = ("A", "B", "C"), [torch.randn(30, 30, dtype=torch.float64) for _ in range(3)]
    sent = [masked({"x": part}, name, names, 7) for name, part in zip(names, parts)]
    assert torch.allclose(summed(sent)["x"], sum(parts), atol=1e-8)
    alone = sent[0]["x"].double() / 2.0**63
    assert alone.mean().abs() < 0.1 and abs(float(alone.var()) - 1 / 3) < 0.05  # uniform on [-1, 1]
    assert abs(float(torch.corrcoef(torch.stack([alone.flatten(), parts[0].flatten()]))[0, 1])) < 0.15
    assert (masked({"x": parts[0]}, "A", names, 8)["x"] != sent[0]["x"]).all()
    with pytest.raises(BadOption, match="more than masked sums carry"):
        masked({"x": torch.full((2,), 1e12)}, "A", names, 7)


def test_a_masked_calibration_gives_what_an_open_one_gives_and_is_given_up_when_a_client_stays_away():
    federation = small()
    opened, closed = (
        run(federation, 2, fuse=("vanilla", {"calibrate": kind}), progress=False) for kind in (True, "masked")
    )
    for a, b in zip(opened.module.state_dict().values(), closed.module.state_dict().values()):
        assert torch.allclose(a, b, atol=1e-5)

    class Leaving(InProcess):
        def __call__(self, orders):
            return [a for a in super().__call__(orders) if orders[0].train or a.client != "C"]

    plain = run(federation, 1, progress=False)
    with pytest.warns(ClientWarning, match="client C, round 1: died"):
        left = run(
            federation,
            1,
            fuse=("vanilla", {"calibrate": "masked"}),
            engine=Leaving(federation, Local()),
            progress=False,
        )
    for a, b in zip(plain.module.state_dict().values(), left.module.state_dict().values()):
        assert torch.equal(a, b)
    assert left.frames["faults"]["client"].tolist() == ["C"]


def test_calibration_says_what_it_wants():
    regression = [(x, x[:, :1]) for x, _ in blobs(2)]
    module = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 1))
    with pytest.raises(BadOption, match="one class a sample"):
        run(Federation.gather(regression, module, task="regression"), 1, fuse=CALIBRATED, progress=False)
    with pytest.raises(SpaceMismatch, match="expected 16 squared"):
        calibrate(net(), small().example, torch.eye(4))
    with pytest.raises(BadOption, match="that an affine layer writes"):
        readout_moments(nn.Sequential(net(), nn.LogSoftmax(1)), small().task, small().own[0])


def test_noise_grows_with_sigma_and_stays_a_gram_matrix():
    gram = torch.cov(torch.randn(20, 200)) + torch.eye(20)
    off = []
    for sigma in (0.01, 0.1, 1.0):
        found = noised(gram, sigma, torch.Generator().manual_seed(0))
        assert torch.linalg.eigvalsh(found.double()).min() > -1e-5 and torch.allclose(found, found.T, atol=1e-5)
        off.append(float((found - gram).norm()))
    assert off == sorted(off) and off[0] < 0.2 * off[2]
    federation = small()
    clean, dirty = (
        run(federation, 1, fuse=("vanilla", {"refit": "moments"}), local=Local(noise=s), progress=False)
        for s in (0.0, 1.0)
    )
    assert not torch.equal(clean.module[0].weight, dirty.module[0].weight)
    with pytest.raises(BadOption, match="noise = -1"):
        Local(noise=-1.0)


def test_a_drawn_probe_has_the_moments_of_the_inputs_and_stands_in_for_a_public_one():
    x = torch.randn(500, 6) @ torch.randn(6, 6) + 3
    module = net()
    federation = Federation.gather([(x, torch.randint(0, 3, (500,)))], module)
    gram = input_moments(federation.own[0])
    drawn = synthetic_probe([gram], [1.0], (6,), 20_000, 0)
    assert torch.allclose(drawn.mean(0), x.mean(0), atol=0.15)
    assert float((torch.cov(drawn.T) - torch.cov(x.T)).norm() / torch.cov(x.T).norm()) < 0.1
    blind = small(probe=None)
    result = run(blind, 2, fuse=("ot-acts", {"refit": True, "probe": "synthetic"}), progress=False)
    assert result.rows["rounds"][-1].value > 0.8
    assert "moments" in set(result.frames["traffic"]["kind"])


def test_gromov_finds_a_permutation_from_gram_matrices_alone():
    federation, module = small(), net()
    order = torch.randperm(12, generator=torch.Generator().manual_seed(2))
    twin = net()
    with torch.no_grad():
        twin[0].weight.copy_(module[0].weight[order])
        twin[0].bias.copy_(module[0].bias[order])
        twin[2].weight.copy_(module[2].weight[:, order])
    cohort = Cohort.of([twin, module], federation.probe, task=federation.task)
    told = [client_moments(net, trace(net, federation.example.example), federation.own[3]) for net in (twin, module)]
    problem = FusionProblem(cohort, (0.5, 0.5), 1)
    found = gromov_alignments(problem, told)[0].maps[problem.graph.hidden[0].name].out
    assert (found.argmax(0) == order).float().mean() > 0.8
    with pytest.raises(BadOption, match="'gromov' aligns averages"):
        run(federation, 1, fuse=("ot-acts", {"match": "gromov"}), progress=False)
    with pytest.raises(BadOption, match="read by no layer whose moments"):
        gromov_alignments(problem, [{}, {}])


def test_modes_fuse_the_same_clients_and_set_them_beside_their_ensemble():
    shape = MLPConfig(inputs=6, hidden=(12,), outputs=3)
    federation, sent = small(model=shape), "Gromov on Gram matrices, refit from moments"
    config = FederateConfig(clients=4, rounds=2)
    frame = modes(config, 3, (0.1,), ["moments only", AVERAGE, sent, ENSEMBLE], federation).set_index(["mode", "noise"])
    local = Local(train=TrainConfig(**{**vars(federation.recipe), "epochs": 3}))
    for name, fuse in ((AVERAGE, "vanilla"), (sent, ("vanilla", {"match": "gromov", "refit": "moments"}))):
        alone = run(federation, 1, fuse=fuse, local=local, start="independent", progress=False)
        assert frame.loc[(name, 0.0), "value"] == alone.rows["rounds"][0].value
        assert frame.loc[(name, 0.0), "kB up"] == pytest.approx(alone.to_frame()["bytes_up"].iloc[0] / 4e3)
    engine = InProcess(federation, local)
    members = [federation.make(0) for _ in federation.own]

    class Kept(InProcess):
        def answer(self, order):
            found = engine.answer(order)
            members[federation.names.index(order.client)].load_state_dict(found.weights)
            return found

    run(federation, 1, start="independent", engine=Kept(federation, local), progress=False)
    weights = [size / sum(federation.sizes) for size in federation.sizes]
    together = evaluate(Ensemble(members, weights, federation.task), federation.evaluation, federation.task)
    assert frame.loc[(ENSEMBLE, 0.0), "value"] == together["accuracy"]
    assert frame.loc[("moments only", 0.1), "kinds"] == "weights, moments"
    assert len(summary(frame.reset_index())) == len(frame) == 5
    copied = modes(config, noise=(), only=[ENSEMBLE], federation=small())
    assert "can only be copied" in summary(copied)["why_not"].item()
    with pytest.raises(BadOption, match="no mode 'moment'"):
        modes(config, only=["moment"], federation=federation)
