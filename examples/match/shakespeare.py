"""Two character transformers, one of modern spelling and one of the First Folio's, matched in one call.

    python examples/match/shakespeare.py --out page

Trains both (about a minute each, cached), then matches their residual streams and feed-forward units on held-out text.
"""

from __future__ import annotations

import argparse
import resource
import time

import torch

import featalign as fa
from featalign.bench.pairs import corpora, language_pair


class Characters:
    """Names of the tokens."""

    def __init__(self, alphabet: list[str]):
        self.alphabet = alphabet

    def decode(self, ids: list[int]) -> str:
        """Text of token ids."""
        return "".join(self.alphabet[i] for i in ids)


def main() -> None:
    """Train, match, print, write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="match-shakespeare")
    parser.add_argument("--steps", type=int, default=1000, help="of training, per model")
    parser.add_argument("--windows", type=int, default=2000, help="of held-out text")
    options = parser.parse_args()
    models, _, _ = language_pair("editions", steps=options.steps)
    _, held, alphabet = corpora("editions")
    width = models[0].cfg.n_ctx
    starts = torch.randint(0, len(held) - width, (options.windows,), generator=torch.Generator().manual_seed(0))
    inputs = torch.stack([held[start : start + width] for start in starts.tolist()])
    began = time.time()
    result = fa.match(
        models=models, names=("modern", "folio"), inputs=inputs, tokenizer=Characters(alphabet), task="next-token",
        site=["blocks.0.hook_resid_post", "blocks.1.mlp.hook_post"], out=options.out, overwrite=True,
        title="two spellings of Shakespeare",
    )  # fmt: skip
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print("\n".join(result.lines()))
    print(result.quality[["site", "client", "explained_variance", "l0", "loss_recovered", "rows"]].to_string())
    print(f"{time.time() - began:.0f} s, {peak:.2f} GB at most; the page is {options.out}/report.html")


if __name__ == "__main__":
    main()
