"""The federate study: what happens to the task's metric over rounds, under which aggregation, and what it costs.

>>> config = fa.studies.federate.FederateConfig(clients=10, split="dirichlet", alpha=0.1, runs={
...     "FedAvg": {}, "aligned": {"fuse": "ot-acts", "refit": True}, "moments only": {"refit": "moments"}})
>>> result = fa.studies.federate.federate(config, out="page")
>>> result.to_frame()
"""

from featalign.studies.federate.config import FederateConfig, RunSettings
from featalign.studies.federate.result import FederateResult
from featalign.studies.federate.run import federate

__all__ = ["FederateConfig", "FederateResult", "RunSettings", "federate"]
