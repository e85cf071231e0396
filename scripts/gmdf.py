"""The command `gmdf`: one subcommand per stage of the work.

Each subcommand is a script of this folder. The script is imported only when it is called, so that `gmdf --help` is
fast.
"""

from __future__ import annotations

import ast
import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from gmdf_hf.common.memory import objects_to_keep

COMMANDS = {
    "prepare": "Turn a data set as its authors ship it into a domain.",
    "train": "Meta-train a detector on several domains (starts `accelerate launch`).",
    "evaluate": "Score a detector on domains.",
    "protocol": "Run a table or figure of the paper.",
    "report": "Write one page about runs or evaluations.",
    "publish": "Publish a run on the hub.",
    "export": "Export a detector to ONNX.",
    "calibrate": "Choose a detector's threshold at a false-positive rate.",
    "predict": "Score pictures and videos.",
    "info": "Show what a detector was trained on, and its results.",
    "serve": "Serve a detector over HTTP.",
    "demo": "Open a page to upload a picture or a video.",
}
WRONG_COMMAND_LINE, BROKEN_PIPE, INTERRUPTED = 2, 1, 130


def usage() -> str:
    """Help text of the command."""
    lines = [f"  {name:<10} {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "usage: gmdf COMMAND [options]",
            "",
            "GM-DF: one deepfake detector meta-trained on several data sets.",
            "",
            *lines,
            "",
            "gmdf COMMAND --help lists the options of a command.",
        ]
    )


def train(arguments: Sequence[str]) -> None:
    """Replace this process by `accelerate launch meta_train.py`, with the user's `accelerate config` if there is one.

    For options of `accelerate launch` itself: `accelerate launch OPTIONS -m gmdf_hf.scripts.meta_train ...`.
    """
    script = Path(__file__).with_name("meta_train.py")
    if {"-h", "--help"} & set(arguments):
        from gmdf_hf.training.config import parse_command_line

        description = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8")))  # its import takes seconds
        parse_command_line(["--help"], description, script.parent / "recipes" / "drawn.yaml", "gmdf train")
    sys.stdout.flush()
    launch = ["-m", "accelerate.commands.launch", "--quiet"]
    os.execv(sys.executable, [sys.executable, *launch, str(script), *arguments])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; output is UTF-8 in any locale."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    name, *rest = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help"):
        print(usage())
        return
    if name == "--version":
        from gmdf_hf import __version__

        print(__version__)
        return
    if name not in COMMANDS:
        print(f"gmdf: unknown command {name!r}; known are {', '.join(COMMANDS)}", file=sys.stderr)
        sys.exit(WRONG_COMMAND_LINE)
    try:
        if name == "train":
            train(rest)
        with objects_to_keep():
            script = import_module(f"gmdf_hf.scripts.{name}")
        script.run(rest, f"gmdf {name}")
    except BrokenPipeError:  # for example, `| head` has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(BROKEN_PIPE)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
