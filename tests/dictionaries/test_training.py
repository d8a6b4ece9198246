"""Training: gradients, recovery, every architecture, seeds, checkpoints, preflight, bad input."""

import numpy as np
import pytest
import torch
from torch import nn

from featalign import dictionaries as fd
from featalign.bench.sae import planted
from featalign.dictionaries import products
from featalign.dictionaries.architectures import ARCHITECTURES
from featalign.dictionaries.refit import CodeMoments, free_decoder, gained_decoder
from featalign.dictionaries.trainer import Plan, Trainer
from featalign.errors import BadOption, DictionaryError, NotFinite, SpaceMismatch, UnknownName
from featalign.measure import match_scores

NAMES = ARCHITECTURES.names()


@pytest.fixture(scope="module")
def toy():
    return planted(24, 8, 6000, 1.0)


def trained(x, architecture, **options):
    options = {"width": 32, "k": 2, "steps": 200, **options}
    return fd.train(x, architecture=architecture, **options)


@pytest.mark.parametrize("name", NAMES)
def test_every_architecture_explains_and_keeps_its_sparsity(toy, name):
    found = trained(toy[1], name, steps=800)
    assert found.quality.explained_variance > (0.2 if name == "transcoder" else 0.5)
    assert 0.5 < found.quality.l0 < 4
    assert torch.allclose(found.atoms.norm(dim=1), torch.ones(32), atol=1e-4)
    assert list(found.history["step"]) == sorted(found.history["step"])


def test_an_l1_dictionary_keeps_directions_and_loses_no_amplitude(toy):
    found = trained(toy[1], "relu", k=1.4, steps=1500, lr=1e-2)
    assert match_scores(toy[0], found.atoms).mcc > 0.95
    returned, held = found.decode(found.encode(toy[1])), toy[1] - toy[1].mean(0)
    assert float((returned - toy[1].mean(0)).mul(held).sum() / held.pow(2).sum()) > 0.7  # shrunken codes return less


def test_topk_recovers_most_of_a_planted_dictionary(toy):
    found = trained(toy[1], "topk", steps=1500)
    scores = match_scores(toy[0], found.atoms)
    assert scores.mcc > 0.95 and scores.null < 0.85


@pytest.mark.parametrize("name", ["topk", "relu", "gated", "matryoshka", "batchtopk"])
def test_written_gradients_equal_autograd(toy, name):
    x = toy[1][:512]
    trainer = Trainer(Plan(name, 32, 2, 10, 64, 1e-2), [x], [x], [{}], [0])
    with torch.no_grad():
        rows = trainer._rows()[0]
        batch = trainer.x[0][rows][None]
        params = {key: value.clone() for key, value in trainer.params.items()}
        pre = torch.baddbmm(params["b_enc"][:, None], batch, params["encoder"].transpose(1, 2))
        trainer._dense_gradients(batch, batch, pre)
    wanted = {key: value.clone().requires_grad_() for key, value in params.items()}
    pre = torch.baddbmm(wanted["b_enc"][:, None], batch, wanted["encoder"].transpose(1, 2))
    mask = trainer.arch.activate(pre.detach(), params) > 0
    if name == "gated":
        codes = mask * ((pre - wanted["b_enc"][:, None]) * wanted["r_mag"].exp()[:, None] + wanted["b_mag"][:, None])
    else:
        codes = pre * mask
    loss, total = 0.0, wanted["b_dec"][:, None] - batch
    for part in trainer.arch.groups():
        total = total + codes[..., part] @ wanted["decoder"][:, part]
        loss = loss + total.pow(2).sum(2).mean() / batch.shape[2] / len(trainer.arch.groups())
    if name == "relu":
        loss = loss + 1e-2 * codes.sum(2).mean()
    if name == "gated":
        gate = pre.relu() @ wanted["decoder"] + wanted["b_dec"][:, None] - batch
        loss = loss + gate.pow(2).sum(2).mean() / batch.shape[2] + 1e-2 * pre.relu().sum(2).mean()
    loss.backward()
    for key, value in wanted.items():
        assert torch.allclose(value.grad, trainer.grads[key], atol=1e-6), key


