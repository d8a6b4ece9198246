import warnings

import pandas as pd
import pytest
import torch

pytest.importorskip("flwr", reason="Flower is not installed (pip install 'featalign[federated]')")

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from featalign.clients import evaluate, train
from featalign.errors import BadOption
from featalign.federated import ClientWarning, Federation, Fusing, Local, Settings, partitioned, run
from featalign.federated.flower import FeatureAlign, GridEngine, LocalGrid, client_app, server_app
from tests.federated.conftest import blobs, small

FUSE = ("ot-acts", {"refit": True})


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"fuse": FUSE},
        {"fuse": ("vanilla", {"refit": "moments"})},
        {"fuse": ("vanilla", {"calibrate": "masked"})},
        {"local": Local("scaffold")},
        {"select": ("k-of-n", {"k": 2}), "weigh": ("fedavot", {})},
    ],
)
def test_the_grid_gives_the_figures_of_the_process(options):
    here = run(small(), 3, progress=False, **options)
    local = options.get("local", Local())
    rest = {key: value for key, value in options.items() if key not in ("fuse", "local")}
    settings = Settings(fuse=Fusing.of(options.get("fuse", "vanilla")), local=local, **rest)
    found = []
    app = server_app(lambda context, sizes: small(), settings, 3, found.append)
    context = Context(1, 0, {}, RecordDict(), {})
    app(LocalGrid(client_app(lambda context: small(), local), 4), context)
    for name, frame in here.figures_only().items():
        pd.testing.assert_frame_equal(frame, found[0].figures_only()[name])
    for name, value in here.module.state_dict().items():
        assert torch.equal(value, found[0].module.state_dict()[name])


def alone(context):
    """What a node of a deployment knows: its own data."""
    k = context.node_config["partition-id"]
    whole = small()
    return Federation.gather([blobs(4)[k]], whole.make(0), names=[whole.names[k]], recipe=whole.recipe)


def test_clients_that_know_only_their_own_data_and_a_server_that_knows_none(tmp_path):
    here = run(small(), 2, progress=False, fuse=FUSE, watch=0)
    whole, found = small(), []

    def known(context, sizes):
        assert sizes == dict(zip(whole.names, whole.sizes))
        return Federation.remote(sizes, whole.make(0), whole.probe, whole.evaluation)

    app = server_app(known, Settings(fuse=Fusing.of(FUSE)), 2, found.append, folder=tmp_path / "rounds")
    app(LocalGrid(client_app(alone), 4, seed=5), Context(1, 0, {}, RecordDict(), {}))
    for name, value in here.module.state_dict().items():
        assert torch.equal(value, found[0].module.state_dict()[name])
    assert len(list((tmp_path / "rounds" / "rounds").iterdir())) == 2


def test_dictionaries_travel():
    here, found = run(small(2), 1, progress=False, fuse="feature-project"), []
    app = server_app(lambda context, sizes: small(2), Settings(fuse=Fusing("feature-project")), 1, found.append)
    app(LocalGrid(client_app(lambda context: small(2)), 2), Context(1, 0, {}, RecordDict(), {}))
    for name, value in here.module.state_dict().items():
        assert torch.equal(value, found[0].module.state_dict()[name])


def user_app(poisoned=None):
    """A Flower client that knows nothing of featalign."""
    app, whole = ClientApp(), small()

    @app.train()
    def fit(message, context):
        k = context.node_config["partition-id"]
        module = whole.make(0)
        module.load_state_dict(message.content["arrays"].to_torch_state_dict())
        round_seed = 1_000_003 * (message.content["config"]["server-round"] - 1)
        losses = train(module, whole.own[k], None, whole.task, whole.recipe, k + round_seed, progress=False)
        state = module.state_dict()
        if k == poisoned:
            state = {name: value * float("nan") for name, value in state.items()}
        numbers = {"num-examples": whole.sizes[k], "train_loss": losses[-1], "partition-id": k}
        records = {"arrays": ArrayRecord(state), "metrics": MetricRecord(numbers)}
        return Message(RecordDict(records), reply_to=message)

    @app.evaluate()
    def score(message, context):
        k = context.node_config["partition-id"]
        module = whole.make(0)
        module.load_state_dict(message.content["arrays"].to_torch_state_dict())
        found = evaluate(module, whole.own[k], whole.task)
        numbers = MetricRecord({"num-examples": whole.sizes[k], **found})
        return Message(RecordDict({"metrics": numbers}), reply_to=message)

    return app


