"""Whatever a user calls a probe: the same batches for every client, streamed."""

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from featalign.data import Batch, Inputs, unwrap
from featalign.errors import ProbeError

X, Y = torch.randn(23, 4, generator=torch.Generator().manual_seed(0)), torch.arange(23) % 3


def joined(inputs: Inputs) -> torch.Tensor:
    return torch.cat([batch.tensors[0] for batch in inputs])


class Pictures(Dataset):
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, k):
        return self.items[k]


@pytest.mark.parametrize(
    "source",
    [
        X,
        X.numpy(),
        (X,),
        {"x": X},
        DataLoader(X, 5),
        DataLoader(TensorDataset(X, Y), 5),
        Pictures(list(X)),
        [X[:9], X[9:]],
    ],
    ids=["tensor", "array", "tuple", "mapping", "loader", "labelled", "data set", "list"],
)
def test_every_source_gives_the_same_samples_again_and_again(source):
    inputs = Inputs.of(source, batch_size=7)
    assert torch.equal(joined(inputs), X) and torch.equal(joined(inputs), X) and len(inputs) == 23
    assert torch.equal(joined(inputs.gathered()), X)
    assert inputs.digest == Inputs.of(source, batch_size=3).digest
    assert inputs.example(2).size == 2
    chosen = inputs.subset(torch.tensor([4, 0, 9]))
    assert torch.equal(joined(chosen), X[[4, 0, 9]])
    assert "23" in repr(inputs) or "?" in repr(inputs)


def test_targets_follow_their_samples():
    for inputs in (
        Inputs.of(X, Y),
        Inputs.of((X, Y), labelled=True),
        Inputs.of({"input_ids": X.long(), "labels": Y}),
        Inputs.of(DataLoader(TensorDataset(X, Y), 5)),
        Inputs.of(DataLoader(X, 5), Y),
        Inputs.of(Inputs.of(X), Y),
        Inputs.of(X, Y.tolist()),
    ):
        batches = list(inputs.batched(6))
        assert torch.equal(torch.cat([torch.as_tensor(b.targets) for b in batches]), Y)
        assert torch.equal(torch.as_tensor(inputs.targets), Y)
    assert Inputs.of(X, ["a"] * 23).example(2).targets == ["a", "a"]
    with pytest.raises(ProbeError, match="23 inputs and 22 targets"):
        Inputs.of(X, Y[:-1])


@pytest.mark.parametrize("own", [False, True], ids=["global generator", "its own generator"])
def test_a_shuffled_loader_gives_every_client_the_same_batches(own):
    generator = torch.Generator().manual_seed(5) if own else None
    inputs = Inputs.of(DataLoader(X, 5, shuffle=True, generator=generator))
    first = joined(inputs)
    torch.randn(3)  # what happens in between does not matter
    assert torch.equal(joined(inputs), first) and not torch.equal(first, X)
    assert torch.equal(first.sort(0).values, X.sort(0).values)
    for mine, other in zip(inputs, inputs):  # two clients at once
        torch.randn(2)
        assert torch.equal(mine.tensors[0], other.tensors[0])


def test_reading_leaves_the_global_random_state():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    joined(Inputs.of(DataLoader(X, 5, shuffle=True)))
    assert torch.equal(torch.rand(4), expected)


def test_augmenting_loaders_repeat_and_others_are_refused():
    noisy = Inputs.of(DataLoader(X, 5, collate_fn=lambda rows: torch.stack(rows) + torch.randn(len(rows), 4)))
    assert torch.equal(joined(noisy), joined(noisy))
    wild = np.random.default_rng(0)
    loader = Inputs.of(DataLoader(X, 5, collate_fn=lambda rows: torch.stack(rows) + wild.random()))
    joined(loader)
    with pytest.raises(ProbeError, match=r"batch 0 of the loader is another one.*gathered"):
        joined(loader)
    held = loader.gathered()
    assert torch.equal(joined(held), joined(held))


def test_training_passes_differ_and_follow_the_seed():
    for source in (X, DataLoader(X, 5, shuffle=True), DataLoader(X, 5, shuffle=True, generator=torch.Generator())):
        inputs = Inputs.of(source)
        runs = []
        for seed in (0, 0, 1):
            generator = torch.Generator().manual_seed(seed)
            runs.append([torch.cat([b.tensors[0] for b in inputs.epoch(5, generator)]) for _ in range(2)])
        assert torch.equal(runs[0][0], runs[1][0]) and torch.equal(runs[0][1], runs[1][1])
        assert not torch.equal(runs[0][0], runs[0][1]) and not torch.equal(runs[0][0], runs[2][0])
        assert inputs.batches(5) == 5


def test_mapped_arrays_are_read_batch_by_batch(tmp_path):
    read = []

    class Watched(np.memmap):
        def __getitem__(self, index):
            found = super().__getitem__(index)
            if isinstance(index, (slice, np.ndarray)):
                read.append(len(found))
            return found

    path = tmp_path / "activations.npy"
    whole = np.lib.format.open_memmap(path, "w+", np.float32, (1000, 8))
    whole[:] = np.arange(8000).reshape(1000, 8)
    whole.flush()
    mapped = np.load(path, mmap_mode="r").view(Watched)
    inputs = Inputs.of(mapped, batch_size=64)
    assert inputs.tensor is None and len(inputs) == 1000
    batches = iter(inputs)
    assert next(batches).tensors[0].shape == (64, 8) and sum(read) == 64
    read.clear()
    assert torch.equal(inputs.sample(10, seed=1).example(10).tensors[0][:, 1] % 8, torch.ones(10))
    assert max(read) <= 64
    assert torch.equal(joined(inputs), torch.from_numpy(np.array(mapped)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.bool])
