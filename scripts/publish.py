"""Publish a run on the hub: model, processor, pipeline, code, card, recipe and results in one commit.

    python scripts/publish.py --run runs/x --repo user/name           # shows every file and its size, sends nothing
    python scripts/publish.py --run runs/x --repo user/name --yes     # a private repository
    python scripts/publish.py --run runs/x --repo user/name --yes --tag v1.0 --public
    python scripts/publish.py --expert runs/x/expert --repo user/expert --yes    # one domain's expert alone

See docs/publishing.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from gmdf_hf.common.errors import UserError
from gmdf_hf.serving.hub import expert_files, publish, published_files, size_of


def parser() -> argparse.ArgumentParser:
    """Return the command line of this script."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = cli.add_mutually_exclusive_group(required=True)
    what.add_argument("--run", type=Path, help="folder that meta_train.py left")
    what.add_argument("--expert", type=Path, help="folder that `gmdf_hf.save_expert` wrote")
    cli.add_argument("--repo", required=True, metavar="USER/NAME", help="repository; made if it is not there")
    cli.add_argument("--yes", action="store_true", help="send; without it the files are only listed")
    cli.add_argument("--public", action="store_true", help="make a new repository public (private)")
    cli.add_argument("--tag", help="name to give to the new revision, such as v1.0")
    return cli


def main(argv: Sequence[str] | None = None) -> None:
    """List what would be published, and publish it if told to."""
    args = parser().parse_args(argv)
    files = published_files(args.run, args.repo) if args.run else expert_files(args.expert, args.repo)
    folder = args.run or args.expert
    table = Table("file", "size", title=f"{folder} to {args.repo}")
    table.columns[1].justify = "right"
    for name, content in sorted(files.items()):
        table.add_row(name, decimal(size_of(content)))
    console = Console(stderr=True)
    console.print(table)
    console.print(f"{len(files)} files, {decimal(sum(map(size_of, files.values())))}.", highlight=False)
    if not args.yes:
        console.print("Nothing was sent. Add --yes to publish.", highlight=False)
        return
    print(publish(files, args.repo, f"Publish {folder.resolve().name}", private=not args.public, tag=args.tag))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"publish.py: {error}")
    except KeyboardInterrupt:
        sys.exit("publish.py: stopped; the repository is as it was.")
