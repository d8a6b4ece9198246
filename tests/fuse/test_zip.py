"""Zip on every kind of network: what it gives back, what it picks, what it refuses, and that it beats averaging."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from featalign.align.heads import attention_layers, gauged_state, grouped_layers
from featalign.clients.cohort import Cohort
from featalign.clients.families.conv1d import Conv1dConfig
from featalign.clients.families.decoder import DecoderConfig
from featalign.clients.families.encoder import EncoderConfig
from featalign.clients.families.resnet import ResNet20Config
from featalign.clients.families.vit import ViTConfig
from featalign.clients.models import build
from featalign.data.batch import unwrap
from featalign.data.inputs import Inputs
from featalign.errors import BadOption
from featalign.fuse import FusionProblem, available, solve
from featalign.fuse.writers import writers_of
from featalign.spaces import moved, rebuilt, trace
from featalign.spaces.apply import unit_rows
from featalign.spaces.capture import evaluating
from featalign.spaces.check import random_transform
from featalign.spaces.graph import Symmetry

from .conftest import network, permuted, problem_of

DECODER = DecoderConfig(vocabulary=11, context=12, width=16, depth=2, heads=2, hidden=24)
TOKENS = torch.randint(11, (60, 12), generator=torch.Generator().manual_seed(0))
PICTURES = torch.randn(60, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def llama(groups, heads=4):
    """A maker of Llamas: rotary positions, `heads` query heads in groups that share keys and values."""

    def make(seed):
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(
            hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=heads, head_dim=6,
            num_key_value_heads=groups, vocab_size=11, bos_token_id=0, eos_token_id=0, pad_token_id=0,
        )  # fmt: skip
        return LlamaForCausalLM(config)

    return make


def hooked(groups, heads=4):
    """A maker of HookedTransformers with `heads` query heads in groups that share keys and values."""

    def make(seed):
        from transformer_lens import HookedTransformer, HookedTransformerConfig

        config = HookedTransformerConfig(
            n_layers=2, d_model=16, n_ctx=12, d_head=4, n_heads=heads, d_mlp=24, d_vocab=11, act_fn="gelu",
            n_key_value_heads=groups, normalization_type="LN", device="cpu", seed=seed,
        )  # fmt: skip
        return HookedTransformer(config)

    return make


def grouped(seed):
    """Convolutions in groups behind plain ones, with batch and group normalisation, and filters of one channel each."""
    return nn.Sequential(
        nn.Conv2d(3, 7, 1), nn.ReLU(), nn.Conv2d(7, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(),
        nn.Conv2d(12, 18, 3, padding=1, groups=3), nn.BatchNorm2d(18), nn.ReLU(),
        nn.Conv2d(18, 8, 1), nn.GroupNorm(4, 8), nn.ReLU(),
        nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Conv2d(6, 12, 3, groups=6), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5),
    )  # fmt: skip


def decoding(seed):
    """Pictures to fewer positions and back by transposed convolutions."""
    return nn.Sequential(
        nn.Conv2d(3, 7, 2, stride=2), nn.ReLU(), nn.ConvTranspose2d(7, 6, 4, stride=2, padding=1), nn.BatchNorm2d(6),
        nn.ReLU(), nn.Conv2d(6, 3, 3, padding=1),
    )  # fmt: skip


KINDS = {
    "decoder": (DECODER, TOKENS),
    "vit": (ViTConfig(size=8, patch=4, width=8, depth=2, heads=2, hidden=12), PICTURES),
    "vit-stem": (ViTConfig(size=8, patch=4, width=8, depth=1, heads=2, hidden=12, stem="convolutions"), PICTURES),
    "encoder": (EncoderConfig(size=8, channels=3, width=8, heads=2, hidden=12), PICTURES),
    "resnet": (ResNet20Config(width=0.25), PICTURES),
    "conv1d": (Conv1dConfig(width=6, kernels=(3, 5), dilations=(1, 2), blocks=1), PICTURES[:, 0].mT[:, :4]),
    "llama": (llama(4), TOKENS),
    "grouped-llama": (llama(2), TOKENS),
    "grouped-hooked": (hooked(2), TOKENS),
    "grouped-convolutions": (grouped, PICTURES),
    "decoding": (decoding, PICTURES),
}


def client(config, seed=0):
    """A network with random statistics where it keeps any, and gains and biases where they start alike."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        module = config(seed) if callable(config) else build(config, seed)
        for parameter in module.parameters() if callable(config) else ():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for part in module.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                part.running_mean.add_(0.3 * torch.randn_like(part.running_mean))
                part.running_var.mul_(torch.rand_like(part.running_var) + 0.5)
                part.weight.add_(0.3 * torch.randn_like(part.weight))
    return module.eval()


