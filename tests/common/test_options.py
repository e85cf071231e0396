from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from gmdf_hf.common.options import Argument, Options, parse_options


class Example(Options):
    files: Annotated[tuple[str, ...], Argument("FILE", positional=True)] = Field(description="Files to read.")
    model: str = Field(description="Folder of a model.")
    frames: int = Field(32, ge=1, description="Frames of a video.")
    threshold: float | None = Field(None, ge=0, le=1, description="100 % is 1.")
    kind: Literal["box", "aligned"] = Field("box", description="Crop.")
    seeds: tuple[int, ...] = Field((0,), description="Seeds.")
    domains: dict[str, Path] = Field({}, description="Domains.")
    as_json: bool = Field(False, alias="json", description="Print JSON.")


def parse(*words: str) -> Example:
    return parse_options(Example, words, "What it does.", "example")


def test_values_have_the_types_of_the_fields():
    words = "a b --model m --frames 8 --seeds 1 2 --domains x=/a y=/b=c --json"
    found = parse(*words.split())
    assert found.files == ("a", "b") and found.model == "m" and found.frames == 8 and found.seeds == (1, 2)
    assert found.domains == {"x": Path("/a"), "y": Path("/b=c")} and found.as_json
    assert found.threshold is None and found.kind == "box"
    assert Example(files=("a",), model="m", as_json=True).as_json


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a"], "the following arguments are required: --model"),
        (["--model", "m"], "the following arguments are required: FILE"),
        (["a", "--model", "m", "--frames", "0"], "frames: input should be greater than or equal to 1, found '0'"),
        (["a", "--model", "m", "--frames", "many"], "found 'many'"),
        (["a", "--model", "m", "--threshold", "1.5"], "threshold: input should be less than or equal to 1"),
        (["a", "--model", "m", "--kind", "round"], "invalid choice: 'round'"),
        (["a", "--model", "m", "--domains", "x"], "--domains takes name=value pairs, each name once, found 'x'"),
        (["a", "--model", "m", "--domains", "x=1", "x=2"], "each name once, found 'x=2'"),
        (["a", "--model", "m", "--mod", "n"], "unrecognized arguments: --mod n"),
    ],
)
def test_a_wrong_command_line_is_status_2_and_one_reason(capsys, words, message):
    with pytest.raises(SystemExit) as caught:
        parse(*words)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_help_has_description_bounds_and_defaults(capsys):
    with pytest.raises(SystemExit):
        parse("--help")
    printed = " ".join(capsys.readouterr().out.split())
    assert "usage: example" in printed and "What it does." in printed
    assert "Frames of a video. (default: 32)" in printed and "100 % is 1." in printed
    assert "--json Print JSON." in printed and "FILE [FILE ...]" in printed
