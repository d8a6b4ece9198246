"""The distribution: complete, of one version, and doing the main job where nothing of the checkout is in reach."""

import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import featalign

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Wheel and sdist, built from a copy so that the checkout stays as it is."""
    source, out = tmp_path_factory.mktemp("source") / "featalign", tmp_path_factory.mktemp("dist")
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_symlink() or not (ROOT / name).is_dir():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / name).exists():
                shutil.copy2(ROOT / name, source / name, follow_symlinks=False)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return next(out.glob("*.whl")), next(out.glob("*.tar.gz"))


@pytest.mark.slow
def test_wheel_and_sdist_hold_what_a_run_needs(built):
    wheel, sdist = built
    assert wheel.name.startswith(f"featalign-{featalign.__version__}-") and featalign.__version__ in sdist.name
    with zipfile.ZipFile(wheel) as archive, tarfile.open(sdist) as source:
        held, shipped = set(archive.namelist()), {name.partition("/")[2] for name in source.getnames()}
    package = ROOT / "featalign"
    wanted = {
        path.relative_to(ROOT).as_posix()
        for kind in ("*.py", "*.css", "*.js", "*.html", "py.typed")
        for path in package.rglob(kind)
    }
    schemas = ROOT / "docs" / "schemas"
    wanted |= {f"featalign/studies/schemas/{path.relative_to(schemas).as_posix()}" for path in schemas.rglob("*.json")}
    assert wanted <= held, sorted(wanted - held)
    assert wanted <= shipped, sorted(wanted - shipped)
    assert not [name for name in held if name.startswith(("tests/", "docs/", "gallery/"))]


@pytest.mark.slow
def test_the_wheel_does_the_main_job_elsewhere(built, tmp_path):
    """A fresh environment that sees the libraries installed here, but neither this checkout nor its installation."""
    environment = tmp_path / "env"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    site = next(environment.glob("lib/python*/site-packages"))
    (site / "libraries.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", built[0]], check=True)
    where = [python, "-c", "import featalign; print(featalign.__file__)"]
    assert str(site) in subprocess.run(where, cwd=tmp_path, capture_output=True, text=True).stdout
    command = [environment / "bin" / "featalign", "compare", "--seeds", "1", "--curve", "0", "--out", "page", "--quiet"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "page" / "report.html").stat().st_size > 100_000 and "ot-acts" in done.stdout


def test_citation_names_the_version():
    written = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.M)
    assert written and written[1] == featalign.__version__