def test_clipping_bounds_each_dictionary_on_its_own(toy):
    x = toy[1][:512]
    trainer = Trainer(Plan("relu", 32, 2, 10, 64, 1e-2), [x, x], [x, x], [{}, {}], [0, 1])
    with torch.no_grad():
        for grad in trainer.grads.values():
            grad[0], grad[1] = 3.0, 1e-5
        trainer._clip()
    norms = torch.stack([grad.flatten(1).pow(2).sum(1) for grad in trainer.grads.values()]).sum(0).sqrt()
    assert x.shape[1] * float(norms[0]) == pytest.approx(1.0, rel=1e-4)
    assert all(torch.equal(grad[1], torch.full_like(grad[1], 1e-5)) for grad in trainer.grads.values())


@pytest.mark.skipif(not products.available(), reason="sampled products need a build with MKL")
def test_sparse_products_equal_dense_ones():
    torch.manual_seed(0)
    codes = torch.randn(20, 30).relu() * (torch.rand(20, 30) < 0.2)
    flat = np.flatnonzero((codes > 0).numpy())
    active, values = products.Active(flat, (20, 30)), codes.flatten()[torch.from_numpy(flat)]
    atoms, dense = torch.randn(30, 7), torch.randn(20, 7)
    assert torch.allclose(active.decode(values, atoms), codes @ atoms, atol=1e-5)
    assert torch.allclose(active.transposed(values, dense), codes.T @ dense, atol=1e-5)
    assert torch.allclose(active.sample(dense, atoms), (dense @ atoms.T)[codes > 0], atol=1e-5)
    assert torch.equal(active.fired, (codes > 0).sum(0))


def test_same_seed_same_numbers_and_company_does_not_matter(toy):
    x = toy[1][:2000]
    alone = trained(x, "topk", seed=1)
    beside = fd.train_many([x], seeds=(0, 1), width=32, k=2, steps=200)[0][1]
    assert torch.equal(alone.W_dec, trained(x, "topk", seed=1).W_dec)
    assert torch.allclose(alone.W_dec, beside.W_dec, atol=1e-3)
    assert not torch.allclose(alone.W_dec, trained(x, "topk", seed=2).W_dec)


def test_a_killed_run_resumes_to_the_same_dictionary(toy, tmp_path):
    x, plan = toy[1][:2000], Plan("relu", 32, 2, 100, 128, 1e-2)
    whole = Trainer(plan, [x], [x], [{}], [0]).run()[0]
    first = Trainer(plan, [x], [x], [{}], [0])
    with torch.no_grad():
        for _ in range(40):
            first.advance()
    first._checkpoint(tmp_path / "run.safetensors")
    resumed = Trainer(plan, [x], [x], [{}], [0]).run(checkpoint=tmp_path / "run.safetensors")[0]
    assert torch.allclose(whole.W_dec, resumed.W_dec, atol=1e-5)
    assert not (tmp_path / "run.safetensors").exists()
    first._checkpoint(tmp_path / "run.safetensors")
    with pytest.raises(DictionaryError, match="another run"):
        Trainer(plan, [x**2], [x**2], [{}], [0]).run(checkpoint=tmp_path / "run.safetensors")


def test_bad_input_is_named(toy):
    x, facts = toy[1], {"client": "A", "space": "fc7"}
    with pytest.raises(DictionaryError, match=r"fc7.*10 samples"):
        fd.train(x[:10], metadata=facts)
    with pytest.raises(DictionaryError, match=r"fc7.*dead layer"):
        fd.train(torch.zeros(100, 8), metadata=facts)
    with pytest.raises(NotFinite, match="fc7"):
        fd.train(x[:100] / 0, metadata=facts)
    with pytest.raises(UnknownName, match="topk"):
        fd.train(x, architecture="topkk")
    with pytest.warns(fd.DictionaryWarning, match=r"fc7.*width 5000"):
        assert fd.train(x[:500], width=5000, k=2, steps=2, metadata=facts).width < 50
    constant = x[:500].clone()
    constant[:, 3] = 1.0
    with pytest.warns(fd.DictionaryWarning, match=r"fc7.*constant \(3\)"):
        found = fd.train(constant, steps=2, metadata=facts)
    with pytest.raises(SpaceMismatch, match="fc7"):
        found.encode(torch.zeros(3, 9))


