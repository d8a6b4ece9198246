"""The training program: `S` dictionaries of one shape side by side, in normalised coordinates."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from featalign import storage
from featalign.dictionaries import products
from featalign.dictionaries.architectures import ARCHITECTURES, Architecture
from featalign.dictionaries.architectures.base import Tensors
from featalign.dictionaries.dictionary import Dictionary
from featalign.dictionaries.quality import assess
from featalign.dictionaries.refit import CodeMoments, free_decoder, gained_decoder
from featalign.dictionaries.rows import Rows, place
from featalign.dictionaries.scaled import Normalised
from featalign.errors import DictionaryError, NotFinite
from featalign.tracking import Log

HELD_OUT = 0.1
DEAD_WINDOW = 0.03  # share of the run without firing after which a latent counts as dead
DECAY = 0.3  # share of the run over which the learning rate falls to zero
AUXILIARY = 1.0  # weight of the loss that makes dead latents explain the residual
CLIP = 1.0  # gradient norm that penalised architectures keep to
CHECKPOINTS = 10  # per run
REFIT_ROWS, READ_ROWS = 20_000, 8192  # samples that the final least squares and thresholds are found on


@dataclass(frozen=True)
class Plan:
    """Everything that decides a training run, defaults resolved."""

    architecture: str
    width: int
    k: float
    steps: int
    batch_size: int
    lr: float
    wanted: int = 0  # latents before the data capped them; 0 where they did not


def held_out(samples: int) -> int:
    """Samples kept from training: a tenth, at most 4096."""
    return min(max(1, round(HELD_OUT * samples)), 4096)


class Trainer:
    """One training program for `S` dictionaries of one shape, in normalised coordinates `(a - mean) / scale`."""

    def __init__(
        self,
        plan: Plan,
        inputs: list[Rows],
        targets: list[Rows],
        metadata: list[dict[str, Any]],
        seeds: list[int],
        starts: list[Dictionary | None] | None = None,
    ):
        self.plan, self.metadata, self.seeds = plan, metadata, seeds
        self.stack = len(inputs)
        self.arch: Architecture = ARCHITECTURES[plan.architecture](self.stack, plan.width, inputs[0].shape[1], plan.k)
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        tied = all(x is y for x, y in zip(inputs, targets))
        self._split(inputs, targets, tied)
        self.params = self._initial(tied)
        for s, start in enumerate(starts or ()):
            if start is not None:
                self._take_up(s, start)
        self.grads = {name: torch.zeros_like(value) for name, value in self.params.items()}
        self.step = 0
        self.since_fired = torch.zeros(self.stack, plan.width)
        self.records: list[dict[str, Any]] = []
        for name, value in self.params.items():
            value.grad = self.grads[name]
        self.adam = torch.optim.Adam(self.params.values(), lr=plan.lr, betas=(0.9, 0.999), eps=1e-8, fused=True)

    def _split(self, inputs: list[Rows], targets: list[Rows], tied: bool) -> None:
        samples = len(inputs[0])
        keep = held_out(samples)
        # one split for all seeds of one tensor: seeds then differ in initialisation and order only
        order = torch.randperm(samples, generator=torch.Generator().manual_seed(0))
        self.test_rows, self.train_rows = order[:keep], order[keep:]
        seen: dict[int, Normalised] = {}

        def normalised(values: list[Rows]) -> list[Normalised]:
            for each, facts in zip(values, self.metadata):
                if id(each) not in seen:
                    seen[id(each)] = Normalised(each, self.train_rows, facts)
            return [seen[id(each)] for each in values]

        self.x = normalised(inputs)
        self.y = self.x if tied else normalised(targets)

    def _initial(self, tied: bool) -> Tensors:
        """Random decoder rows leaning towards training samples; the encoder starts as the transpose.

        Rows made of samples alone are alike and slow to part: explained variance after 400 steps on MNIST activations
        is .93 with them, .98 from random rows; leaning a little leaves fewer dead.
        """
        width = self.plan.width
        decoder, encoder = [], []
        for x, y, generator in zip(self.x, self.y, self.generators):
            rows = self.train_rows[torch.randint(len(self.train_rows), (width,), generator=generator)]
            noise = torch.randn(width, y.values.shape[1], generator=generator)
            sampled = y[rows]
            lean = sampled / sampled.norm(dim=1, keepdim=True).clamp_min(1e-8)
            atoms = noise / noise.norm(dim=1, keepdim=True) + 0.4 * lean
            decoder.append(atoms / atoms.norm(dim=1, keepdim=True).clamp_min(1e-8))
            encoder.append(decoder[-1] if tied else _transfer(x, y, decoder[-1], self.train_rows[:READ_ROWS]))
        params = {
            "encoder": torch.stack(encoder).clone(),
            "decoder": torch.stack(decoder),
            "b_enc": torch.zeros(self.stack, width),
            "b_dec": torch.zeros(self.stack, self.y[0].values.shape[1]),
        }
        return params | self.arch.parameters()

    def _take_up(self, s: int, start: Dictionary) -> None:
        """Dictionary `s` begins as another: its tensors in normalised coordinates, the reverse of `_tensors`."""
        x, y, given = self.x[s], self.y[s], dict(start.tensors)
        origin = torch.zeros_like(x.mean) if self.arch.transcodes else given["b_dec"]
        self.arch.shift(given, x.mean - origin)
        self.params["encoder"][s] = given["W_enc"].T * (x.scale / y.scale)
        self.params["decoder"][s] = given["W_dec"]
        self.params["b_enc"][s] = given["b_enc"] / y.scale
        self.params["b_dec"][s] = (given["b_dec"] - y.mean) / y.scale

    def run(
        self, progress: bool = False, checkpoint: Path | None = None, logs: Sequence[Log | None] = ()
    ) -> list[Dictionary]:
        """Train to the end and return the dictionaries with their quality on held-out samples.

        `checkpoint` names a safetensors file that is rewritten ten times per run, taken up when it exists and removed
        at the end. `logs`, one for each dictionary, receive what the history holds.
        """
        from tqdm.auto import tqdm

        bar = tqdm(total=self.plan.steps, disable=not progress, desc=f"{self.plan.architecture} x{self.stack}")
        every = max(1, self.plan.steps // 40)
        if checkpoint is not None and checkpoint.is_file():
            self._restore(checkpoint)
            bar.update(self.step)
        with torch.no_grad():
            while self.step < self.plan.steps:
                self.advance(record=self.step % every == 0 or self.step == self.plan.steps - 1)
                bar.update()
                self._log(logs)
                if progress and self.records and self.records[-1]["step"] == self.step - 1:
                    last = self.records[-1]
                    bar.set_postfix(ev=f"{last['explained_variance']:.3f}", l0=f"{last['l0']:.1f}", dead=last["dead"])
                if checkpoint is not None and self.step % max(1, self.plan.steps // CHECKPOINTS) == 0:
                    self._checkpoint(checkpoint)
            bar.close()
            found = self._finish()
        if checkpoint is not None:
            checkpoint.unlink(missing_ok=True)
        return found

    def _identity(self) -> str:
        """What a checkpoint must agree on to be taken up."""
        digest = float(sum(x[self.train_rows[:64]].double().abs().sum() for x in self.x))
        return storage.fingerprint({"plan": asdict(self.plan), "seeds": self.seeds, "data": f"{digest:.6g}"})

    def _checkpoint(self, path: Path) -> None:
        state = {f"parameter.{name}": value for name, value in self.params.items()}
        for name, value in self.params.items():
            state |= {f"adam.{name}.{key}": torch.as_tensor(part) for key, part in self.adam.state[value].items()}
        state |= {"since_fired": self.since_fired, "penalty": self.arch.penalty, "step": torch.tensor(self.step)}
        if self.arch.steered:
            state["initial_l0"] = self.initial_l0
        facts = {"identity": self._identity(), "records": json.dumps(self.records)}
        storage.save_tensors(path, state, facts)

    def _restore(self, path: Path) -> None:
        state, facts = storage.load_tensors(path), storage.load_metadata(path)
        if facts.get("identity") != self._identity():
            raise DictionaryError(f"'{path}' is the checkpoint of another run (options or data differ); delete it")
        for name, value in self.params.items():
            value.copy_(state[f"parameter.{name}"])
            keys = ("step", "exp_avg", "exp_avg_sq")
            self.adam.state[value] = {key: state[f"adam.{name}.{key}"] for key in keys}
        self.since_fired, self.arch.penalty = state["since_fired"], state["penalty"]
        self.step, self.records = int(state["step"]), json.loads(facts["records"])
        if self.arch.steered:
            self.initial_l0 = state["initial_l0"]

    def _rows(self) -> torch.Tensor:
        """`[S, B]` training rows of this step; a pass over the data is a permutation drawn from seed and epoch."""
        batch, samples = self.plan.batch_size, len(self.train_rows)
        per_epoch = max(1, samples // batch)
        epoch, position = divmod(self.step, per_epoch)
        if position == 0 or not hasattr(self, "_orders"):
            draw = [torch.Generator().manual_seed(7919 * (seed + 1) + epoch) for seed in self.seeds]
            self._orders = [self.train_rows[torch.randperm(samples, generator=g)] for g in draw]
        return torch.stack([order[position * batch : (position + 1) * batch] for order in self._orders])

    def advance(self, record: bool = False) -> None:
        """One training step of every dictionary of the stack."""
        rows = self._rows()
        x = torch.stack([data[r] for data, r in zip(self.x, rows)])
        y = x if self.x is self.y else torch.stack([data[r] for data, r in zip(self.y, rows)])
        p = self.params
        pre = torch.baddbmm(p["b_enc"][:, None], x, p["encoder"].transpose(1, 2))
        sparse = self.arch.pointwise and x.device.type == "cpu" and products.available()
        error, fired = (self._sparse_gradients if sparse else self._dense_gradients)(x, y, pre)
        self._revive(fired, pre, x, error)
        self._update()
        l0 = fired.sum(1) / x.shape[1]
        if self.arch.steered:
            self._steer(l0)
        if record:
            self._record(error, y, l0)
        self.step += 1

    def _dense_gradients(
        self, x: torch.Tensor, y: torch.Tensor, pre: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        p, grads = self.params, self.grads
        for grad in grads.values():
            grad.zero_()
        codes, groups = self.arch.activate(pre, p), self.arch.groups()
        errors = [p["b_dec"][:, None] - y]
        for part in groups:
            errors.append(torch.baddbmm(errors[-1].expand_as(y), codes[..., part], p["decoder"][:, part]))
        g, dz = torch.zeros_like(y), torch.empty_like(codes)
        for part, error in reversed(list(zip(groups, errors[1:]))):  # a latent serves its own level and all above
            g = g + error * (2 / (y.shape[1] * y.shape[2] * len(groups)))
            grads["decoder"][:, part] = codes[..., part].transpose(1, 2) @ g
            dz[..., part] = g @ p["decoder"][:, part].transpose(1, 2)
        dpre = self.arch.backward(dz, pre, codes, p, grads)
        extra = self.arch.auxiliary(pre, y, p, grads)
        dpre = dpre if extra is None else dpre + extra
        torch.bmm(dpre.transpose(1, 2), x, out=grads["encoder"])
        grads["b_enc"] += dpre.sum(1)
        grads["b_dec"] += g.sum(1)
        return errors[-1], (codes > 0).sum(1)

    def _sparse_gradients(
        self, x: torch.Tensor, y: torch.Tensor, pre: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        p, grads = self.params, self.grads
        error, fired = torch.empty_like(y), torch.empty_like(self.since_fired, dtype=torch.long)
        for s in range(self.stack):
            flat = self.arch.select(pre[s])
            active = products.Active(flat, (pre.shape[1], pre.shape[2]))
            values = pre[s].reshape(-1)[torch.from_numpy(flat)]
            error[s] = active.decode(values, p["decoder"][s]).add_(p["b_dec"][s]).sub_(y[s])
            g = error[s] * (2 / (y.shape[1] * y.shape[2]))
            grads["decoder"][s] = active.transposed(values, g)
            dpre = active.sample(g, p["decoder"][s])
            if self.arch.steered:
                dpre += self.arch.penalty[s, 0] / len(g)
            grads["encoder"][s] = active.transposed(dpre, x[s])
            grads["b_enc"][s] = torch.bincount(active.columns, dpre, self.plan.width)
            grads["b_dec"][s] = g.sum(0)
            fired[s] = active.fired
        return error, fired

    def _update(self) -> None:
        warm = min(1.0, (self.step + 1) / max(1, min(50, self.plan.steps // 20)))
        left = (self.plan.steps - self.step) / max(1.0, DECAY * self.plan.steps)
        self.adam.param_groups[0]["lr"] = self.plan.lr * warm * min(1.0, left)
        if self.arch.steered and self.arch.clips:
            self._clip()
        decoder, grad = self.params["decoder"], self.grads["decoder"]
        grad -= decoder * (grad * decoder).sum(2, keepdim=True)  # rows stay on the sphere
        self.adam.step()
        decoder /= decoder.norm(dim=2, keepdim=True).clamp_min(1e-8)
        self.arch.project(self.params)

    def _clip(self) -> None:
        """Gradient norm of each dictionary's summed squared error at most 1; a penalty's early steps are far larger."""
        outputs = self.params["decoder"].shape[2]  # gradients are those of the mean over outputs
        squares = torch.stack([grad.flatten(1).pow(2).sum(1) for grad in self.grads.values()]).sum(0)
        shrink = (CLIP / (outputs * squares.sqrt()).clamp_min(1e-12)).clamp_max(1.0)
        for grad in self.grads.values():
            grad *= shrink.view(-1, *[1] * (grad.dim() - 1))

    def _steer(self, l0: torch.Tensor) -> None:
        """Integral control of the penalty in the log domain; the wanted L0 may ease down to k."""
        if self.step == 0:
            self.initial_l0 = l0.clamp_min(self.plan.k)
        if self.step < self.plan.steps * 0.9:
            left = max(0.0, 1 - self.step / max(1.0, self.arch.ease * self.plan.steps))
            wanted = self.plan.k * (self.initial_l0 / self.plan.k) ** left
            error = (l0 / wanted).clamp(0.05, 20).log()
            self.arch.penalty *= (0.03 * error).exp()[:, None, None]

    def _revive(self, fired: torch.Tensor, pre: torch.Tensor, x: torch.Tensor, error: torch.Tensor) -> None:
        """Auxiliary loss of Gao et al. 2024: the top dead latents reconstruct what the living ones leave over."""
        self.since_fired += 1
        self.since_fired[fired > 0] = 0
        dead = self.since_fired > max(20, DEAD_WINDOW * self.plan.steps)
        for s in torch.nonzero(dead.any(1)).flatten().tolist():
            index = torch.nonzero(dead[s]).flatten()
            atoms = self.params["decoder"][s, index]
            k_aux = min(len(index), max(1, x.shape[2] // 2))
            candidates = pre[s][:, index]
            top = candidates.topk(k_aux, dim=1, sorted=False)
            codes = torch.zeros_like(candidates).scatter_(1, top.indices, top.values.relu())
            floor = codes @ atoms + error[s]  # dead latents reconstruct -error
            weight = AUXILIARY * min(1.0, len(index) / k_aux)
            g = floor * (2 * weight / floor.numel())
            active = torch.zeros_like(candidates).scatter_(1, top.indices, 1.0)
            dpre = (g @ atoms.T) * active
            self.grads["decoder"][s, index] += codes.T @ g
            self.grads["encoder"][s, index] += dpre.T @ x[s]
            self.grads["b_enc"][s, index] += dpre.sum(0)
            self.arch.revive(s, index, self.grads)

    def _record(self, error: torch.Tensor, y: torch.Tensor, l0: torch.Tensor) -> None:
        residual_share = error.pow(2).mean((1, 2))
        if not torch.isfinite(residual_share).all():
            where = place(self.metadata[int((~torch.isfinite(residual_share)).nonzero()[0])])
            raise NotFinite(f"{where}: the loss was not finite at step {self.step}; lower lr ({self.plan.lr:g})")
        variance = (y - y.mean(1, keepdim=True)).pow(2).mean((1, 2))
        dead = (self.since_fired > max(20, DEAD_WINDOW * self.plan.steps)).sum(1)
        for s in range(self.stack):
            self.records.append(
                {
                    "dictionary": s,
                    "step": self.step,
                    "loss": float(residual_share[s]),
                    "explained_variance": 1 - float(residual_share[s] / variance[s].clamp_min(1e-12)),
                    "l0": float(l0[s]),
                    "dead": int(dead[s]),
                    "lr": self.adam.param_groups[0]["lr"],
                }
            )

    def _log(self, logs: Sequence[Log | None]) -> None:
        """Hand on what the last step recorded."""
        for record in self.records[-self.stack :] if logs else ():
            log = logs[record["dictionary"]]
            if log is not None and record["step"] == self.step - 1:
                log({key: value for key, value in record.items() if key not in ("dictionary", "step")}, record["step"])

    def current(self, s: int) -> Dictionary:
        """Dictionary `s` as it stands."""
        return Dictionary(self.plan.architecture, self._tensors(s), self.plan.k, None, metadata=self.metadata[s])

    def _finish(self) -> list[Dictionary]:
        history = pd.DataFrame(self.records)
        if self.arch.refit != "nothing":
            self._refit()
        found = []
        for s in range(self.stack):
            own = history[history["dictionary"] == s].drop(columns="dictionary").reset_index(drop=True)
            bare = self.current(s)
            quality = assess(bare, self.x[s].values, self.y[s].values, self.test_rows)
            quality = replace(quality, trained_on=len(self.train_rows), capped_from=self.plan.wanted)
            found.append(replace(bare, quality=quality, history=own))
        return found

    def _refit(self) -> None:
        """Least squares for the final codes, norms moved into the encoder."""
        p, rows = self.params, self.train_rows[:REFIT_ROWS]
        for s in range(self.stack):

            def codes_of(part: torch.Tensor, s: int = s) -> torch.Tensor:
                pre = torch.addmm(p["b_enc"][s], self.x[s][part], p["encoder"][s].T)
                return self.arch.activate(pre[None], {name: value[s : s + 1] for name, value in p.items()})[0]

            moments = CodeMoments.of(codes_of, rows, self.y[s][rows])
            solve = gained_decoder if self.arch.refit == "gains" else free_decoder
            solved = solve(moments, p["decoder"][s].double())
            norms = solved.norm(dim=1).clamp_min(1e-8)
            p["decoder"][s] = (solved / norms[:, None]).float()
            p["b_dec"][s] = (moments.centre - moments.mean @ solved).float()
            p["encoder"][s] *= norms[:, None].float()
            p["b_enc"][s] *= norms.float()

    def _tensors(self, s: int) -> Tensors:
        """Back from normalised coordinates to the space's own units, in sae-lens's names."""
        p, x, y, arch = self.params, self.x[s], self.y[s], self.arch
        rows = self.train_rows[:READ_ROWS]
        own = arch.finish(lambda: torch.addmm(p["b_enc"][s], x[rows], p["encoder"][s].T), s, p)
        encoder, b_dec = p["encoder"][s].T * (y.scale / x.scale), y.mean + y.scale * p["b_dec"][s]
        tensors = {"W_enc": encoder, "W_dec": p["decoder"][s].clone(), "b_dec": b_dec}
        for name, value in own.items():
            tensors[name] = value.clone() if name in arch.unitless else y.scale * value
        origin = torch.zeros_like(x.mean) if arch.transcodes else b_dec  # what encode subtracts from its input
        arch.shift(tensors, origin - x.mean)
        return {**tensors, "W_enc": encoder.contiguous()}


def _transfer(x: Normalised, y: Normalised, atoms: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Encoder rows `[F, n]` for atoms of another space `[F, m]`: the best linear readout of `y` from `x`."""
    a, b = x[rows], y[rows]
    gram = a.T @ a / len(a)
    readout = torch.linalg.solve(gram + 1e-2 * gram.diagonal().mean() * torch.eye(len(gram)), a.T @ b / len(a))
    encoder = atoms @ readout.T
    return encoder / encoder.norm(dim=1, keepdim=True).clamp_min(1e-8)
