"""`pip install -e .` brings the requirements and puts no module of this repository in the way of a user's own."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import tracking

ROOT = Path(tracking.__file__).resolve().parent.parent
BUILD = "from setuptools import build_meta; print(build_meta.build_editable('.'))"


@pytest.mark.slow
def test_an_installation_has_requirements_and_no_modules(tmp_path):
    for name in ("pyproject.toml", "requirements.txt", "README.md", "LICENSE", "hop_ppo.py"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("data", "envs"):
        (tmp_path / name).mkdir()
        shutil.copy(ROOT / name / "__init__.py", tmp_path / name)
    done = subprocess.run(
        [sys.executable, "-c", BUILD], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    with zipfile.ZipFile(tmp_path / done.stdout.splitlines()[-1]) as wheel:
        texts = {name: wheel.read(name).decode() for name in wheel.namelist()}
    (metadata,) = (text for name, text in texts.items() if name.endswith("/METADATA"))
    required = [line.partition(": ")[2] for line in metadata.splitlines() if line.startswith("Requires-Dist")]
    wanted = (ROOT / "requirements.txt").read_text().split()
    assert set(map(Requirement, required)) == set(map(Requirement, wanted))
    paths = "".join(text for name, text in texts.items() if "dist-info" not in name)
    assert not any(f"{name!r}" in paths for name in ("data", "envs", "hop_ppo"))
    assert str(tmp_path) not in paths  # nor its folder on the path
