"""The Space is the demo: its files say the same as the package."""

import os
import re
from pathlib import Path

import pytest
import yaml

from tests import processes

ROOT = Path(__file__).parent.parent
SPACE = ROOT / "space"


def test_header_names_the_app_and_a_gradio_the_package_takes():
    header = yaml.safe_load((SPACE / "README.md").read_text().split("---")[1])
    assert header["sdk"] == "gradio"
    assert (SPACE / header["app_file"]).is_file()
    lowest = re.search(r'"gradio>=([\d.]+)"', (ROOT / "pyproject.toml").read_text())[1]
    ours, needed = (tuple(map(int, version.split("."))) for version in (header["sdk_version"], lowest))
    assert ours >= needed
    assert (SPACE / "requirements.txt").read_text().split() == ["gmdf-hf[demo]"]


def test_app_says_what_is_missing():
    pytest.importorskip("gradio", reason="needs the extra `demo`")
    environment = {name: value for name, value in os.environ.items() if name != "GMDF_MODEL"}
    result = processes.run(SPACE / "app.py", env=environment, cwd=ROOT)
    assert result.returncode == 1
    assert result.stderr.strip().splitlines()[-1].startswith("Set the variable GMDF_MODEL"), result.stderr
