"""Checks of untrusted checkpoints before they are loaded. Not part of a checkpoint, whose own code must be trusted."""

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import safe_open
from transformers import PreTrainedConfig

from .configuration_gmdf import GMDFConfig
from .image_processing_gmdf import GMDFImageProcessor
from .loading_gmdf import BrokenModelError, some_of

MAX_LAYERS, MAX_SIZE = 1000, 10_000_000  # limits of a configuration: above any real model, small enough to allocate
HUB_OPTIONS = ("revision", "cache_dir", "token", "local_files_only", "subfolder")
MAX_SIDE = 10_000  # pixels of a side of an image processor's output
FIXED_STEPS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb", "resample")
FLOATS = ("F64", "F32", "F16", "BF16")


@contextmanager
def checked_loading(name: str | os.PathLike | None, config: Any, options: dict[str, Any]) -> Iterator[None]:
    """Check configuration and files of a checkpoint, and convert exceptions while it is loaded inside the block.

    Args:
        name: Folder or name on the hub; None if `config` and a `state_dict` are given.
        config: Configuration that replaces the checkpoint's, or None.
        options: Those of `from_pretrained`, some of which locate the files on the hub.

    Raises:
        ValueError: If the checkpoint is not a GM-DF and `config` is None.
        BrokenModelError: If the files are damaged.
    """
    if name is None:  # configuration and weights come as arguments
        yield
        return
    with refusing_damage(name):
        if config is None:
            hub = {key: options[key] for key in HUB_OPTIONS if key in options}
            fields = PreTrainedConfig.get_config_dict(name, **hub)[0]
            check_config(fields, name)
            if (found := fields.get("model_type")) != GMDFConfig.model_type:
                raise ValueError(
                    f"{name} is no GM-DF checkpoint: expected the model type {GMDFConfig.model_type!r}, "
                    f"found {found!r}; `GMDFModel.from_backbone` starts from a CLIP or another image backbone."
                )
        check_files(name)
        yield


@contextmanager
def refusing_damage(name: str | os.PathLike) -> Iterator[None]:
    """Convert exceptions of damaged files to `BrokenModelError`; a missing file or unknown model type passes through.

    Raises:
        BrokenModelError: For every other exception.
    """
    try:
        yield
    except (OSError, ImportError, ValueError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        if "meta device" in reason:  # a mistake of the caller, which the message explains
            raise
        if "ignore_mismatched_sizes" in reason:
            reason = "weights have another shape than the configuration says"
        raise BrokenModelError(f"{name} is damaged ({type(error).__name__}: {reason}).") from error


def check_config(fields: Any, name: str | os.PathLike) -> None:
    """Reject a configuration that is no mapping or has implausible sizes.

    Raises:
        BrokenModelError: If the configuration cannot be used.
    """
    if not isinstance(fields, dict):
        raise BrokenModelError(f"{name}: the configuration is no mapping of fields, found {type(fields).__name__}.")
    if fields.get("quantization_config") is not None:
        raise BrokenModelError(f"{name}: quantized weights cannot be loaded, found a `quantization_config`.")
    for key, value in fields.items():
        if isinstance(value, dict):
            check_config(value, name)
        elif type(value) is int and key.endswith(("_size", "_dim", "_layers", "_heads", "_channels")):
            most = MAX_LAYERS if key.endswith("_layers") else MAX_SIZE
            if not 1 <= value <= most:
                raise BrokenModelError(f"{name}: `{key}` must lie between 1 and {most}, found {value}.")


def check_files(folder: str | os.PathLike) -> None:
    """Reject a folder whose index names files outside of it, or whose weights are not floating-point numbers.

    Raises:
        BrokenModelError: If it is one.
    """
    index = Path(folder) / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if index.is_file():
        names = sorted({str(name) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})
        if outside := [name for name in names if Path(name).name != name]:
            raise BrokenModelError(
                f"{folder}: the index of weights names files elsewhere: {some_of(outside)}, expected names only."
            )
    for file in (Path(folder) / name for name in names):
        if file.is_file():
            with safe_open(file, "pt") as weights:
                # The batch counter of batch normalisation is an integer.
                keys = [key for key in weights.keys() if not key.endswith(".num_batches_tracked")]  # noqa: SIM118
                wrong = [key for key in keys if weights.get_slice(key).get_dtype() not in FLOATS]
            if wrong:
                raise BrokenModelError(f"{file}: weights are no floating-point numbers: {some_of(wrong)}.")


def check_processor(processor: Any, name: str | os.PathLike) -> None:
    """Reject an image processor with impossible numbers, or one of a GM-DF that differs in more than its size.

    Raises:
        BrokenModelError: If it is one.
    """
    for key, least, most in (("image_mean", -1000, 1000), ("image_std", 1e-6, 1000), ("rescale_factor", 1e-6, 1)):
        values = getattr(processor, key, None)
        for value in values if isinstance(values, (list, tuple)) else [] if values is None else [values]:
            is_number = isinstance(value, (int, float)) and math.isfinite(value)
            if not is_number or not least <= value <= most:
                raise BrokenModelError(
                    f"{name}: the image processor has {key} {values}, expected numbers from {least:g} to {most:g}."
                )
    if isinstance(processor, GMDFImageProcessor):
        for key in ("image_mean", "image_std"):
            values = getattr(processor, key, None)
            if not isinstance(values, (list, tuple)) or len(values) != 3:
                raise BrokenModelError(f"{name}: the image processor has {key} {values}, expected three numbers.")
        expected = {key: getattr(GMDFImageProcessor, key) for key in FIXED_STEPS} | {"rescale_factor": 1 / 255}
        for key, value in expected.items():
            found = getattr(processor, key, None)
            if type(found) is bool is not type(value) or found != value:
                raise BrokenModelError(f"{name}: the image processor has {key} {found!r}, expected {value!r}.")
        sides = [dict(size or {}).get(key) for size, key in _sides(processor)]
        if not all(type(side) is int and 1 <= side <= MAX_SIDE for side in sides) or len(set(sides)) > 1:
            raise BrokenModelError(
                f"{name}: the image processor has the sizes {sides}, expected three times one side of 1 to {MAX_SIDE}."
            )


def _sides(processor: Any) -> list[tuple[Any, str]]:
    crop = processor.crop_size
    return [(processor.size, "shortest_edge"), (crop, "height"), (crop, "width")]