def test_digest_tells_contents_apart_in_any_dtype(dtype):
    a = (X > 0).to(dtype)
    b = a.clone()
    b[-1, 0] = ~b[-1, 0] if dtype == torch.bool else 1 - b[-1, 0]
    assert Inputs.of(a).digest == Inputs.of(a.clone(), batch_size=2).digest != Inputs.of(b).digest
    assert Inputs.of(a[:, 0]).digest != Inputs.of(a[:, 1]).digest


def test_strings_with_a_tokenizer_and_attention_masks():
    def tokenizer(texts, **options):
        width = max(map(len, texts))
        ids = torch.tensor([[ord(c) for c in text.ljust(width)] for text in texts])
        return {"input_ids": ids, "attention_mask": (ids != 32).long()}

    batch = Inputs.of(["to", "be or"], tokenizer=tokenizer).example(2)
    assert batch.tokens.shape == (2, 5) and batch.mask.tolist()[0] == [True, True, False, False, False]
    plain = Inputs.of(["ab"], tokenizer=lambda texts: torch.tensor([[1, 2]]))
    assert plain.example(1).tokens.tolist() == [[1, 2]]
    with pytest.raises(ProbeError, match="pass tokenizer="):
        Inputs.of(["to", "be"])

    def without_padding(texts, **options):
        raise ValueError("Asking to pad but the tokenizer does not have a padding token.\nmore")

    with pytest.raises(ProbeError, match=r"pad_token = tokenizer\.eos_token"):
        Inputs.of(["to", "be"], tokenizer=without_padding)
    with pytest.raises(ProbeError, match="must return a tensor or a mapping"):
        Inputs.of(["to"], tokenizer=lambda texts: 3)


def test_data_sets_of_mappings():
    rows = [{"input_ids": [k, k + 1, k + 2], "text": "abc", "label": k % 2} for k in range(6)]
    batch = Inputs.of(Pictures(rows)).example(6)
    assert batch.kwargs.keys() == {"input_ids"} and batch.tokens.shape == (6, 3) and batch.tokens[4, 2] == 6
    assert batch.targets.tolist() == [0, 1, 0, 1, 0, 1]
    rows[2]["input_ids"] = [1]
    with pytest.raises(ProbeError, match="pad them to one length"):
        Inputs.of(Pictures(rows)).example(6)


def test_batches_run_on_the_modules_dtype():
    module = nn.Linear(4, 2).double()
    assert Batch((X,)).run(module).dtype == torch.float64

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(30, 3)

        def forward(self, input_ids, attention_mask):
            return SimpleNamespace(logits=self.embed(input_ids) * attention_mask[..., None])

    found = Batch((), {"input_ids": torch.ones(2, 3).long(), "attention_mask": torch.ones(2, 3)}).run(Named())
    assert unwrap(found).shape == (2, 3, 3)


def test_tokens_reach_modules_by_name_or_as_the_first_argument():
    class Positional(nn.Module):
        def forward(self, tokens, attention_mask=None):
            return tokens * attention_mask

    class Anything(nn.Module):
        def forward(self, **kwargs):
            return kwargs["token_type_ids"]

    batch = Batch((), {key: torch.ones(2, 3).long() for key in ("input_ids", "attention_mask", "token_type_ids")})
    assert batch.run(Positional()).shape == (2, 3)
    assert batch.on(Positional()).mask is not None and len(batch.on(Positional()).args) == 1
    assert batch.run(Anything()).shape == (2, 3)


@dataclass
class Outputs:
    loss: torch.Tensor
    hidden: torch.Tensor


def test_unwrap_finds_the_output():
    z = torch.zeros(2, 3)
    for wrapped in (z, (z, X), [z], {"loss": z.sum(), "logits": z}, {"out": z}, SimpleNamespace(logits=z, x=X)):
        assert unwrap(wrapped) is z
    assert unwrap(Outputs(z.sum(), z)) is z  # a number is no output
    for wrong in (3, "text", (k for k in [z]), object(), None, {"loss": z.sum()}):
        with pytest.raises(ProbeError, match="wrap it in a module"):
            unwrap(wrong)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (torch.zeros(0, 3), "empty"),
        (torch.tensor(3.0), "single number"),
        (iter([X]), "once only"),
        ((x for x in [X]), "once only"),
        ([], "no batch"),
        (Pictures([]), "empty"),
        ([1.0, 2.0], "holds no tensor"),
        (3, "inputs of type int"),
        ((X, X[:5]), r"arguments of \[5, 23\] samples"),
        (np.array(["a", "b"]), "pass numbers"),
        (np.array([None, 1]), "pass numbers"),
    ],
)
def test_bad_inputs_say_what_to_do(source, words):
    with pytest.raises(ProbeError, match=words):
        inputs = Inputs.of(source)
        for batch in inputs:
            batch.size


def test_exhausted_loaders_are_named():
    class Once:
        def __init__(self):
            self.items = iter([X])

        def __iter__(self):
            return self.items

    inputs = Inputs.of(Once())
    joined(inputs)
    with pytest.raises(ProbeError, match="iterated again"):
        joined(inputs)
    with pytest.raises(ProbeError, match="iterated again"):
        inputs.gathered()
