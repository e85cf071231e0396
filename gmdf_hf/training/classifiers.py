"""Image classifiers as baselines: those of transformers and timm, and the detectors of `gmdf_hf.modeling.detectors`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, get_args

import torch
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    PreTrainedModel,
)
from transformers.image_processing_utils import BaseImageProcessor
from transformers.utils import cached_file

from gmdf_hf.common.errors import UserError, unusable
from gmdf_hf.modeling import GMDFModel
from gmdf_hf.modeling.detectors import DETECTORS, Detector, image_processor_of
from gmdf_hf.training.config import ClassifierMethod

CLASSIFIER_METHODS = get_args(ClassifierMethod)  # the other methods need a GM-DF
NORMS = (torch.nn.LayerNorm, torch.nn.modules.batchnorm._BatchNorm)
# `num_labels` as well: the number of classes in a timm configuration takes precedence over the names.
CLASSES = {"id2label": {0: "real", 1: "fake"}, "label2id": {"real": 0, "fake": 1}, "num_labels": 2}


def load_classifier(
    backbone: str, domains: Sequence[str], image_size: int | None = None, attn_implementation: str = "sdpa"
) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """Load an image classifier with a new head for real and fake, and its image processor.

    Only safetensors weights are read, and no code from the checkpoint is run.

    Args:
        backbone: Hub id or folder.
        domains: Names of the source domains, kept in the model's configuration.
        image_size: Side of the images in pixels; None for the image processor's.
        attn_implementation: Attention implementation of transformers.

    Raises:
        UserError: If the classifier cannot be loaded, has no head, or does not accept images of that size.
    """
    # Models without attention reject an explicit `sdpa`; the others default to it.
    attention = {} if attn_implementation == "sdpa" else {"attn_implementation": attn_implementation}
    try:
        config = AutoConfig.from_pretrained(backbone, trust_remote_code=False, **CLASSES)
        if type(config) not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
            raise ValueError(f"transformers has no image classifier of the model type {config.model_type!r}.")
        model, report = AutoModelForImageClassification.from_pretrained(
            backbone,
            config=config,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=torch.float32,  # dtype of training, whatever the checkpoint's dtype
            **attention,
        )
        head = head_parameters(model)
        absent = {*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])} - head.keys()
        # Old checkpoints lack `num_batches_tracked`, which is not used.
        needed = {name for name in model.state_dict() if not name.endswith("num_batches_tracked")}
        if lacking := sorted(absent & needed):
            raise ValueError(f"it lacks weights, or has them in another shape: {', '.join(lacking[:5])}.")
        processor = AutoImageProcessor.from_pretrained(backbone, trust_remote_code=False)
        if image_size is not None:
            processor = resized(processor, image_size)
        check_size(model, image_side(processor))
        if isinstance(model, Detector):
            model.check_domains(len(domains))
    except (OSError, ValueError, ImportError) as error:
        raise unusable("backbone", backbone, error) from error
    for name, module in model.named_modules():
        # Also replaces a head for two classes: its classes or their order may differ.
        if isinstance(module, torch.nn.Linear) and f"{name}.weight" in head:
            module.reset_parameters()
    model.config.domains = list(domains)
    return model, processor


def new_detector(
    name: str, domains: Sequence[str], image_size: int | None = None, fields: Mapping[str, Any] | None = None
) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """Make one of the comparison detectors with random weights, and its image processor.

    Args:
        name: Its name in `DETECTORS`.
        domains: Names of the source domains, kept in the model's configuration.
        image_size: Side of the images in pixels; None for the published one.
        fields: Fields of its configuration; besides, `pretrained` is the hub id or folder of safetensors weights for
            the network inside it.

    Raises:
        UserError: If a field is unknown or out of range, or the pre-trained weights do not fit.
    """
    given = dict(fields or {}) | {"domains": list(domains)} | ({} if image_size is None else {"image_size": image_size})
    pretrained = given.pop("pretrained", None)
    try:
        model = DETECTORS[name](**given)
        if pretrained is not None:
            if not isinstance(model, Detector):
                raise ValueError(f"pretrained: load {pretrained!r} as the backbone itself.")
            file = cached_file(str(pretrained), "model.safetensors")
            assert file is not None  # otherwise it raises
            model.load_backbone(load_file(file))
        if isinstance(model, Detector):
            model.check_domains(len(domains))
        check_size(model, model.config.image_size)
    except (OSError, ValueError, TypeError, StrictDataclassError) as error:
        raise UserError(f"The detector {name!r} cannot be made: {' '.join(str(error).split())}") from error
    return model, image_processor_of(model.config)


def missing_packages(backbone: str) -> list[str]:
    """Packages that a timm model on the hub needs and that are not installed; empty for any other name."""
    needed = ("timm", "torchvision") if backbone.startswith("timm/") else ()
    return [name for name in needed if find_spec(name) is None]


def image_side(processor: BaseImageProcessor) -> int:
    """Side in pixels of an image processor's output.

    Raises:
        ValueError: If the output is not square, or its size depends on the input.
    """
    pixel_values = processor(images=Image.new("RGB", (64, 48)), return_tensors="pt")["pixel_values"]
    if pixel_values.ndim != 4 or pixel_values.shape[-1] != pixel_values.shape[-2]:
        raise ValueError(
            f"its image processor makes no square images: 64 x 48 pixels give {tuple(pixel_values.shape)}."
        )
    return pixel_values.shape[-1]


def resized(processor: BaseImageProcessor, image_size: int) -> BaseImageProcessor:
    """Copy of an image processor with another output size and the same crop fraction.

    Raises:
        ValueError: If the processor cannot make images of that size.
    """
    own, fields = image_side(processor), processor.to_dict()
    for name in ("size", "crop_size"):
        if fields.get(name):
            fields[name] = {key: round(value * image_size / own) for key, value in fields[name].items()}
    processor = type(processor).from_dict(fields)
    if (found := image_side(processor)) != image_size:
        raise ValueError(f"its image processor makes images of {found} pixels a side, expected {image_size}.")
    return processor


@torch.no_grad()
def check_size(model: PreTrainedModel, image_size: int) -> None:
    """Check that a model accepts images of a size.

    Raises:
        ValueError: If it does not, such as a transformer with one position embedding per patch.
    """
    try:
        model.eval()(pixel_values=torch.zeros(1, 3, image_size, image_size))
    except (ValueError, RuntimeError, AssertionError) as error:
        raise ValueError(f"it takes no images of {image_size} pixels a side: {error}") from error


def head_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Trainable parameters of a linear probe, by name.

    For a GM-DF or CLIP these are the projection of the image features, the temperature, and learned class features: the
    decision is the sign of a linear function of the frozen features and starts as CLIP's zero-shot decision.

    Raises:
        ValueError: If the model has no head with a known name.
    """
    names = (
        ("visual_projection.", "logit_scale", "prompt_embeds")
        if isinstance(model, GMDFModel)
        else ("classifier.", "head.", "fc.")
    )
    parts = tuple(f".{name}" for name in names)
    found = {
        name: parameter
        for name, parameter in model.named_parameters()
        if name.startswith(names) or any(part in name for part in parts if not isinstance(model, GMDFModel))
    }
    if not found:
        raise ValueError(f"{type(model).__name__} has no parameters named {', '.join(names)}: no head to train.")
    return found


