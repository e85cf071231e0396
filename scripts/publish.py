"""Publish a run on the hub: model, processor, pipeline, code, card, recipe and results in one commit.

    python scripts/publish.py --run runs/x --repo user/name           # shows every file and its size, sends nothing
    python scripts/publish.py --run runs/x --repo user/name --yes     # a private repository
    python scripts/publish.py --run runs/x --repo user/name --yes --tag v1.0 --public
    python scripts/publish.py --expert runs/x/expert --repo user/expert --yes    # one domain's expert alone

See docs/publishing.md.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from gmdf_hf.common.errors import exit_on_error
from gmdf_hf.common.options import Argument, Options, parse_options
from gmdf_hf.serving.hub import expert_files, publish, published_files, size_of


class PublishOptions(Options):
    """What to publish, and where to."""

    run: Path | None = Field(None, description="Folder that `gmdf train` wrote.")
    expert: Path | None = Field(None, description="Folder that `gmdf_hf.save_expert` wrote, instead of a run.")
    repo: Annotated[str, Argument("USER/NAME")] = Field(description="Repository; it is created if it does not exist.")
    yes: bool = Field(False, description="Publish; without it the files are only listed.")
    public: bool = Field(False, description="Make a new repository public instead of private.")
    tag: str | None = Field(None, description="Name of the new revision, such as v1.0.")

    @model_validator(mode="after")
    def _check_folder(self) -> PublishOptions:
        if (self.run is None) == (self.expert is None):
            raise ValueError("give exactly one of --run and --expert")
        return self


def main(options: PublishOptions) -> None:
    """List the files to publish, and publish them if `--yes` is given."""
    folder = options.run or options.expert
    assert folder is not None  # the options require one of the two
    list_files = published_files if options.run else expert_files
    files = list_files(folder, options.repo)
    table = Table("file", "size", title=f"{folder} to {options.repo}")
    table.columns[1].justify = "right"
    for name, content in sorted(files.items()):
        table.add_row(name, decimal(size_of(content)))
    console = Console(stderr=True)
    console.print(table)
    console.print(f"{len(files)} files, {decimal(sum(map(size_of, files.values())))}.", highlight=False)
    if not options.yes:
        console.print("Nothing was sent. Add --yes to publish.", highlight=False)
        return
    print(publish(files, options.repo, f"Publish {folder.resolve().name}", private=not options.public, tag=options.tag))


def run(arguments: Sequence[str] | None = None, program: str | None = None) -> None:
    """Publish with the options of the command line."""
    options = parse_options(PublishOptions, arguments, __doc__, program)
    program = program or "publish.py"
    try:
        with exit_on_error(program):
            main(options)
    except KeyboardInterrupt:
        sys.exit(f"{program}: stopped; the repository is as it was.")


if __name__ == "__main__":
    run()
