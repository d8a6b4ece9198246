"""Federated rounds: select x weigh x fuse, with faults, checkpoints and a count of everything that leaves a client.

>>> digits = fa.data.load("digits")
>>> split = fa.data.partition(digits.train_labels, "dirichlet", clients=10, alpha=0.1)
>>> federation = fa.federated.Federation.of(digits, split)
>>> fedavg = fa.federated.run(federation, rounds=20)
>>> aligned = fa.federated.run(federation, rounds=20, fuse=("ot-acts", {"refit": True}))
>>> private = fa.federated.run(federation, rounds=20, fuse=("vanilla", {"refit": "moments"}))
>>> mended = fa.federated.run(federation, rounds=20, fuse=("vanilla", {"calibrate": True}))
>>> one_shot = fa.federated.run(federation, 1, fuse="zip", start="independent")
"""

from featalign.federated.faults import FAULTS, ClientWarning
from featalign.federated.federation import Federation
from featalign.federated.fusing import Fusing
from featalign.federated.local import ALGORITHMS, Local, update
from featalign.federated.messages import KINDS, Failure, Order, Report
from featalign.federated.partitioned import partitioned
from featalign.federated.result import FederatedResult
from featalign.federated.rounds import InProcess, drive, run
from featalign.federated.select import SELECTIONS, Presence, of_law
from featalign.federated.server import Server, Settings
from featalign.federated.weigh import WEIGHINGS, Weigher, Weights
from featalign.fuse.moments import client_moments, moment_refit

__all__ = [
    "ALGORITHMS",
    "FAULTS",
    "KINDS",
    "SELECTIONS",
    "WEIGHINGS",
    "ClientWarning",
    "Failure",
    "FederatedResult",
    "Federation",
    "Fusing",
    "InProcess",
    "Local",
    "Order",
    "Presence",
    "Report",
    "Server",
    "Settings",
    "Weigher",
    "Weights",
    "client_moments",
    "drive",
    "moment_refit",
    "of_law",
    "partitioned",
    "run",
    "update",
]
