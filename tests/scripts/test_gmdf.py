"""The command `gmdf`: subcommands, imports and started processes."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from gmdf_hf.scripts.gmdf import COMMANDS, main

CODE = """
import sys
from gmdf_hf.scripts.gmdf import main
try:
    main()
finally:
    print([name for name in ("torch", "transformers", "datasets", "pandas") if name in sys.modules], file=sys.stderr)
"""


def gmdf(*words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", CODE, *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def cpu_seconds(run):
    """CPU time of the child processes of a call."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


@pytest.mark.parametrize("words", [[], ["--help"], ["predict", "--help"], ["train", "--help"], ["demo", "--help"]])
def test_help_answers_at_once(words):
    result = gmdf(*words)
    assert result.returncode == 0 and "usage: gmdf" in result.stdout
    assert result.stderr == "[]\n"
    bare = [sys.executable, "-c", "import pydantic.main, rich.console"]
    # A ratio of CPU times, which depends on neither the machine nor other processes; help alone takes 0.35 s.
    ours, theirs = (min(cpu_seconds(run) for _ in range(3)) for run in (lambda: gmdf(*words), lambda: start(bare)))
    assert ours < 2 * theirs


def start(command):
    subprocess.run(command, check=True)


def test_every_command_is_a_script_and_explained():
    text = gmdf("--help").stdout
    for name, description in COMMANDS.items():
        assert name in text and description in text
        script = "meta_train" if name == "train" else name
        assert (Path(__file__).parents[2] / "scripts" / f"{script}.py").is_file()


def test_an_unknown_command_is_a_wrong_command_line():
    result = gmdf("foretell")
    assert result.returncode == 2 and "unknown command 'foretell'; known are prepare, train" in result.stderr


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_help(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([name, "--help"])
    text = capsys.readouterr().out
    assert stopped.value.code == 0
    assert f"usage: gmdf {name}" in text and "--" in text


@pytest.mark.slow
def test_train_starts_accelerate(tmp_path):
    """The process is replaced by `accelerate launch`, which starts the script with the same options."""
    result = gmdf("train", "--recipe", str(tmp_path / "none.yaml"))
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert f"meta_train.py: The recipe {tmp_path / 'none.yaml'} cannot be read: No such file" in result.stderr