def freeze_all_but(model: torch.nn.Module, trained: Iterable[torch.nn.Parameter]) -> list[torch.nn.Parameter]:
    """Set `requires_grad` of the parameters in `trained` only, and return them in the model's order.

    Frozen weights of a text tower stay frozen.
    """
    kept = {id(parameter) for parameter in trained if parameter.requires_grad}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in kept)
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def freeze_all_but_the_head(model: torch.nn.Module) -> None:
    """Make a model a linear probe: `requires_grad` is True only for `head_parameters`."""
    freeze_all_but(model, head_parameters(model).values())


def vision_tower(model: torch.nn.Module) -> torch.nn.Module:
    """The part of a model that computes image features; all of an image classifier."""
    return model.vision_model if isinstance(model, GMDFModel) else model


def norm_parameters(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """Gains and biases of the normalisations in the vision tower, without those of GM-DF's experts."""
    experts = model.expert_parameters() if isinstance(model, GMDFModel) else {}
    apart = {id(parameter) for parameter in experts.values()}
    norms = (module for module in vision_tower(model).modules() if isinstance(module, NORMS))
    return [parameter for norm in norms for parameter in norm.parameters() if id(parameter) not in apart]


def attention_maps(model: torch.nn.Module) -> dict[str, torch.nn.Linear]:
    """Linear maps in the attention of the vision tower by name: query, key, value and output.

    Raises:
        UserError: If there are none, as in a convolutional network.
    """
    experts = model.expert_parameters() if isinstance(model, GMDFModel) else {}
    inside = "vision_model." if isinstance(model, GMDFModel) else ""
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        and name.startswith(inside)
        and re.search(r"(^|\.)(\w*attn|attention)(\.|$)", name)
        and f"{name}.weight" not in experts
    }
    if not found:
        raise UserError(f"{type(model).__name__} has no attention with linear maps; choose another method or backbone.")
    return found


def freeze_tower(model: GMDFModel, but_layer_norms: bool) -> None:
    """Freeze CLIP's weights in the vision tower, to keep its generalisation to unseen images.

    The experts, the projection, the temperature and the masked-image head stay trainable.

    Args:
        model: The detector.
        but_layer_norms: Keep the gains and biases of the tower's layer normalisations trainable, as GenD does.
    """
    spared = {id(parameter) for parameter in norm_parameters(model)} if but_layer_norms else set()
    for name, parameter in model.shared_parameters().items():
        if name.startswith("vision_model.") and id(parameter) not in spared:
            parameter.requires_grad_(False)


def head_map(model: torch.nn.Module) -> torch.nn.Linear:
    """Last linear map of a classifier's head.

    Raises:
        ValueError: If there is none.
    """
    head = head_parameters(model)
    linear = [(name, module) for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    maps = [module for name, module in linear if f"{name}.weight" in head]
    if not maps:
        raise ValueError(f"{type(model).__name__} has no linear map among its head: {', '.join(head)}.")
    return maps[-1]


@contextmanager
def features_of(model: torch.nn.Module) -> Iterator[list[torch.Tensor]]:
    """Collect the features that a model's decision is made from, one tensor `(B, D)` for each forward pass inside.

    Those of a GM-DF are its `image_embeds`, of unit length; those of another classifier the inputs of its head.
    """
    found: list[torch.Tensor] = []
    if isinstance(model, GMDFModel):
        hook = model.register_forward_hook(lambda module, inputs, output: found.append(output.image_embeds))
    else:
        hook = head_map(model).register_forward_pre_hook(lambda module, inputs: found.append(inputs[0]))
    try:
        yield found
    finally:
        hook.remove()


def running_statistics(model: torch.nn.Module) -> list[torch.Tensor]:
    """Buffers of batch normalisation, updated by every forward pass in training mode; empty for a GM-DF."""
    names = ("running_mean", "running_var", "num_batches_tracked")
    return [buffer for name, buffer in model.named_buffers() if name.rpartition(".")[2] in names]
