"""Features over rounds: what the aggregate holds of the clients' features, from reading to reading."""

import numpy as np
import pandas as pd
import pytest
import torch

from featalign.clients import TrainConfig
from featalign.errors import BadOption
from featalign.federated import features as reading
from featalign.federated import run
from featalign.federated.features import FeatureWatch, partners
from featalign.federated.messages import Report
from featalign.plots.federated import feature_flow, feature_states
from tests.federated.conftest import blobs, net, small


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(reading, "FIRST", 150)
    monkeypatch.setattr(reading, "LATER", 20)


def federation(**options):
    return small(3, probe=torch.cat([x for x, _ in blobs(4, 60, seed=5)]), **options)


def codes(latents=12, rows=400, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(rows, latents, generator=generator) * (torch.rand(rows, latents, generator=generator) < 0.2)


def test_partners_are_found_through_a_permutation_and_strangers_are_not():
    a = codes()
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    assert (partners(a, a[:, order])[order.numpy()] == np.arange(12)).all()
    assert (partners(a, codes(seed=9)) >= 0).sum() <= 1
    assert (partners(a, torch.zeros(400, 5)) == -1).all()
    half = a.clone()
    half[:, 6:] = codes(6, seed=3)
    found = partners(a, half)
    assert (found[:6] == np.arange(6)).all() and (found[6:] == -1).sum() >= 5


def reports(fed, states):
    return [Report(1, name, state, statistics={"samples": 10.0}) for name, state in zip(fed.names, states)]


def test_clients_that_are_the_aggregate_share_every_feature_and_lose_none():
    fed = federation()
    state, watch = fed.make(0).state_dict(), FeatureWatch(fed, 1)
    for number in (1, 2):
        rows, flows = watch.look(number, reports(fed, [state] * 3), state)
        for row in rows:
            assert row.alive > 0 and row.shared + row.local + row.lost == row.alive
            if row.client != "server":
                assert row.lost <= 0.2 * row.alive and row.local == 0 and row.survival > 0.8
    assert {flow.before for flow in flows} <= {"shared", "new", "lost"}
    kept = sum(flow.count for flow in flows if flow.before == flow.after == "shared")
    assert kept > 0.8 * sum(row.alive for row in rows if row.client != "server")


def test_what_an_aggregate_forgets_is_lost_and_what_training_brings_back_is_relearned():
    fed = federation()
    state, other = fed.make(0).state_dict(), net(seed=5).state_dict()
    watch = FeatureWatch(fed, 1)
    watch.look(1, reports(fed, [state] * 3), state)
    forgotten, _ = watch.look(2, reports(fed, [state] * 3), other)
    again, flows = watch.look(3, reports(fed, [state] * 3), state)
    lost = sum(row.lost for row in forgotten if row.client != "server")
    alive = sum(row.alive for row in forgotten if row.client != "server")
    assert lost > 0.4 * alive
    assert sum(row.relearned for row in again) > 0.6 * lost
    assert sum(flow.count for flow in flows if flow.before == "lost" and flow.after == "shared") > 0.3 * lost
    assert np.mean([row.survival for row in forgotten]) < np.mean([row.survival for row in again])


def test_rounds_read_features_every_so_often_and_a_resumed_run_reads_the_same(tmp_path):
    fed = federation()
    whole = run(fed, 4, features=2, progress=False)
    survival = whole.to_frame()["survival"]
    assert survival.notna().tolist() == [True, False, True, False]
    frames = whole.frames
    assert set(frames["features"]["client"]) == {"A", "B", "C", "server"} and set(frames["flows"]["round"]) == {3}
    outgoing = frames["flows"].query("before != 'new'")["count"].sum()
    first = frames["features"].query("round == 1 and client != 'server'")
    assert outgoing == first["alive"].sum()
    assert set(frames["traffic"]["kind"]) == {"weights", "statistics"}  # reading costs the clients nothing
    run(fed, 2, features=2, folder=tmp_path / "run", progress=False)
    again = run(fed, 4, features=2, folder=tmp_path / "run", resume=True, progress=False)
    for name, frame in whole.figures_only().items():
        pd.testing.assert_frame_equal(frame, again.figures_only()[name])
    plain = run(fed, 4, progress=False)
    assert plain.frames["features"].empty and plain.to_frame()["survival"].isna().all()
    assert torch.equal(plain.module[0].weight, whole.module[0].weight)  # reading changes no round
    assert len(feature_flow(frames["flows"], "flow").data[0].link.value) > 3
    assert feature_states(frames["features"].assign(run="x")).data[0].y[0] > 0


def test_reading_wants_a_probe_and_a_sensible_interval():
    with pytest.raises(BadOption, match="features are read on a public probe"):
        run(small(probe=None), 1, features=1, progress=False)
    with pytest.raises(BadOption, match="features = -1"):
        run(small(recipe=TrainConfig(epochs=0)), 1, features=-1, progress=False)
