"""Where networks show what TransformerLens's hook names stand for: hook points, or submodules of transformer blocks.

A *block* is an entry of the one list of modules that hold an attention: `transformer.h`, `model.layers`,
`bert.encoder.layer`, `blocks`. Its parts are found by the names that libraries give them. What norms give out, gains
included, is `hook_out`; before its gain (`hook_normalized`) only hook points show it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from featalign.spaces.graph import Site

PER_HEAD = ("hook_q", "hook_k", "hook_v", "hook_z", "hook_rot_q", "hook_rot_k")
UNITLESS = ("hook_pattern", "hook_attn_scores", "hook_scale", "hook_result", "hook_tokens")
OPTIONAL = ("hook_attn_in", "hook_q_input", "hook_k_input", "hook_v_input", "hook_mlp_in", "hook_hidden_states")

EMBEDDINGS = ("wte", "embed_tokens", "word_embeddings", "embed_in", "tok_embeddings", "embed")
FINAL_NORMS = ("ln_f", "norm", "final_layer_norm", "final_layernorm", "ln", "layernorm", "norm_f")
ATTENTIONS = ("attn", "self_attn", "attention", "self_attention")
FIRST_NORMS = ("ln_1", "input_layernorm", "layernorm_before", "ln1", "norm1")
SECOND_NORMS = (  # the first that is there: Gemma's blocks have both of the last two
    *("pre_feedforward_layernorm", "ln_2", "layernorm_after", "ln2", "post_attention_layernorm"),
)
AFTER_ATTENTION = ("attention.output.LayerNorm", "sa_layer_norm")  # post-norm blocks: what the feed-forward layer reads
QUERIES, KEYS, VALUES = (
    *(("q_proj", "q", "query", "q_lin", "self.query"), ("k_proj", "k", "key", "k_lin", "self.key")),
    ("v_proj", "v", "value", "v_lin", "self.value"),
)
PROJECTIONS = ("c_proj", "o_proj", "out_proj", "o", "out_lin", "output.dense", "dense", "proj")
FEED_FORWARDS = ("mlp", "feed_forward", "ffn", "")
GATES = ("gate_proj", "w1")
GATED = ("up_proj", "w3")
UPS = ("c_fc", "fc1", "up_proj", "fc_in", "dense_h_to_4h", "intermediate.dense", "lin1", "linear1")
DOWNS = ("c_proj", "down_proj", "fc2", "fc_out", "dense_4h_to_h", "output.dense", "lin2", "linear2", "w2")
ACTIVATIONS = ("act", "act_fn", "activation_fn", "activation", "intermediate.intermediate_act_fn")


@dataclass(frozen=True)
class Hook:
    """A named place of a network.

    Attributes:
        name: as TransformerLens spells it.
        sites: where it is seen; activations are read at the first, the others show the same tensor.
        units: how many, None where that is not known without running the network.
    """

    name: str
    sites: tuple[Site, ...]
    units: int | None = None


def hooks_of(module: nn.Module) -> dict[str, Hook]:
    """The places of a network that have a hook name, in order of depth; empty for networks without any."""
    points = hook_points(module)
    found = _of_points(module, points) if points else _of_blocks(module)
    return {hook.name: hook for hook in found}


def hook_points(module: nn.Module) -> Mapping[str, nn.Module]:
    """Hook points of a `HookedRootModule` or `TransformerBridge` by every name that they go by; empty for others."""
    points = getattr(module, "hook_dict", None)
    return points if isinstance(points, Mapping) else {}


def point_site(name: str) -> Site:
    """Where a hook point is read; heads and their widths are taken together."""
    return Site(name, heads=name.rpartition(".")[2] in PER_HEAD)


def _of_points(module: nn.Module, points: Mapping[str, nn.Module]) -> Iterator[Hook]:
    """Hook points that hold units in every run; a bridge's second names for one point are left out."""
    config: Any = getattr(module, "cfg", None)
    classic = {id(points[name]) for name in points if _is_classic(name)}
    for name in sorted(points, key=_depth):
        last = name.rpartition(".")[2]
        if last in (*UNITLESS, *OPTIONAL) or name.startswith("unembed") or last == "hook_unembed":
            continue
        if not _is_classic(name) and (classic or hasattr(module, "list_hooks")):
            continue
        shown = (point_site(name), *(Site(path) for path in _same_as(name) if _has(module, path)))
        yield Hook(name, shown, _lens_units(name, config))


def _is_classic(name: str) -> bool:
    """Whether a name is one of HookedTransformer's, or of a module that names its own hook points."""
    return name.rpartition(".")[2] not in ("hook_in", "hook_out")


