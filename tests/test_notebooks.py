"""Every notebook runs from top to bottom."""

from pathlib import Path

import pytest

pytestmark = pytest.mark.long

FEWER = "from featalign.dictionaries import store; store.FEW_STEPS = 60"  # what is asked here is whether it runs
NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def kernel():
    """One process for all notebooks, which are emptied of names between them: imports take as long as a notebook."""
    from jupyter_client.manager import AsyncKernelManager
    from nbclient.util import run_sync

    manager = AsyncKernelManager(kernel_name="python3")
    run_sync(manager.start_kernel)()
    yield manager
    run_sync(manager.shutdown_kernel)(now=True)


@pytest.mark.notebook
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, tmp_path, kernel):
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(f"%reset -f\n%cd -q {tmp_path}\n{FEWER}"))
    client = NotebookClient(notebook, timeout=600, km=kernel)
    client.execute(cleanup_kc=False)
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert outputs and not [output for output in outputs if output.output_type == "error"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_outputs_are_light(path):
    """Tables and words only: a figure is drawn by running its cell."""
    text = path.read_text()
    assert len(text) < 40_000 and "application/vnd.plotly" not in text