def turned(module, probe, seed=3):
    """The same function with every space in another basis that its symmetry allows, but for the insides of heads."""
    graph = trace(module, probe[:2])
    generator = torch.Generator().manual_seed(seed)
    kinds = {Symmetry.ORTHOGONAL: Symmetry.ORTHOGONAL, Symmetry.LINEAR: Symmetry.ORTHOGONAL}
    maps = {
        space.name: random_transform(space.size, kinds.get(space.symmetry, Symmetry.PERMUTATION), generator)
        for space in graph.hidden
        if not space.name.endswith((".qk", ".ov"))
    }
    return rebuilt(module, moved(module, graph, maps))


def outputs(module, x):
    with evaluating(module):
        return unwrap(module(x))


def problem(modules, probe, mixing=(), reference=-1):
    task = "next-token" if not probe.is_floating_point() else "regression"
    return FusionProblem(Cohort.of(modules, probe, task=task), mixing, reference)


def apart(result, module, probe):
    """Relative distance of outputs."""
    want = outputs(module, probe)
    return float((outputs(result.module, probe) - want).norm() / want.norm())


@pytest.mark.parametrize("kind", KINDS)
def test_a_wider_network_zipped_with_itself_comes_back(kind):
    config, probe = KINDS[kind]
    module = client(config)
    found = solve(problem([module, turned(module, probe)], probe), "zip", refit=True, width=1.5)
    sizes = [sum(part.numel() for part in each.parameters()) for each in (module, found.module)]
    assert apart(found, module, probe) < 1e-3 and sizes[1] > sizes[0]


