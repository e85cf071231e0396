"""Every error of ours says what to do and has an exit status of its own."""

import ast
import errno
import importlib
import os
import re
import signal
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from safetensors.torch import save_file
from torch.utils.data import DataLoader

from gmdf_hf.common import errors
from gmdf_hf.common.errors import GMDFError, UserError, exit_on_error
from gmdf_hf.common.resume import write_unit

ROOT = Path(__file__).parents[2]
FILES = [path for folder in ("gmdf_hf", "modeling", "scripts") for path in sorted((ROOT / folder).rglob("*.py"))]


def error_classes():
    """Classes called `...Error` that the package defines, by file."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and node.name.endswith("Error"):
                module = path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
                module = module if module.startswith("gmdf_hf") else f"gmdf_hf.{module}"
                yield getattr(importlib.import_module(module), node.name)


@pytest.mark.parametrize(
    ("name", "is_path"),
    [
        ("runs/none/model", True),
        ("./none", True),
        ("/none", True),
        ("user/none", False),
        ("user/none@refs/pr/1", False),
        ("none", False),
    ],
)
def test_a_folder_that_is_missing_is_no_name_on_the_hub(name, is_path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = str(errors.unusable("model", name, ValueError("the\nreason")))
    reason = "there is no such folder; names on the hub have at most one slash." if is_path else "the reason"
    assert message == f"The model {name!r} cannot be used: {reason}"


def test_a_missing_package_is_to_be_installed():
    assert "Install the package" in errors.unusable("model", "user/name", ImportError("needs timm")).hint
    assert errors.unusable("model", "user/name", ValueError("no weights")).hint == errors.UserError.hint


def test_every_error_class_has_a_hint_and_an_exit_status():
    classes = list(error_classes())
    assert {errors.SourceError, errors.WorkError} < set(classes) and len(classes) > 8
    for kind in classes:
        if kind is not GMDFError:
            assert kind.exit_code not in (0, 2, 130), kind
            assert re.fullmatch(r"[A-Z][^.]+.*\.", kind.hint, re.DOTALL), kind
    package = [kind for kind in classes if kind is not GMDFError and issubclass(kind, GMDFError)]
    assert len({kind.exit_code for kind in package}) == len(package)


def test_an_error_class_without_a_hint_cannot_be_defined():
    with pytest.raises(TypeError, match="NewError needs a hint"):
        type("NewError", (GMDFError,), {"exit_code": 20})


def test_scripts_print_message_and_hint_and_exit_with_the_status_of_the_class(capsys):
    with pytest.raises(SystemExit) as ended, exit_on_error("prepare.py"):
        raise errors.WorkError("The disk is full.")
    assert ended.value.code == 9
    assert capsys.readouterr().err == f"prepare.py: The disk is full.\nhint: {errors.WorkError.hint}\n"
    with pytest.raises(SystemExit) as ended, exit_on_error("x"):
        raise UserError("The value is 3, expected 1 or 2.", hint="Choose 1.")
    assert ended.value.code == 1 and capsys.readouterr().err.endswith("hint: Choose 1.\n")
    with pytest.raises(ZeroDivisionError), exit_on_error("x"):
        1 / 0  # noqa: B018


class Killer:
    """A data set whose worker dies."""

    def __len__(self):
        return 4

    def __getitem__(self, row):
        os.kill(os.getpid(), signal.SIGKILL)


def fill_the_disk(folder):
    raise OSError(errno.ENOSPC, "No space left on device", str(folder / "x"))


FAILURES = {
    "missing folder": (
        lambda folder: (folder / "gone/x.json").write_text("x"),
        "gone/x.json .*No such file",
        "still there",
    ),
    "missing folder of a part": (
        lambda folder: write_unit(folder / "gone/x.parquet", pa.table({"a": [1]})),
        "gone/.*No such",
        "still there",
    ),
    "weights": (
        lambda folder: save_file({"a": torch.zeros(1)}, folder / "gone/x"),
        "A file .*No such file",
        "still there",
    ),
    "full disk": (fill_the_disk, "x cannot be read or written: No space left", "Free some space"),
    "killed worker": (
        lambda _: list(DataLoader(Killer(), num_workers=1)),
        "A process that reads images was killed",
        "num_workers",
    ),
}


@pytest.mark.parametrize(("work", "message", "hint"), FAILURES.values(), ids=FAILURES)
def test_failures_of_the_machine_are_one_sentence(tmp_path, capsys, work, message, hint):
    with pytest.raises(SystemExit) as ended, exit_on_error("evaluate.py"):
        work(tmp_path)
    said = capsys.readouterr().err.splitlines()
    assert ended.value.code == 9 and len(said) == 2
    assert re.match(f"evaluate.py: .*{message}", said[0]) and re.match(f"hint: .*{hint}", said[1])


def test_errors_of_the_program_keep_their_traceback():
    for error in (RuntimeError("shapes"), BrokenPipeError(32, "Broken pipe"), TypeError("x")):
        with pytest.raises(type(error)), exit_on_error("x"):
            raise error


# Words by which a message tells what was expected: "expected a, found b", "no a", "more than a", "b is damaged".
EXPECTATION = re.compile(
    r"expected|\b(must|needs?|only|at most|the most|lacks?|missing|damaged|cut short|cannot|could not|in use|exists"
    r"|more than|no|not|none|nothing|neither|another|other settings|died|gated|choose|go on|pip install|a PEFT adapter"
    r"|trains with|trains its own|drawn domains are|keeps|contradicts)\b",
    re.IGNORECASE,
)


def raised_messages():
    """`(place, message, has a value)` of every error of ours that is raised with a text of its own."""
    names = {kind.__name__ for kind in error_classes()}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            call = node.exc if isinstance(node, ast.Raise) else None
            if not isinstance(call, ast.Call) or getattr(call.func, "id", None) not in names:
                continue
            place = f"{path.relative_to(ROOT)}:{node.lineno}"
            assert call.args, f"{place} raises without a message"
            parts = list(ast.walk(call.args[0]))
            text = "".join(str(part.value) for part in parts if isinstance(part, ast.Constant))
            if isinstance(call.args[0], (ast.JoinedStr, ast.Constant, ast.BinOp)):  # not the text of another error
                yield place, text, any(isinstance(part, ast.FormattedValue) for part in parts)


def test_every_message_names_what_was_found_and_what_was_expected():
    """What to do is the hint, which every class has."""
    found = list(raised_messages())
    assert len(found) > 150
    wrong = []
    for place, text, has_value in found:
        if not (has_value or "pip install" in text or "extra [" in text or "SIGTERM" in text):
            wrong.append(f"{place}: no value: {text}")
        is_forwarded = " " not in text.strip(" .:;")  # "{path}: {reason}"
        if not (is_forwarded or EXPECTATION.search(text)):
            wrong.append(f"{place}: nothing expected: {text}")
    assert not wrong, "\n".join(wrong)