def _same_as(name: str) -> tuple[str, ...]:
    """Submodules of a HookedTransformer whose output is what a hook point shows."""
    block, _, last = name.rpartition(".")
    known = {
        "hook_resid_post": (block,),
        "hook_attn_out": (f"{block}.attn",),
        "hook_mlp_out": (f"{block}.mlp",),
        "hook_embed": ("embed",),
    }
    return known.get(last, ())


def _lens_units(name: str, config: Any) -> int | None:
    """Units of a hook point by TransformerLens's configuration."""
    last = name.rpartition(".")[2]
    if not hasattr(config, "d_model"):
        return None
    if last in PER_HEAD:
        few = getattr(config, "n_key_value_heads", None)
        heads = few if few and last in ("hook_k", "hook_v", "hook_rot_k") else config.n_heads
        return int(heads * config.d_head)
    if ".mlp." in name:
        return None if config.d_mlp is None else int(config.d_mlp)
    return int(config.d_model)


_ORDER = (
    *("hook_embed", "hook_pos_embed", "hook_resid_pre", "ln1", "hook_q", "hook_k", "hook_v", "hook_z"),
    *("hook_attn_out", "hook_resid_mid", "ln2", "hook_pre", "hook_pre_linear", "hook_post", "hook_mlp_out"),
    "hook_resid_post",
)


def _depth(name: str) -> tuple[int, int]:
    """Sorts hook names as a forward pass meets them."""
    parts = name.split(".")
    layer = int(parts[1]) if len(parts) > 2 and parts[1].isdigit() else -1
    if parts[0].startswith("ln_final") or parts[0] == "unembed":
        layer = 10**6
    key = next((part for part in reversed(parts) if part in _ORDER), "")
    return layer, _ORDER.index(key) if key else len(_ORDER)


def _of_blocks(module: nn.Module) -> Iterator[Hook]:
    """Hooks of a network of transformer blocks; nothing where there is no list of them, or more than one."""
    stacks = [(name, part) for name, part in module.named_modules() if _is_stack(part)]
    if len(stacks) != 1:
        return
    path, stack = stacks[0]
    parts = dict(module.named_modules())
    embedding = next(
        (name for name, part in parts.items() if isinstance(part, nn.Embedding) and _last(name) in EMBEDDINGS), None
    )
    blocks = [Block(f"{path}.{k}", k, block, module) for k, block in enumerate(stack.children())]
    stream = blocks[0].stream
    if embedding is not None:
        yield Hook("hook_embed", (Site(embedding),), parts[embedding].embedding_dim)  # type: ignore[arg-type]
    for k, block in enumerate(blocks):
        yield from block.hooks(None if k == 0 else blocks[k - 1].path)
    parent = path.rpartition(".")[0]
    norm = next((name for name in FINAL_NORMS if f"{parent}.{name}".lstrip(".") in parts), None)
    if norm is not None:
        yield Hook("ln_final.hook_out", (Site(f"{parent}.{norm}".lstrip(".")),), stream)


def _is_stack(part: nn.Module) -> bool:
    children = list(part.children()) if isinstance(part, (nn.ModuleList, nn.Sequential)) else []
    return bool(children) and all(first(block, ATTENTIONS) for block in children)


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _has(module: nn.Module, path: str) -> bool:
    try:
        module.get_submodule(path)
    except AttributeError:
        return False
    return True


def first(module: nn.Module, names: Sequence[str]) -> str | None:
    """The first of the submodules' paths that the module has."""
    return next((name for name in names if name and _has(module, name)), None)


def fan(layer: nn.Module, side: str) -> int | None:
    """Units that an affine layer reads ('in') or writes ('out')."""
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, torch.Tensor) or weight.dim() != 2:
        return None
    transposed = type(layer).__name__ == "Conv1D"  # of `transformers`: weight [in, out]
    return weight.shape[int((side == "in") is not transposed)]


