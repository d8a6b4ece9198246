"""A cache of the tests' own, so that they neither read nor write the user's, and one thread for each process."""

import os
import shutil
import tempfile

WORKER = "PYTEST_XDIST_WORKER" in os.environ
if WORKER:  # as many processes as cores: more threads would only wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import torch

    torch.set_num_threads(1)
else:  # processes that this one starts share its cache
    os.environ["FEATALIGN_CACHE"] = tempfile.mkdtemp(prefix="featalign-test-cache-")


def pytest_collection_modifyitems(items):
    """Long files first: one that is handed out last keeps one worker busy while the others have nothing left."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


def pytest_unconfigure():
    """Whoever made the cache removes it."""
    if not WORKER:
        shutil.rmtree(os.environ["FEATALIGN_CACHE"], ignore_errors=True)
