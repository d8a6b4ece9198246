"""The page of a comparison.

One self-contained file: scores, what every basis explains per layer, certificates, a browser of matched features.
"""

import tempfile
from pathlib import Path

from featalign.studies.compare.config import RunConfig
from featalign.studies.compare.run import run

folder = Path(tempfile.mkdtemp()) / "run"
config = RunConfig(seeds=1, curve=0, probe=200, methods=("vanilla", "ot-acts", "feature-project"), epochs=5)
run(config, folder, progress=False)
page = folder / "report.html"
