"""What people pass by mistake is named in one line; labels of any kind give the same figures."""

import numpy as np
import pytest
import torch
from torch import nn

import featalign as fa
from featalign.errors import BadOption, FeatalignError

QUICK = {"methods": ["vanilla"], "curve": 0, "progress": False, "evidence": False}
NAN, INF = float("nan"), float("inf")


@pytest.fixture(scope="module")
def case():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 12, generator=generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        a, b = (nn.Sequential(nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 4)).eval() for _ in range(2))
    return [a, b], x, torch.arange(60) % 4


BAD = {
    "one module": ({"modules": nn.Linear(12, 4)}, "pass a list"),
    "no modules": ({"modules": []}, "zero clients"),
    "no module": ({"modules": ["a", "b"]}, "a client is a str"),
    "no numbers": ({"modules": [nn.Linear(12, 4, device="meta")] * 2}, "holds no numbers"),
    "names alike": ({"names": ["A", "A"]}, "two clients are called 'A'"),
    "one name": ({"names": ["A"]}, "1 names for 2 clients"),
    "device": ({"device": "nope"}, "device 'nope'"),
    "seed": ({"seed": "x"}, "seed = 'x'"),
    "one string": ({"methods": "vanilla"}, "methods = 'vanilla'; give a list"),
    "method": ({"methods": ["nope"]}, "unknown fusion method"),
    "option": ({"foo": 1}, "no option 'foo'"),
    "task": ({"task": "nope"}, "unknown task"),
    "head": ({"head": "nope"}, "head 'nope'"),
    "class names": ({"class_names": ["a"]}, "1 class_names for 4 classes"),
    "counts of zero": ({"class_counts": np.zeros((2, 4))}, "class_counts must be finite"),
    "counts NaN": ({"class_counts": [[NAN] * 4, [1] * 4]}, "class_counts must be finite"),
    "counts negative": ({"class_counts": [[-1, 1, 1, 1], [1] * 4]}, "class_counts must be finite"),
    "counts of one client": ({"class_counts": [[1] * 4]}, "a row of label counts per client"),
    "counts of no numbers": ({"class_counts": "abc"}, "no table of numbers"),
    "mixing NaN": ({"mixing": NAN}, "mixing = nan"),
    "mixing above one": ({"mixing": 2}, "mixing = 2"),
    "ridge zero": ({"ridge": 0}, "ridge = 0"),
    "ridge NaN": ({"ridge": NAN}, "ridge = nan"),
    "ridge infinite": ({"ridge": INF}, "ridge = inf"),
    "ridge text": ({"ridge": "x"}, "ridge = 'x'"),
}


@pytest.mark.parametrize("name", BAD)
def test_compare_names_what_is_wrong(case, name):
    modules, x, y = case
    given, message = BAD[name]
    arguments = {"modules": modules, **QUICK, **given}
    with pytest.raises(FeatalignError) as error:
        fa.compare(arguments.pop("modules"), x, (x, y), **arguments)
    assert message in str(error.value) and len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    "given",
    [{"mixing": m} for m in ((NAN, 1), (0, 0), (-1, 2), (1, 1), NAN, 2, "x")]
    + [{"ridge": r} for r in (0, -1, NAN, INF, "x", None)]
    + [{"ridge": NAN, "refit": False}, {"class_counts": [[0] * 4] * 2}, {"class_counts": [[NAN] * 4, [1] * 4]}],
    ids=str,
)
def test_fuse_names_what_is_wrong(case, given):
    modules, x, _ = case
    with pytest.raises(BadOption) as error:
        fa.fuse.fuse(modules, x, "ot-acts", task="classification", **given)
    assert next(iter(given)) in str(error.value) and len(str(error.value).splitlines()) == 1


LABELS = {
    "numpy": lambda y: y.numpy(), "int32": lambda y: y.int(), "uint8": lambda y: y.to(torch.uint8),
    "float": lambda y: y.float(), "float64 array": lambda y: y.double().numpy(), "half": lambda y: y.half(),
    "column": lambda y: y[:, None], "float column": lambda y: y[:, None].float(), "list": lambda y: y.tolist(),
}  # fmt: skip


def accuracy(modules, x, y):
    frame = fa.compare(modules, x, (x, y), **QUICK).to_frame()
    return frame["accuracy"]["client-A"]


@pytest.mark.parametrize("kind", LABELS)
def test_labels_of_any_kind_give_the_same_accuracy(case, kind):
    modules, x, y = case
    wanted = (modules[0](x).argmax(1) == y).double().mean().item()
    assert accuracy(modules, x, LABELS[kind](y)) == pytest.approx(wanted)


def test_masked_labels_do_not_count(case):
    modules, x, y = case
    masked = y.clone()
    masked[::3] = -100
    kept = masked >= 0
    wanted = (modules[0](x[kept]).argmax(1) == y[kept]).double().mean().item()
    assert accuracy(modules, x, masked) == pytest.approx(wanted)


@pytest.mark.parametrize(
    "labels",
    [lambda y: y + 10, lambda y: y - 1, lambda y: y + 0.3, lambda y: y[:20], lambda y: torch.tensor(1),
     lambda y: torch.full_like(y, -100), lambda y: torch.stack([y, y], 1), lambda y: ["x"] * len(y)],
    ids=["too large", "negative", "fractions", "too few", "a number", "all masked", "pairs", "strings"],
)  # fmt: skip
def test_labels_that_do_not_fit_are_named(case, labels):
    modules, x, y = case
    with pytest.raises(FeatalignError) as error:
        accuracy(modules, x, labels(y))
    assert len(str(error.value).splitlines()) == 1
