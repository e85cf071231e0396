"""Every error of ours says what to do and has an exit status of its own."""

import ast
import importlib
import re
from pathlib import Path

import pytest

from gmdf_hf.common import errors
from gmdf_hf.common.errors import GMDFError, UserError, exit_on_error

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
