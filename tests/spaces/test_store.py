"""Stores hold every row once, go on after a kill, and are never taken for another network's."""

import json
import os
import signal

import pytest
import torch
from torch import nn

from featalign.errors import BadOption, CorruptFile, FolderExists, NotFinite, ProbeError
from featalign.spaces import ActivationStore, Site, collect
from featalign.spaces import store as stores


class Reader(nn.Module):
    def __init__(self, seed=0, scale=1.0):
        super().__init__()
        torch.manual_seed(seed)
        self.embed, self.mix, self.read = nn.Embedding(11, 8), nn.Linear(8, 12), nn.Linear(12, 11)
        self.scale = scale

    def forward(self, input_ids, attention_mask=None):
        return self.read(self.mix(self.embed(input_ids) * self.scale).relu())


def texts(count=50, length=7):
    ids = torch.randint(0, 11, (count, length), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[::3, 4:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def built(folder, module=None, inputs=None, **options):
    module, inputs = module or Reader(), texts() if inputs is None else inputs
    return ActivationStore.build(module, inputs, "mix", folder, progress=False, **options)


def test_a_store_holds_what_capture_reads_with_masks_and_origins(tmp_path):
    module, inputs = Reader(), texts()
    store = built(tmp_path / "s", module, inputs, dtype="float32", shard_rows=60)
    rows = collect(module, inputs, [Site("mix")])[Site("mix")]
    mask = inputs["attention_mask"].bool()
    assert store.shape == (int(mask.sum()), 12) and store.hook_name == "mix" and store.inputs == 50
    assert store.padding == int((~mask).sum()) and len(list((tmp_path / "s").glob("rows-*.npy"))) > 2
    assert torch.equal(store.rows(slice(None)), rows) and torch.equal(store.origins(), mask.nonzero())
    index = torch.tensor([200, 3, 3, 150])
    assert torch.equal(store[index], rows[index]) and torch.equal(torch.cat(list(store.batches(33))), rows)
    half = built(tmp_path / "half", module, inputs)
    assert torch.allclose(half[:], rows, atol=1e-2) and not torch.equal(half[:], rows)
    assert "ActivationStore(299 rows of 12 units at 'mix'" in repr(store)
    with pytest.raises(BadOption, match="row 299 of a store of 299"):
        store.rows(torch.tensor([299]))


def test_shuffled_batches_give_every_row_once_and_mix_the_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "SHARD_BYTES", 4 * 12 * 64)
    numbers = torch.arange(299.0)[:, None].repeat(1, 12)
    module = nn.Sequential(nn.Identity(), nn.Linear(12, 2))
    store = ActivationStore.build(module, numbers, "0", tmp_path / "s", progress=False)
    first, again, other = (torch.cat(list(store.batches(32, seed))) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(first.sort(0).values, store[:].sort(0).values)
    assert [len(part) for part in store.batches(32, 0)] == [32] * 9 + [11]
    assert first[:32, 0].std() > 40  # of 299: not one stretch of the store


def test_a_killed_build_goes_on_after_its_last_shard(tmp_path, monkeypatch):
    flush = stores._Writer._flush

    def dying(self, *args):
        flush(self, *args)
        if len(self.facts["shards"]) == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    if (child := os.fork()) == 0:
        stores._Writer._flush = dying
        built(tmp_path / "s", shard_rows=30)
        os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert not (tmp_path / "s").exists()
    with pytest.raises(CorruptFile, match="not complete: build it again"):
        ActivationStore.open(tmp_path / "s")
    ran = []
    module = Reader()
    module.mix.register_forward_hook(lambda _m, _args, out: ran.append(len(out)))
    store = built(tmp_path / "s", module, shard_rows=30)
    assert sum(ran) < 45  # of 50 inputs, and some to measure
    whole = built(tmp_path / "whole", shard_rows=30)
    assert torch.equal(store[:], whole[:]) and torch.equal(store.origins(), whole.origins())
    assert json.loads((tmp_path / "s" / "store.json").read_text())["inputs"] == 50
    assert not (tmp_path / "s.part").exists() and store.padding == whole.padding


def test_a_complete_store_is_opened_and_one_of_other_weights_site_or_inputs_is_not(tmp_path, monkeypatch):
    store = built(tmp_path / "s")
    monkeypatch.setattr(stores._Writer, "run", lambda *args: pytest.fail("built again"))
    assert built(tmp_path / "s").identity == store.identity
    monkeypatch.undo()
    for change in ({"module": Reader(1)}, {"inputs": texts(49)}, {"dtype": "float32"}):
        with pytest.raises(FolderExists, match="another network, site or inputs"):
            built(tmp_path / "s", **change)
    assert built(tmp_path / "s", Reader(1), overwrite=True).identity != store.identity
    assert len(built(tmp_path / "s", inputs=texts(20), overwrite=True)) < len(store)


def test_loaders_of_any_length_are_stored_and_resumed(tmp_path, monkeypatch):
    batches = [{key: value[k : k + 10] for key, value in texts().items()} for k in range(0, 50, 10)]
    flush, count = stores._Writer._flush, []

    def failing(self, *args):
        flush(self, *args)
        count.append(1)
        if len(count) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(stores._Writer, "_flush", failing)
    with pytest.raises(KeyboardInterrupt):
        built(tmp_path / "s", inputs=batches, shard_rows=20)
    monkeypatch.undo()
    store = built(tmp_path / "s", inputs=batches, shard_rows=20)
    assert torch.equal(store[:], built(tmp_path / "whole")[:]) and torch.equal(
        store.origins()[:, 0].unique(), torch.arange(50)
    )


def test_images_have_one_row_per_position(tmp_path):
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU())
    store = ActivationStore.build(module, torch.randn(20, 1, 6, 6), "1", tmp_path / "s", progress=False)
    assert store.shape == (20 * 16, 4) and store.origins()[-1].tolist() == [19, 15]


@pytest.mark.parametrize(
    ("error", "match", "options"),
    [
        (BadOption, "choose from float16, float32", {"dtype": "int8"}),
        (BadOption, "shard_rows = 0", {"shard_rows": 0}),
        (NotFinite, "dtype='float32'", {"module": Reader(scale=1e6)}),
        (ProbeError, "masks leave no token", {"inputs": {**texts(), "attention_mask": torch.zeros(50, 7)}}),
    ],
)
def test_what_cannot_be_stored_is_told_in_one_line(tmp_path, error, match, options):
    with pytest.raises(error, match=match) as found:
        built(tmp_path / "s", **options)
    assert "\n" not in str(found.value) and not (tmp_path / "s").exists()


def test_damage_is_named(tmp_path):
    with pytest.raises(CorruptFile, match="holds no activations"):
        ActivationStore.open(tmp_path)
    built(tmp_path / "s")
    file = tmp_path / "s" / "rows-00000.npy"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(CorruptFile, match="rows-00000"):
        ActivationStore.open(tmp_path / "s")
