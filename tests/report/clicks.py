"""How long the feature browser takes to answer: `python -m tests.report.clicks --features 16384` on synthetic features.

Prints the size of the page and milliseconds from a click until the next picture is drawn, and the
processor time of the page's thread, which other work on the machine does not change.
"""

import argparse
import shutil
import tempfile
from pathlib import Path

import numpy as np

from featalign.report import Section, page, split, write_page
from featalign.report.pack import numbers, shard
from tests.report.conftest import FLAGS

SHARD, WIDTH = 256, 25
OWN, DEAD = 3, 4
TERMS = {"score": "correlation of the activations", "rival": "next best partner", "null": "reached by chance"}
MEASURE = """async (act) => {
    const times = [], wait = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done, 0)));
    const head = () => document.querySelector('.feature h3') && document.querySelector('.feature h3').textContent;
    for (let k = 0; k < 15; k++) {
        const before = head(), start = performance.now();
        document.querySelectorAll('.features .row')[(k + 1) % 10].click();
        while (head() === before && performance.now() - start < 2000) await new Promise((done) => setTimeout(done, 1));
        await wait();
        times.push(performance.now() - start);
    }
    return times;
}"""
FILTER = """async (text) => {
    const box = document.querySelector('.features .search'), start = performance.now();
    box.value = text;
    box.dispatchEvent(new Event('input'));
    await new Promise((done) => requestAnimationFrame(() => setTimeout(done, 0)));
    return performance.now() - start;
}"""


def synthetic(features, strings=2000, classes=("cat", "dog", "ship"), clients=("A", "B"), seed=0):
    """Content of two clients of `features` latents: half matched, some split and merged, the rest own or dead."""
    draw = np.random.default_rng(seed)
    table = ["", *(f"w{k}" for k in range(1, strings))]
    rows = [_row(draw, j, strings) for j in range(SHARD)]
    texts = [shard(rows)] * (-(-features // SHARD))
    blocks = []
    for client in range(2):
        density = draw.random(features) * 0.1
        density[-max(1, features // 20) :] = 0
        rare = np.where(np.arange(features) >= features - features // 10, DEAD, OWN)  # some fire, too rarely to say
        blocks.append({
            "client": client, "site": 0, "latents": features, "rows": 10**6, "inputs": 10**4,
            "density": numbers(density, "f32"), "mean": numbers(draw.random(features), "f32"),
            "max": numbers(1 + draw.random(features), "f32"), "energy": numbers(draw.random(features), "f32"),
            "kind": numbers(rare, "u8"), "score": numbers(draw.random(features), "f32"),
            "x": numbers(65535 * draw.random(features), "u16"), "y": numbers(65535 * draw.random(features), "u16"),
            "words": numbers(draw.integers(1, strings, (features, 8)), "u32"),
            "class": numbers(draw.integers(0, 3, features), "u16"), "notes": None, "effect": "direct path",
            "first": client * len(texts), "group": 0, "field": None,
        })  # fmt: skip
    half, several = features // 2, max(1, features // 50)
    a = np.concatenate(
        [np.arange(half), np.repeat(np.arange(half, half + several), 2), np.arange(half + several, half + 3 * several)]
    )
    b = np.concatenate([np.arange(half + 2 * several), np.repeat(np.arange(half + 2 * several, half + 3 * several), 2)])
    kind = np.repeat([0, 1, 2], [half, 2 * several, 2 * several])
    pairs = {"site": 0, "a": 0, "b": 1, "terms": TERMS, "kind": numbers(kind, "u8")}
    pairs |= {
        "latent_a": numbers(a, "u32"),
        "latent_b": numbers(b, "u32"),
        "score": numbers(draw.random(len(a)), "f32"),
    }
    return {
        "version": 1, "clients": list(clients), "sites": ["layer"], "kinds": [], "pair_kinds": [], "row": "tokens",
        "nouns": ["latent", "latent"], "classes": list(classes), "per": SHARD, "blocks": blocks, "shards": texts * 2,
        "pairs": [pairs], "strings": table, "sheets": [None],
    }  # fmt: skip


def _row(draw, j, strings):
    def context(kind):
        acts = (255 * draw.random(WIDTH) * (draw.random(WIDTH) < 0.06)).astype(int)
        acts[WIDTH // 2] = 255
        tokens = np.minimum(draw.zipf(1.3, WIDTH), strings - 1).tolist()  # as uneven as words are
        return [kind, int(draw.integers(10**4)), 40, 1.5, WIDTH // 2, tokens, acts.tolist(), acts[::-1].tolist()]

    effect = [[int(k), 0.5] for k in draw.integers(1, strings, 8)]
    bars, profile = draw.integers(0, 50, 18).tolist(), [[0, 200], [1, 30], [2, 25]]
    contexts = [context(0) for _ in range(8)] + [context(1) for _ in range(4)]
    return [[-8, bars], [255, 200, 120, None, 40], profile, effect, effect, [[1, 0.5], [2, 0.4]], [], [1, j], contexts]


def written(content, folder, beside=False):
    """The page of a content."""
    content = split(content, folder) if beside else content
    return write_page(
        Path(folder) / "page.html", page("Features", [], [Section("All").widget("features", "all", content)])
    )


def worked(counters):
    """Seconds of processor time that the page's thread has taken."""
    found = {entry["name"]: entry["value"] for entry in counters.send("Performance.getMetrics")["metrics"]}
    return found["TaskDuration"]


def main():
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--features", type=int, default=16384)
    features = parser.parse_args().features
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        for beside in (False, True):
            path = written(synthetic(features), folder, beside)
            view = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=list(FLAGS)).new_page()
            view.set_default_timeout(600_000)
            view.goto(path.as_uri())
            view.wait_for_selector(".feature")
            counters = view.context.new_cdp_session(view)
            counters.send("Performance.enable", {"timeDomain": "threadTicks"})
            before = worked(counters)
            clicks = sorted(view.evaluate(MEASURE))
            each = 1000 * (worked(counters) - before) / len(clicks)
            search = [view.evaluate(FILTER, text) for text in ("w12", "cat", "512", "")]
            words = "data beside" if beside else "one file"
            size, median = path.stat().st_size / 1e6, clicks[len(clicks) // 2]
            print(f"{features} x {features}, {words}: {size:.1f} MB; click median {median:.0f} ms, worst", end=" ")
            print(f"{clicks[-1]:.0f} ms, processor {each:.0f} ms a click; search {max(search):.0f} ms", flush=True)


if __name__ == "__main__":
    main()
