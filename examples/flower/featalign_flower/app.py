"""Digits on several machines: every node deals the same split and keeps its own part."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from flwr.app import Context

from featalign import clients, data
from featalign.federated import FederatedResult, Federation, Fusing, Settings
from featalign.federated.flower import client_app, server_app
from featalign.storage import save_tensors

DIGITS = data.load("digits")
MODEL = clients.models["mlp"].for_dataset(DIGITS)
RECIPE = MODEL.recipe(len(DIGITS.train_labels), epochs=1)


def own(context: Context) -> Federation:
    """What a node knows: its part, under a name of its own."""
    k, count = int(context.node_config["partition-id"]), int(context.node_config["num-partitions"])
    split = data.partition(DIGITS.train_labels, "dirichlet", clients=count, alpha=0.5)
    part = (DIGITS.train_inputs[split.indices[k]], DIGITS.train_labels[split.indices[k]])
    return Federation.gather([part], MODEL, names=[split.client_names[k]], recipe=RECIPE, task=DIGITS.task)


def known(context: Context, sizes: Mapping[str, int]) -> Federation:
    """What the server knows: names and numbers of samples, an unlabelled probe, a test set."""
    test = (DIGITS.test_inputs, DIGITS.test_labels)
    return Federation.remote(sizes, MODEL, data.probe(DIGITS, 200), test, DIGITS.task)


def done(result: FederatedResult) -> None:
    """Keep the network and print the rounds."""
    save_tensors(Path.home() / "featalign-flower" / "final.safetensors", result.module.state_dict())
    print(result.to_frame().to_string())


client = client_app(own)
server = server_app(known, Settings(fuse=Fusing("ot-acts", refit=True)), rounds=3, done=done)