@pytest.mark.parametrize("clients", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_a_network_zipped_with_itself_comes_back(kind, clients):
    config, probe = KINDS[kind]
    module = client(config)
    for refit in (False, True):
        result = solve(
            problem([module, *(copy.deepcopy(module) for _ in range(clients - 1))], probe), "zip", refit=refit
        )
        assert apart(result, module, probe) < 1e-5, refit


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_zipped_with_a_twin_in_another_basis_comes_back(kind):
    config, probe = KINDS[kind]
    module = problem([client(config)], probe).clients[0]  # in canonical form, where streams may be turned
    result = solve(problem([turned(module, probe), module], probe), "zip", refit=True)
    assert apart(result, module, probe) < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_refitted_zip_is_nearer_to_the_clients_mean_than_the_average(kind):
    config, probe = KINDS[kind]
    clients = [client(config, seed) for seed in (1, 2)]
    found = problem(clients, probe)
    wanted = sum(outputs(module, probe) for module in found.clients) / 2
    words = not probe.is_floating_point()
    wanted = wanted - wanted.mean(-1, keepdim=True) if words else wanted

    def error(method, **options):
        fused = outputs(solve(found, method, **options).module, probe)
        fused = fused - fused.mean(-1, keepdim=True) if words else fused
        return float((fused - wanted).norm())

    assert error("zip", refit=True, head="mean-logits" if words else None) < 0.7 * error("vanilla")


@pytest.mark.parametrize("kind", ["llama", "grouped-llama", "grouped-hooked"])
def test_two_seeds_zipped_lose_less_than_their_average_and_are_nearer_to_the_ensemble(kind):
    config, probe = KINDS[kind]
    found = problem([client(config, seed) for seed in (1, 2)], probe)
    mixture = sum(outputs(module, probe).softmax(-1) for module in found.clients) / 2
    losses, gaps = {}, {}
    for method, refit in (("vanilla", False), ("vanilla", True), ("zip", True)):
        guesses = outputs(solve(found, method, refit=refit).module, probe).log_softmax(-1)
        losses[method, refit] = float(F.nll_loss(guesses[:, :-1].flatten(0, 1), probe[:, 1:].flatten()))
        gaps[method, refit] = float(F.kl_div(guesses, mixture, reduction="batchmean"))
    assert losses["zip", True] <= losses["vanilla", False]
    assert gaps["zip", True] <= min(gaps.values())


@pytest.mark.parametrize("kind", ["grouped-llama", "grouped-hooked"])
def test_a_group_comes_whole_from_one_client(kind):
    config, probe = KINDS[kind]
    found = problem([client(config, seed) for seed in (1, 2)], probe)
    result = solve(found, "zip")
    layers = [layer.heads for layer in attention_layers(found.graph) if not layer.nested]
    assert len(layers) == 2
    for heads in layers:
        others = [{name: each for name, each in a.maps.items() if name != heads.name} for a in result.alignments]
        clients = [moved(*each) for each in zip(found.clients, found.graphs, others)]
        picks = [
            (k, *pick) for k, a in enumerate(result.alignments) for pick in a.maps[heads.name].out.nonzero().tolist()
        ]
        assert sorted(group for _, group, _ in picks) == [0, 1]
        for axis in heads.writers:
            rows = unit_rows(result.module.get_parameter(axis.parameter).detach(), axis, heads.size)
            for k, group, own in picks:
                assert torch.allclose(rows[group], unit_rows(clients[k][axis.parameter], axis, 2)[own], atol=1e-5)


@pytest.mark.parametrize("kind", ["grouped-llama", "grouped-hooked"])
def test_query_heads_may_stand_in_another_order_in_every_group(kind):
    config, probe = KINDS[kind]
    module = problem([client(config)], probe).clients[0]
    graph = trace(module, probe[:2])
    orders = torch.eye(2, dtype=torch.float64)[torch.tensor([[1, 0], [0, 1]])]
    gauge = {layer.members.name: orders for layer in attention_layers(graph) if not layer.nested}
    twin = rebuilt(module, gauged_state(module, graph, gauge))
    assert any(not torch.equal(a, b) for a, b in zip(twin.state_dict().values(), module.state_dict().values()))
    assert torch.allclose(outputs(twin, probe), outputs(module, probe), atol=1e-5)
    for refit in (False, True):
        assert apart(solve(problem([twin, module], probe), "zip", refit=refit), module, probe) < 1e-5


def test_channels_may_stand_in_another_order_in_every_group():
    module = client(grouped)
    graph = trace(module, PICTURES[:2])
    layers = grouped_layers(graph)
    assert [(layer.heads.size, len(layer.inside), layer.members.size) for layer in layers] == [
        (3, 2, 6), (4, 1, 2), (6, 1, 2)
    ]  # fmt: skip
    order = torch.stack([torch.randperm(6, generator=torch.Generator().manual_seed(k)) for k in range(3)])
    gauge = {layers[0].members.name: torch.eye(6, dtype=torch.float64)[order]}
    twin = rebuilt(module, gauged_state(module, graph, gauge))
    assert not torch.equal(twin[5].weight, module[5].weight)
    assert torch.allclose(outputs(twin, PICTURES), outputs(module, PICTURES), atol=1e-5)
    for refit in (False, True):
        assert apart(solve(problem([twin, module], PICTURES), "zip", refit=refit), module, PICTURES) < 1e-5


def test_a_group_of_channels_comes_whole_from_one_client():
    found = problem([client(grouped, seed) for seed in (1, 2)], PICTURES)
    result = solve(found, "zip", refit=True)
    filters = [list(each[5].weight.unflatten(0, (3, 6))) for each in (*found.clients, result.module)]
    for group in filters[2]:
        assert any(torch.allclose(group, other, atol=1e-6) for other in (*filters[0], *filters[1]))
    assert sum(result.notes["units_from_client"]["2.groups"]) == 3


def test_groups_of_another_size_are_refused():
    def narrow(seed):
        module = grouped(seed)
        module[5] = nn.Conv2d(12, 12, 3, padding=1, groups=3)
        module[6], module[8] = nn.BatchNorm2d(12), nn.Conv2d(12, 8, 1)
        return module

    reason = available(problem([client(narrow), client(grouped)], PICTURES))["zip"]
    assert "for each group in client A and 6 in the reference" in reason


@pytest.mark.parametrize("make", [llama, hooked])
def test_the_number_of_groups_may_differ_but_not_what_is_in_one(make):
    few, many, full = (client(make(groups, heads), seed=heads) for groups, heads in ((2, 4), (4, 8), (2, 6)))
    fused = solve(problem([many, few], TOKENS), "zip", refit=True)
    counts = [count for name, count in fused.notes["units_from_client"].items() if name.endswith("heads")]
    assert outputs(fused.module, TOKENS).isfinite().all() and all(sum(count) == 2 for count in counts)
    reason = available(problem([full, few], TOKENS))["zip"]
    assert "heads' takes" in reason and "for each head in client A" in reason


def packed(seed):
    """GPT-BigCode: queries of all heads, one key and one value in the rows of one layer."""
    from transformers import GPTBigCodeConfig, GPTBigCodeForCausalLM

    config = GPTBigCodeConfig(
        vocab_size=11, n_positions=16, n_embd=24, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    return GPTBigCodeForCausalLM(config)


def with_negated_queries_and_keys(module):
    """The same function, by other weights."""
    flipped = copy.deepcopy(module)
    with torch.no_grad():
        for name, weight in flipped.named_parameters():
            parts = set(name.split("."))
            if parts & {"q_proj", "k_proj", "W_Q", "b_Q", "_W_K", "_b_K"}:
                weight.neg_()
            elif "c_attn" in parts:
                weight[: 24 + 6].neg_()
    return flipped


SHARED = {"llama": llama(1), "hooked": hooked(1), "packed": packed}
SINGLE = {"one-head-llama": llama(1, 1), "one-head-hooked": hooked(1, 1)}


@pytest.mark.parametrize("make", [*SHARED.values(), *SINGLE.values()], ids=[*SHARED, *SINGLE])
def test_heads_are_picked_with_the_one_key_and_value_of_their_layer(make):
    a, b = client(make, seed=1), client(make, seed=2)
    found = problem([a, b], TOKENS)
    fused, flipped = solve(found, "zip"), solve(problem([a, with_negated_queries_and_keys(b)], TOKENS), "zip")
    picked = [count for name, count in fused.notes["units_from_client"].items() if name.endswith("heads")]
    assert len(picked) == 2 and all(sorted(count) == [0, 1] for count in picked)
    assert torch.allclose(outputs(fused.module, TOKENS), outputs(flipped.module, TOKENS), atol=1e-4)
    assert outputs(solve(found, "zip", refit=True).module, TOKENS).isfinite().all()
    for refit in (False, True):
        itself = solve(problem([a, copy.deepcopy(a)], TOKENS), "zip", refit=refit).module
        assert torch.allclose(outputs(itself, TOKENS), outputs(a, TOKENS), atol=1e-4)


@pytest.mark.parametrize("make", [*(llama(groups) for groups in (1, 2, 4)), *(hooked(groups) for groups in (1, 2, 4))])
def test_what_lies_inside_attention_is_no_layer_to_look_at(make):
    shown = [space for space in trace(client(make), TOKENS[:2]).hidden if not space.is_gauge]
    assert len(shown) == 3  # the stream and two hidden layers


def test_heads_that_keep_their_places_are_refused():
    def bloom(seed):
        from transformers import BloomConfig, BloomForCausalLM

        return BloomForCausalLM(BloomConfig(vocab_size=11, hidden_size=24, n_layer=1, n_head=4))

    module = client(bloom)
    found = problem([module, copy.deepcopy(module)], TOKENS)
    assert "keep their places" in available(found)["zip"]
    assert torch.allclose(outputs(solve(found, "ot-acts").module, TOKENS), outputs(module, TOKENS), atol=1e-4)


def test_a_shared_key_that_nothing_ties_to_its_heads_is_refused():
    class Apart(nn.Module):
        """Rotary positions fix the basis inside, and keys are held elsewhere."""

        def __init__(self):
            super().__init__()
            self.embed, self.q, self.v, self.o = nn.Linear(3, 8), nn.Linear(8, 12), nn.Linear(8, 6), nn.Linear(12, 8)
            self.shared = nn.Sequential(nn.Identity(), nn.Sequential(nn.Linear(8, 6)))
            self.head, self.angles = nn.Linear(8, 5), torch.linspace(0.5, 2, 24).view(4, 6)

        def turned(self, x):
            across = torch.cat([-x[..., 3:], x[..., :3]], -1)
            return x * self.angles.cos() + across * self.angles.sin()

        def forward(self, x):
            x = self.embed(x)
            q, k, v = self.q(x).unflatten(-1, (2, 6)).transpose(1, 2), self.shared(x), self.v(x)
            scores = self.turned(q) @ self.turned(k).transpose(1, 2)[:, None]
            z = scores.softmax(-1) @ v[:, None]
            return self.head((x + self.o(z.transpose(1, 2).flatten(2))).mean(1))

    tokens = torch.randn(30, 4, 3)
    module = client(lambda seed: Apart())
    assert "share one key and value" in available(problem([module, module], tokens))["zip"]


def test_every_map_of_a_transformer_is_found_and_lands_on_its_stream():
    module = client(DECODER)
    found = problem([module, module], TOKENS)
    names = {writer.name.removeprefix("blocks.0.") for writer in found.writers if "blocks.0" in writer.name}
    assert names == {f"attn.W_{c}" for c in "QKVO"} | {"mlp.W_in", "mlp.W_out"}
    lands = {writer.name: writer.lands.module for writer in found.writers}
    assert lands["blocks.0.attn.W_O"] == "blocks.0.hook_resid_mid"
    assert lands["blocks.1.mlp.W_out"] == "blocks.1.hook_resid_post"
    assert [writer.name for writer in found.writers if writer.readout] == ["unembed.W_U"]


def test_where_maps_land_costs_about_one_run_whatever_the_depth(monkeypatch):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.act, self.down = nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6)

        def forward(self, x):
            return x + self.down(self.act(self.up(x)))

    def runs(depth):
        net = nn.Sequential(nn.Linear(12, 6), *(Block() for _ in range(depth)), nn.Linear(6, 3))
        inputs = torch.randn(20, 12, generator=torch.Generator().manual_seed(0))
        graph, example = trace(net, inputs), Inputs.of(inputs).example(4)
        calls, usual = [], nn.Linear.forward
        with monkeypatch.context() as patch:
            patch.setattr(nn.Linear, "forward", lambda self, x: calls.append(1) or usual(self, x))
            found = writers_of(net, graph, example)
        assert len(found) == 2 * depth + 2 and all(vars(part).get("forward") is None for part in net.modules())
        return len(calls) / len(found)

    assert runs(16) < 1.3 * runs(4)


def test_skips_are_solved_together_and_normalisations_stand_in_for_biases():
    module = client(ResNet20Config(width=0.25))
    stages = {}
    for writer in problem([module, module], PICTURES).writers:
        stages.setdefault(str(writer.lands), []).append((writer.name, writer.norms))
    assert stages["stages.1.0.sum:in"] == [
        ("stages.1.0.conv2", ("stages.1.0.norm2",)),
        ("stages.1.0.skip.0", ("stages.1.0.skip.1",)),
    ]
    assert stages["stages.1.0.norm1:out"] == [("stages.1.0.conv1", ("stages.1.0.norm1",))]


def test_picked_channels_bring_their_own_statistics():
    clients = [client(ResNet20Config(width=0.25), seed) for seed in (1, 2)]
    fused = solve(problem(clients, PICTURES), "zip").module
    own = torch.stack([torch.cat([getattr(c.norm, n) for c in clients]) for n in ("running_var", "running_mean")], 1)
    got = torch.stack([fused.norm.running_var, fused.norm.running_mean], 1)
    assert torch.cdist(got, own).amin(1).max() < 1e-5


def test_a_stream_fused_in_canonical_form_is_given_back_with_layer_norms():
    found = problem([client(DECODER, 1), client(DECODER, 2)], TOKENS)
    fused = solve(found, "zip", refit=True).module
    restored = found.cohort.restore(fused)
    assert restored.cfg.normalization_type == "LN"
    assert torch.allclose(outputs(restored, TOKENS), outputs(fused, TOKENS), atol=1e-4)


def test_widths_may_differ():
    narrow, wide = (client(DecoderConfig(vocabulary=11, context=12, width=16, heads=2, hidden=h)) for h in (16, 24))
    fused = solve(problem([narrow, wide], TOKENS), "zip", refit=True).module
    assert fused.blocks[0].mlp.W_in.shape == (16, 24)
    wanted = (outputs(narrow, TOKENS).softmax(-1) + outputs(wide, TOKENS).softmax(-1)) / 2
    unasked = F.kl_div(outputs(wide, TOKENS).log_softmax(-1), wanted, reduction="batchmean")
    assert F.kl_div(outputs(fused, TOKENS).log_softmax(-1), wanted, reduction="batchmean") < unasked


def test_leaning_wholly_on_the_reference_keeps_its_units(probe):
    a, b = network(seed=1), network(seed=2)
    result = solve(problem_of([a, b], probe), "zip", refit=True, lean=1.0)
    counts = result.notes["units_from_client"].values()
    assert all(from_a == 0 for from_a, _ in counts)
    with pytest.raises(BadOption, match="lean = 2"):
        solve(problem_of([a, b], probe), "zip", lean=2)


def test_walking_again_gives_what_waiting_gives(probe, monkeypatch):
    a, b = network(seed=1), network(seed=2)
    waited = solve(problem_of([a, b], probe), "zip", refit=True).module
    monkeypatch.setattr("featalign.fuse.walk.PAUSED_BYTES", 0)
    again = solve(problem_of([a, b], probe), "zip", refit=True).module
    assert torch.allclose(outputs(waited, probe), outputs(again, probe), atol=1e-4)


def test_what_cannot_be_reduced_says_why():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.o = nn.Linear(3, 8), nn.Linear(8, 5)
            self.mix = nn.MultiheadAttention(8, 2, batch_first=True, add_bias_kv=True)

        def forward(self, x):
            tokens = self.embed(x)
            return self.o(self.mix(tokens, tokens, tokens, need_weights=False)[0].mean(1))

    tokens = torch.randn(30, 4, 3)
    module = Attention().eval()
    reason = available(problem([module, module], tokens))["zip"]
    assert "'mix.in_proj_weight' reads space 'embed'" in reason
    assert available(problem_of([permuted(network()), network()], torch.randn(30, 12)))["zip"] is None
