"""Command lines from pydantic models: fields are options, their `description` is the help, their bounds are checked.

Every command declares its options this way, including the settings of a training run. The parser is argparse, because
`gmdf predict --help` must answer within 0.5 s: pydantic-settings, jsonargparse and tyro take about that long to import,
argparse and pydantic half of it. Typer is fast, but reads options from function parameters, not from a model.
"""

from __future__ import annotations

import argparse
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo


class Options(BaseModel):
    """Options of a command; immutable, unknown names are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


Precision = Literal["auto", "float32", "bfloat16", "float16"]


class PrecisionOptions(Options):
    """Precision of a command that scores images; see `gmdf_hf.evaluation.precision`."""

    dtype: Precision = Field(
        "float32",
        description="Precision of the model's layers; auto: bfloat16 on a GPU or CPU with units for it, float16 on "
        "older CUDA cards, else float32. Half precision changes scores by about 0.001.",
    )


@dataclass(frozen=True)
class Argument:
    """Command-line form of a field, in addition to its type: `Annotated[str, Argument("FILE")]`.

    Attributes:
        metavar: Placeholder for the value in the help text.
        positional: Whether the value is given without `--name`.
    """

    metavar: str | None = None
    positional: bool = False


OptionsType = TypeVar("OptionsType", bound=BaseModel)


def parse_options(
    options: type[OptionsType], arguments: Sequence[str] | None, description: str | None, program: str | None = None
) -> OptionsType:
    """Read a command line.

    Lists take several values, mappings take `NAME=VALUE` pairs, booleans are flags, and the alias of a field replaces
    its name.

    Args:
        options: Model whose fields are the options.
        arguments: Words of the command line; None for those of the process.
        description: Text of the help above the options.
        program: Name of the command in messages; None for that of the process.

    Raises:
        SystemExit: After `--help`, or with status 2 if the options are invalid (argparse prints the reason).
    """
    parser = argparse.ArgumentParser(
        prog=program, description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    for name, field in options.model_fields.items():
        _add(parser, field.alias or name, field)
    try:
        return options(**vars(parser.parse_args(arguments)))
    except ValidationError as error:
        parser.error(first_problem(error))


def help_of(field: FieldInfo) -> str:
    """Help of an option: description and default of its field."""
    default = field.get_default(call_default_factory=True)
    shown = "" if field.is_required() or default in (None, (), {}) else f" (default: {default})"
    return f"{field.description}{shown}".replace("%", "%%")


def first_problem(error: ValidationError) -> str:
    """First error of a validation in one sentence: field, expected value, found value."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    reason = first["msg"].removeprefix("Value error, ")
    if first["type"] not in ("missing", "value_error", "extra_forbidden"):
        reason = f"{reason[0].lower()}{reason[1:]}, found {first['input']!r}"
    return f"{where}: {reason}" if where else reason


def _add(parser: argparse.ArgumentParser, name: str, field: FieldInfo) -> None:
    kind = _without_none(field.annotation)
    argument = next((item for item in field.metadata if isinstance(item, Argument)), Argument())
    settings: dict[str, Any] = {"help": help_of(field), "default": argparse.SUPPRESS}
    if kind is bool:
        parser.add_argument(f"--{name}", action="store_true", default=argparse.SUPPRESS, help=field.description)
        return
    origin, parts = get_origin(kind), get_args(kind)
    settings["metavar"] = argument.metavar
    if origin is Literal:
        settings["choices"] = parts
    elif origin in (tuple, list):
        settings["nargs"] = "+" if field.is_required() or not argument.positional else "*"
        if get_origin(parts[0]) is Literal:
            settings["choices"] = get_args(parts[0])
    elif origin is dict:
        settings |= {"nargs": "+", "action": _Pairs, "metavar": argument.metavar or "NAME=VALUE"}
    if argument.positional:
        parser.add_argument(name, **settings)
    else:
        parser.add_argument(f"--{name}", required=field.is_required(), **settings)


def _without_none(annotation: Any) -> Any:
    if get_origin(annotation) in (Union, types.UnionType):
        return next(part for part in get_args(annotation) if part is not type(None))
    return annotation


class _Pairs(argparse.Action):
    """Collects `NAME=VALUE` words in a mapping."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        pairs: dict[str, str] = {}
        for word in values:
            name, _, value = word.partition("=")
            if not name or not value or name in pairs:
                parser.error(f"{option_string} takes name=value pairs, each name once, found {word!r}")
            pairs[name] = value
        setattr(namespace, self.dest, pairs)


def add_yaml_options(parser: argparse.ArgumentParser, model: type[BaseModel], read: Callable[[str], Any]) -> None:
    """Add an option for every field, with values in YAML as in a recipe; options that are not given stay unset.

    Args:
        parser: Parser to add to.
        model: Model whose fields are the options.
        read: Reader of a value.
    """
    for name, field in model.model_fields.items():
        parser.add_argument(f"--{name}", type=read, default=argparse.SUPPRESS, metavar="YAML", help=help_of(field))
