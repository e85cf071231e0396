"""Two runs never share an output folder."""

import os
import signal
import subprocess
import sys

import pytest

from gmdf_hf.common.errors import UserError
from gmdf_hf.common.locks import locked_folder

HOLD = """
import sys, time
from pathlib import Path
from gmdf_hf.common.locks import locked_folder
with locked_folder(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def hold(folder):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_second_run_is_told_who_holds_the_folder(tmp_path):
    process = hold(tmp_path / "run")
    try:
        with (
            pytest.raises(UserError, match=rf"run is in use by process {process.pid} on .* since .*-c"),
            locked_folder(tmp_path / "run"),
        ):
            pass
    finally:
        process.kill()
        process.wait()


def test_a_killed_run_leaves_no_lock(tmp_path):
    process = hold(tmp_path)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with locked_folder(tmp_path):
        pass


def test_the_lock_is_removed(tmp_path):
    with locked_folder(tmp_path / "run"):
        assert list((tmp_path / "run").iterdir())
    assert list((tmp_path / "run").iterdir()) == []
    with locked_folder(tmp_path / "run"):  # one after the other
        pass
