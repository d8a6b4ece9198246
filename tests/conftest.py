"""A cache of its own for every test process, so that tests neither read nor write the user's, and one thread each."""

import os
import tempfile

os.environ["FEATALIGN_CACHE"] = tempfile.mkdtemp(prefix="featalign-test-cache-")
if "PYTEST_XDIST_WORKER" in os.environ:  # as many processes as cores: more threads would only wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import torch

    torch.set_num_threads(1)