def test_a_transcoder_folds_into_the_layer_and_its_order_does_not_matter():
    torch.manual_seed(0)
    first, head = nn.Linear(20, 16), nn.Linear(16, 5)
    x = torch.randn(4000, 20)
    with torch.no_grad():
        pre = first(x)
        found = fd.train(pre, 64, "transcoder", k=12, steps=600)
        order = torch.randperm(64)
        logits = []
        for basis in (found, found.permuted(order)):
            weight, bias = first.weight.T @ basis.W_enc, first.bias @ basis.W_enc + basis.b_enc
            logits.append((x @ weight + bias).relu() @ (basis.W_dec @ head.weight.T) + head(basis.b_dec))
        through = head(found.decode(found.encode(pre)))
        truth = head(pre.relu())
    assert torch.allclose(logits[0], through, atol=1e-4)
    assert torch.allclose(logits[0], logits[1], atol=1e-5)
    error = (pre.relu() - found.decode(found.encode(pre))).norm(dim=1)
    assert ((logits[0] - truth).norm(dim=1) <= torch.linalg.matrix_norm(head.weight, 2) * error + 1e-4).all()
    assert found.reads == "pre" and found.quality.explained_variance > 0.8


def test_bases_satisfy_the_protocol_and_explain_what_they_should(toy):
    x = toy[1][:1500] + 2
    y = x @ torch.linalg.qr(torch.randn(8, 8)).Q
    pca, (a, b) = fd.pca(x), fd.cca(x, y)
    for basis in (pca, fd.ica(x, 4), a, b, fd.random_dictionary(x, 16), *fd.train_joint([x, y], 16, 2, steps=50)):
        assert isinstance(basis, fd.Basis) and basis.atoms.shape[1] == 8
    assert torch.allclose(pca.decode(pca.encode(x)), x, atol=1e-4)
    assert torch.allclose(a.encode(x), b.encode(y), atol=5e-2) or float(a.strength.min()) > 0.99
    trained_quality = trained(x, "topk").quality.explained_variance
    assert trained_quality > fd.random_dictionary(x, 32, 2).quality.explained_variance + 0.05


def test_sweep_is_along_sparsity_and_its_frontier_rises(toy):
    found = fd.sweep(toy[1][:2000], ks=(1, 2, 4), widths=(16,), seeds=(0,), steps=100)
    assert list(found.frame["k"]) == [1, 2, 4]
    assert found.pareto["explained_variance"].is_monotonic_increasing


def test_options_of_nothing_are_refused_and_not_taken_as_defaults(toy):
    for options in ({"steps": 0}, {"batch_size": 0}, {"lr": 0.0}, {"steps": -3}, {"lr": -1.0}):
        with pytest.raises(BadOption, match="positive"):
            fd.train(toy[1], **options)
    with pytest.raises(DictionaryError, match="width 0"):
        fd.train(toy[1], 0)
    for k in (0, float("nan"), float("inf")):
        with pytest.raises(DictionaryError, match="k="):
            fd.train(toy[1], k=k)
    with pytest.warns(fd.DictionaryWarning, match="k=30 of 16 latents"):
        assert fd.train(toy[1], 16, k=30, steps=2).k == 16


@pytest.mark.parametrize("name", NAMES)
def test_training_that_leaves_the_numbers_says_so(toy, name):
    x, options = toy[1][:600], {"width": 16, "k": 2, "steps": 60, "metadata": {"space": "fc7"}}
    with pytest.raises(NotFinite, match=r"fc7.*overflow"):
        fd.train(x * 1e30, architecture=name, **options)
    for lr in (float("inf"), float("nan")):
        with pytest.raises(NotFinite, match=r"fc7.*lr"):
            fd.train(x, architecture=name, lr=lr, **options)
    with pytest.raises(NotFinite, match=r"fc7.*at step \d+; lower lr"):
        fd.train(x, architecture=name, lr=1e38, **options)


