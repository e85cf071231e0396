"""Show what a detector was trained on, its size, its threshold and its results.

gmdf info runs/drawn/model
gmdf info user/name@v1 --json
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field

from gmdf_hf.common.errors import exit_on_error
from gmdf_hf.common.options import Argument, Options, parse_options


class InfoOptions(Options):
    """Which detector to show."""

    model: Annotated[str, Argument("MODEL", positional=True)] = Field(
        description="Folder of a detector, or its name on the hub."
    )
    revision: str | None = Field(None, description="Commit, branch or tag of a model on the hub.")
    as_json: bool = Field(False, alias="json", description="Print JSON.")


def main(options: InfoOptions) -> None:
    """Print training data, size, threshold and results of a detector."""
    from gmdf_hf.evaluation.report import print_results
    from gmdf_hf.serving.loading import find_results, load_model

    detector = load_model(options.model, options.revision)
    config, results = detector.config, find_results(options.model, options.revision)
    vision: Any = config.vision_config
    facts = {
        "model": options.model,
        "domains": config.domains,
        "threshold": config.threshold,
        "backbone": vision.model_type,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "layers": getattr(vision, "num_hidden_layers", None),
        "hidden_size": getattr(vision, "hidden_size", None),
        "dil": config.dil,
        "aggregation": config.aggregation,
        "expert_effect": config.expert_effect,
        "slim": config.slim,
        "parameters": sum(p.numel() for p in detector.parameters()),
        "expert_parameters": sum(p.numel() for p in detector.expert_parameters().values()),
    }
    if options.as_json:
        print(json.dumps(facts | {"results": results}, indent=2))
        return
    for name, value in facts.items():
        shown = ", ".join(value) if isinstance(value, list) else f"{value:,}" if type(value) is int else value
        print(f"{name:<18} {shown}")
    if results is None:
        print("results            none beside the model")
    else:
        print_results(results)


def run(arguments: Sequence[str] | None = None, program: str | None = None) -> None:
    """Show the detector of the command line."""
    options = parse_options(InfoOptions, arguments, __doc__, program)
    with exit_on_error(program or "info.py"):
        main(options)


if __name__ == "__main__":
    run()