@pytest.mark.parametrize("fuse", ["vanilla", FUSE])
def test_the_strategy_in_a_users_own_app_gives_what_run_gives(fuse, tmp_path):
    whole = small()
    here = run(whole, 3, fuse=fuse, progress=False)
    strategy = FeatureAlign(whole.make(0), whole.probe, fuse=fuse, folder=tmp_path, min_available_nodes=4)
    start = ArrayRecord(whole.make(0).state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error", ClientWarning)
        result = strategy.start(LocalGrid(user_app(), 4), start, num_rounds=3, train_config=ConfigRecord())
    for name, value in here.module.state_dict().items():
        assert torch.allclose(value, result.arrays.to_torch_state_dict()[name], atol=1e-6)
    assert result.evaluate_metrics_clientapp[3]["accuracy"] > result.evaluate_metrics_clientapp[1]["accuracy"] - 0.1
    assert len(list(tmp_path.glob("round-*.safetensors"))) == 3


def test_the_strategy_leaves_a_poisoned_client_out():
    whole = small()
    strategy = FeatureAlign(whole.make(0), whole.probe, min_available_nodes=4)
    start = ArrayRecord(whole.make(0).state_dict())
    with pytest.warns(ClientWarning, match="not-finite"):
        result = strategy.start(LocalGrid(user_app(poisoned=2), 4), start, num_rounds=2)
    state = result.arrays.to_torch_state_dict()
    assert all(torch.isfinite(value).all() for value in state.values())
    assert not torch.equal(state["0.weight"], whole.make(0).state_dict()["0.weight"])


def test_a_node_that_fails_is_a_failure_and_a_missing_client_an_error():
    data = blobs(4)
    data[1] = (data[1][0] * float("inf"), data[1][1])
    broken, found = Federation.gather(data, small().make(0)), []
    app = server_app(lambda context, sizes: broken, Settings(watch=0), 1, found.append)
    with pytest.warns(ClientWarning, match="client B, round 1: died .*NotFinite"):
        app(LocalGrid(client_app(lambda context: broken), 4), Context(1, 0, {}, RecordDict(), {}))
    assert found[0].rows["rounds"][0].reported == 3
    with pytest.raises(BadOption, match="client 'E' is no node"):
        GridEngine(LocalGrid(client_app(lambda context: small()), 4)).require(["A", "E"])


class Late(LocalGrid):
    """Nodes that connect after the server has started."""

    asked = 0

    def get_node_ids(self):
        self.asked += 1
        return super().get_node_ids()[: self.asked]


def test_the_server_waits_for_its_nodes():
    grid = Late(client_app(lambda context: small()), 4)
    assert len(GridEngine(grid, min_available_nodes=3).nodes) == 3
    with pytest.raises(TimeoutError, match=r"4 of min_available_nodes = 5 connected in 0\.1 s"):
        GridEngine(grid, 5, timeout=0.1)


@pytest.mark.slow
def test_flowers_simulation_on_ray_gives_the_figures_of_the_process():
    pytest.importorskip("ray", reason="Ray is not installed (pip install 'flwr[simulation]')")
    from flwr.simulation import run_simulation

    fuse = ("vanilla", {"refit": "moments", "calibrate": True})
    here, found = run(small(3), 2, progress=False, fuse=fuse), []
    settings = Settings(fuse=Fusing.of(fuse))
    app = server_app(lambda context, sizes: small(3), settings, 2, found.append, min_available_nodes=3)
    one = {"init_args": {"num_cpus": 1, "include_dashboard": False}, "client_resources": {"num_cpus": 1}}
    run_simulation(app, client_app(lambda context: small(3)), 3, backend_config=one)
    for name, frame in here.figures_only().items():
        pd.testing.assert_frame_equal(frame, found[0].figures_only()[name])
    for name, value in here.module.state_dict().items():
        assert torch.equal(value, found[0].module.state_dict()[name])


class Halves:
    """A partitioner as flwr-datasets has them: rows of a table, dealt in turn."""

    num_partitions = 2

    def __init__(self, rows):
        self.rows = rows

    def load_partition(self, partition_id):
        return self.rows[partition_id :: self.num_partitions]


@pytest.mark.parametrize("columns", [{}, {"inputs": "image", "targets": "label"}])
def test_a_flower_partitioner_deals_a_federation(columns):
    x, y = blobs(1, 60)[0]
    rows = [{"image": row.reshape(2, 3).numpy(), "label": int(label)} for row, label in zip(x, y)]
    parts = partitioned(Halves(rows), **columns)
    assert [len(labels) for _, labels in parts] == [30, 30] and parts[0][0].shape == (30, 2, 3)
    assert torch.allclose(parts[1][0].flatten(1), x[1::2]) and torch.equal(parts[1][1], y[1::2])
    flat = [(inputs.flatten(1), labels) for inputs, labels in parts]
    assert run(Federation.gather(flat, small().make(0)), 1, progress=False).rows["rounds"][0].reported == 2
    with pytest.raises(BadOption, match="no column 'pixels'; columns: image, label"):
        partitioned(Halves(rows), inputs="pixels")
    with pytest.raises(BadOption, match="load_partition and num_partitions"):
        partitioned([x, y])
