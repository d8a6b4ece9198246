"""A cache of its own for every test session, so that tests neither read nor write the user's."""

import os
import tempfile

os.environ["FEATALIGN_CACHE"] = tempfile.mkdtemp(prefix="featalign-test-cache-")
