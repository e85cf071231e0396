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
from gmdf_hf.common.options import Argument, parse_options
from gmdf_hf.serving.loading import ModelOptions, find_results, load_model, point_of


class InfoOptions(ModelOptions):
    """Which detector to show."""

    model: Annotated[str, Argument("MODEL", positional=True)] = Field(
        description="Folder of a detector, or its name on the hub."
    )
    as_json: bool = Field(False, alias="json", description="Print JSON.")


def main(options: InfoOptions) -> None:
    """Print training data, size, threshold and results of a detector."""
    from gmdf_hf.common.files import printable
    from gmdf_hf.common.labels import class_names
    from gmdf_hf.evaluation.report import print_results
    from gmdf_hf.evaluation.training_data import describe_training

    detector = load_model(options.model, options.revision, options.trust_remote_code, options.fake_label)
    results = find_results(options.model, options.revision)
    point = point_of(detector, options.model, options.revision, options.operating_point)
    facts = {
        "trained on": printable(describe_training(detector.config)),
        "operating point": "none: see gmdf calibrate" if point is None else printable(point.describe()),
        "model": options.model,
        "classes": ", ".join(printable(name) for name in class_names(detector.config).values()),
        **facts_of(detector),
        "parameters": sum(p.numel() for p in detector.parameters()),
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


def facts_of(detector: Any) -> dict[str, Any]:
    """What is special to this type of model; a classifier of others has only its type and, if stored, threshold."""
    from gmdf_hf.evaluation.classifier import is_gmdf

    config = detector.config
    if not is_gmdf(detector):
        return {"model_type": config.model_type, "threshold": getattr(config, "threshold", "none: 0.5 is used")}
    vision: Any = config.vision_config
    return {
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
        "expert_parameters": sum(p.numel() for p in detector.expert_parameters().values()),
    }


def run(arguments: Sequence[str] | None = None, program: str | None = None) -> None:
    """Show the detector of the command line."""
    options = parse_options(InfoOptions, arguments, __doc__, program)
    with exit_on_error(program or "info.py"):
        main(options)


if __name__ == "__main__":
    run()
