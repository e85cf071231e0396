"""The commands of README and docs: their files exist, and their options are ones the programs take."""

import ast
import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest

from gmdf_hf.common.options import Options
from gmdf_hf.scripts.gmdf import COMMANDS
from gmdf_hf.scripts.meta_train import DEFAULT_RECIPE
from gmdf_hf.training.config import parse_command_line

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def commands(page: Path) -> list[list[str]]:
    text = "".join(blocks(page, "bash")).replace("\\\n", " ")
    lines = [part for line in text.splitlines() for part in line.split(" && ")]
    found = [shlex.split(line, comments=True) for line in lines]
    return [[word for word in words if "=" not in word or word.startswith(("-", "{"))] for words in found if words]


def options_of(script: str) -> set[str]:
    """Names of the options of a script, from its model of options."""
    module = import_module(f"gmdf_hf.scripts.{script}")
    (model,) = (
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Options) and value.__module__ == module.__name__
    )
    return {f"--{field.alias or name}" for name, field in model.model_fields.items()}


ALL = [pytest.param(words, id=f"{page.stem}-{number}") for page in PAGES for number, words in enumerate(commands(page))]


@pytest.mark.parametrize("words", ALL)
def test_commands_can_be_given(words, monkeypatch, capsys):
    monkeypatch.setenv("GMDF_REAL_DATA", "/data")
    monkeypatch.setenv("GMDF_DOMAINS", "/domains")
    scripts = [word for word in words if re.fullmatch(r"(scripts|tests)/\w+\.py", word)]
    for name in scripts:
        assert (ROOT / name).is_file(), name
    given = [(Path(name).stem, words[words.index(name) + 1 :]) for name in scripts if name.startswith("scripts/")]
    if words[0] == "gmdf":
        assert words[1] in COMMANDS or words[1].startswith("--")
        given.append(("meta_train" if words[1] == "train" else words[1], words[2:]))
    for name, arguments in given:
        options = {word.split("=")[0] for word in arguments if word.startswith("--")} - {"--help"}
        if name == "meta_train" and "--help" not in arguments:
            config = parse_command_line([word for word in arguments if word != "…"], "", DEFAULT_RECIPE)
            assert config.train_domains
        elif name in COMMANDS:
            assert options <= options_of(name), f"{name} has no such option"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_name_protocols_scales_and_files_that_exist(page):
    text = " ".join(page.read_text().split())
    recipes = ROOT / "scripts" / "recipes"
    for names in re.findall(r"scripts/protocol\.py ((?:\w+ )+)--scale", text):
        for name in names.split():
            assert (recipes / "protocols" / f"{name}.yaml").is_file(), name
    for name in re.findall(r"--scale (\w+)", text):
        assert (recipes / "scales" / f"{name}.yaml").is_file(), name
    for name in re.findall(r"\b(?:scripts|tests)/[\w/.]*\w\.(?:py|yaml)", text):
        assert (ROOT / name).is_file(), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_python_can_be_read_and_imports_what_there_is(page):
    for block in blocks(page, "python"):
        imports = [node for node in ast.parse(block).body if isinstance(node, ast.ImportFrom | ast.Import)]
        exec(compile(ast.Module(imports, []), str(page), "exec"), {})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_between_pages_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_cited_decisions_exist():
    headings = set(re.findall(r"^### (D\d+)$", (ROOT / "docs" / "decisions.md").read_text(), re.MULTILINE))
    assert headings == {f"D{number}" for number in range(1, 22)}
    files = [path for folder in ("modeling", "gmdf_hf", "scripts", "docs") for path in (ROOT / folder).rglob("*.*")]
    texts = [path.read_text() for path in files if path.suffix in (".py", ".md", ".yaml")]
    cited = {number for text in texts for number in re.findall(r"\bD\d{1,2}\b", text)}
    assert cited - headings == set()