class Block:
    """One transformer block with its parts, as far as their names are known."""

    def __init__(self, path: str, index: int, block: nn.Module, model: nn.Module):
        self.path, self.name, self.block, self.model = path, f"blocks.{index}", block, model
        self.attention = first(block, ATTENTIONS) or ""
        self.folder = next(name for name in FEED_FORWARDS if not name or _has(block, name))
        inside = block.get_submodule(self.folder)
        self.gate = first(inside, GATES)
        self.up = first(inside, GATED if self.gate else UPS)
        self.down = first(inside, DOWNS)
        self.act = None if self.gate else first(inside, ACTIVATIONS)
        self.out = first(block.get_submodule(self.attention), PROJECTIONS)

    @property
    def stream(self) -> int | None:
        """Units of the residual stream."""
        for folder, name in ((self.folder, self.down), (self.attention, self.out)):
            if name is not None:
                return fan(self.block.get_submodule(f"{folder}.{name}".lstrip(".")), "out")
        return None

    def site(self, *path: str, side: str = "out") -> Site:
        """A submodule of the block."""
        return Site(".".join(part for part in (self.path, *path) if part), side)

    def hooks(self, before: str | None) -> Iterator[Hook]:
        """Everything of this block in the order of a forward pass; `before` is the path of the block before it."""
        size = self.stream
        entry = (self.site(side="in"), *(() if before is None else (Site(before),)))
        yield Hook(f"{self.name}.hook_resid_pre", entry, size)
        if (norm := first(self.block, FIRST_NORMS)) is not None:
            yield Hook(f"{self.name}.ln1.hook_out", (self.site(norm),), size)
        yield from self._attention(size)
        if (middle := self._middle()) is not None:
            yield Hook(f"{self.name}.hook_resid_mid", (middle,), size)
        if (norm := first(self.block, SECOND_NORMS)) is not None:
            yield Hook(f"{self.name}.ln2.hook_out", (self.site(norm),), size)
        yield from self._feed_forward(size)
        yield Hook(f"{self.name}.hook_resid_post", (self.site(),), size)

    def _attention(self, size: int | None) -> Iterator[Hook]:
        inside = self.block.get_submodule(self.attention)
        for letter, names in zip("qkv", (QUERIES, KEYS, VALUES)):
            if (found := first(inside, names)) is not None:
                units = fan(inside.get_submodule(found), "out")
                yield Hook(f"{self.name}.attn.hook_{letter}", (self.site(self.attention, found),), units)
        joint = fan(inside.get_submodule("c_attn"), "out") if _has(inside, "c_attn") else None
        for k, letter in enumerate("qkv" if joint and size and joint == 3 * size else ""):
            part = Site(f"{self.path}.{self.attention}.c_attn", "out", 2, size, offset=k * (size or 0))
            yield Hook(f"{self.name}.attn.hook_{letter}", (part,), size)
        if self.out is not None:
            z = (self.site(self.attention, self.out, side="in"),)
            yield Hook(f"{self.name}.attn.hook_z", z, fan(inside.get_submodule(self.out), "in"))
        closed = "." in (self.out or "")  # the module ends with the sum and its norm
        last = self.site(self.attention, self.out or "") if closed else self.site(self.attention)
        if _has(self.block, "pre_feedforward_layernorm"):
            last = self.site("post_attention_layernorm")
        yield Hook(f"{self.name}.hook_attn_out", (last,), size)

    def _middle(self) -> Site | None:
        """Where the stream stands between attention and feed-forward layer, if it stands anywhere."""
        config: Any = getattr(self.model, "config", None)
        if getattr(config, "use_parallel_residual", False) or getattr(config, "parallel_attn", False):
            return None
        if (norm := first(self.block, AFTER_ATTENTION)) is not None:
            return self.site(norm)
        norm = first(self.block, SECOND_NORMS)
        if norm is None and getattr(self.block, "do_layer_norm_before", False):
            norm = first(self.block, ("final_layer_norm",))
        if norm is None and getattr(self.block, "norm_first", False):
            norm = first(self.block, ("norm2",))
        return None if norm is None else self.site(norm, side="in")

    def _feed_forward(self, size: int | None) -> Iterator[Hook]:
        inside, name = self.block.get_submodule(self.folder), f"{self.name}.mlp"
        if self.down is not None:
            units = fan(inside.get_submodule(self.down), "in")
            before = self.gate or self.up
            if before is not None and fan(inside.get_submodule(before), "out") == units:
                yield Hook(f"{name}.hook_pre", (self.site(self.folder, before),), units)
            if self.gate is not None and self.up is not None:
                yield Hook(f"{name}.hook_pre_linear", (self.site(self.folder, self.up),), units)
            post = [self.site(self.folder, self.down, side="in")]
            post += [self.site(self.folder, self.act)] if self.act else []
            yield Hook(f"{name}.hook_post", tuple(post), units)
        last = self.site(self.folder) if self.folder else None
        if _has(self.block, "post_feedforward_layernorm"):
            last = self.site("post_feedforward_layernorm")
        elif last is None and self.down is not None:
            last = self.site(self.down)
        if last is not None:
            yield Hook(f"{self.name}.hook_mlp_out", (last,), size)