def test_a_memory_map_and_tokens_train_as_the_tensor_does(toy, tmp_path):
    x = toy[1][:1200]
    np.save(tmp_path / "x.npy", x.numpy())
    wanted = trained(x, "topk", steps=40)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert isinstance(mapped, np.memmap)
    for same in (mapped, x.numpy(), x.reshape(40, 30, 8)):
        found = trained(same, "topk", steps=40)
        assert torch.equal(found.W_dec, wanted.W_dec) and found.quality == wanted.quality
    assert torch.equal(fd.pca(mapped).atoms, fd.pca(x).atoms)
    assert torch.equal(fd.random_dictionary(mapped, 9).W_enc, fd.random_dictionary(x, 9).W_enc)
    joint, again = (fd.train_joint([each, each], 9, 2, steps=3)[0] for each in (mapped, x))
    assert torch.equal(joint.W_enc, again.W_enc)
    broken = x.clone()
    broken[900, 3] = float("inf")
    np.save(tmp_path / "y.npy", broken.numpy())
    with pytest.raises(NotFinite, match="infinity"):
        trained(np.load(tmp_path / "y.npy", mmap_mode="r"), "topk")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_activations_of_any_width_train_in_single_precision(toy, dtype):
    x = toy[1][:800].to(dtype)
    found = trained(x, "relu", steps=40)
    assert {tensor.dtype for tensor in found.tensors.values()} == {torch.float32}
    assert torch.equal(found.W_dec, trained(x.float(), "relu", steps=40).W_dec)
    for nonsense in (x.int(), x[0], "x", [1.0, 2.0]):
        with pytest.raises(DictionaryError, match="pass"):
            fd.train(nonsense)


def test_least_squares_from_sparse_codes_equal_those_from_dense_ones(monkeypatch):
    torch.manual_seed(0)
    held = torch.randn(3000, 40).relu() * (torch.rand(3000, 40) < 0.05)
    decoder, planted_gains = nn.functional.normalize(torch.randn(40, 6), dim=1).double(), 0.7 + 2 * torch.rand(40)
    y = (held * planted_gains) @ decoder.float()
    rows = torch.arange(3000)
    sparse = CodeMoments.of(held.__getitem__, rows, y)
    monkeypatch.setattr("featalign.dictionaries.refit.DENSE", 0)
    dense = CodeMoments.of(held.__getitem__, rows, y)
    assert isinstance(dense.gram, np.ndarray) and not isinstance(sparse.gram, np.ndarray)
    assert torch.allclose(sparse.covariance, dense.covariance) and torch.allclose(sparse.cross, dense.cross)
    centred = held.double() - held.double().mean(0)
    assert torch.allclose(dense.covariance, centred.T @ centred / 3000)
    for solve in (free_decoder, gained_decoder):
        one, other = solve(CodeMoments.of(held.__getitem__, rows, y), decoder), solve(sparse, decoder)
        assert torch.allclose(one, other, atol=1e-9)
    assert torch.allclose((other * decoder).sum(1), planted_gains.double(), atol=0.02)


def test_a_wide_dictionary_keeps_only_latents_that_fire_together():
    """Second moments of 8,192 latents of which 8 fire hold at most 64 entries per sample, not 67 million."""
    torch.manual_seed(0)
    columns = torch.randint(8192, (400, 8))
    held = torch.zeros(400, 8192).scatter_(1, columns, 1.0)
    found = CodeMoments.of(held.__getitem__, torch.arange(400), torch.randn(400, 5))
    assert not isinstance(found.gram, np.ndarray) and found.gram.nnz <= 400 * 64
    gained_decoder(found, nn.functional.normalize(torch.randn(8192, 5), dim=1).double(), steps=5)
