"""Set-up of a run: data, model, method and optimizer parameters from its `TrainConfig`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast, get_args

import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

import gmdf_hf
from gmdf_hf.common.errors import UserError, unusable
from gmdf_hf.common.processes import same_on_all
from gmdf_hf.data.dataset import Domain
from gmdf_hf.data.episodes import Episode, EpisodeSampler, episode_of_batch
from gmdf_hf.data.frames import Skipped, caption_encoder
from gmdf_hf.data.loading import load_domains, make_loader, missing_masks, training_crops
from gmdf_hf.data.streams import EpisodeStream, Stream
from gmdf_hf.data.transforms import TRANSFORMS
from gmdf_hf.evaluation.scoring import score_domains
from gmdf_hf.modeling import GMDFConfig, GMDFImageProcessor, GMDFModel
from gmdf_hf.modeling.construction_gmdf import image_processor_of
from gmdf_hf.modeling.detectors import DETECTORS
from gmdf_hf.training.adapters import add_domain
from gmdf_hf.training.classifiers import CLASSIFIER_METHODS, load_classifier, new_detector, running_statistics
from gmdf_hf.training.config import MethodName, TrainConfig
from gmdf_hf.training.methods import make_method
from gmdf_hf.training.methods.method import Method
from gmdf_hf.training.precision import attention_by_tower, validation_dtype
from gmdf_hf.training.visual_codes import make_image_tokenizer


@dataclass(frozen=True)
class Setup:
    """Objects of a training run.

    Attributes:
        accelerator: Device, precision, processes.
        train: Training splits of the source domains.
        validation: Their validation splits.
        test: Test splits of all domains, the unseen ones last.
        method: Training method.
        model: The detector, a GM-DF or another image classifier.
        parameters: Parameters that the optimizer updates.
        statistics: Running statistics of its batch normalisation, synchronised over processes.
        restore_on_failure: Tensors to restore if an iteration fails: theta_E and running statistics.
        processor: Its image processor.
        save_options: For the model's `save_pretrained`.
        episode_of: Makes an episode from a batch of the loader.
        dtype: Data type of the model's layers when it scores.
        score: Scores of domains by a model, and the frames that could not be read.
        sampler: Sets the loader's epoch.
        loader: Batches of episodes.
    """

    accelerator: Accelerator
    train: list[Domain] | list[Stream]
    validation: list[Domain]
    test: list[Domain]
    method: Method
    model: PreTrainedModel
    parameters: list[torch.nn.Parameter]
    statistics: list[torch.Tensor]
    restore_on_failure: list[torch.Tensor]
    processor: BaseImageProcessor
    save_options: dict[str, Any]
    episode_of: Callable[[dict], Episode]
    dtype: torch.dtype
    score: Callable[[torch.nn.Module, list[Domain]], tuple[pd.DataFrame, list[Skipped]]]
    sampler: EpisodeSampler | EpisodeStream
    loader: DataLoader


def set_up(config: TrainConfig, accelerator: Accelerator) -> Setup:
    """Make the objects of a training run.

    Raises:
        UserError: If the configuration cannot be run.
        DomainError: If a domain cannot be used.
    """
    set_seed(config.seed)
    sources = {name: source.model_dump() for name, source in config.train_domains.items()}
    unseen = {name: source.model_dump() for name, source in config.test_only_domains.items()}
    with accelerator.main_process_first():
        train, validation, test = load_domains(sources, unseen, config.streaming)
    names = [domain.name for domain in train]
    model, processor = make_model(config, names)
    model.to(accelerator.device)
    if any(isinstance(module, _BatchNorm) for module in model.modules()):
        # A convolutional network takes two thirds of the time with its channels last in memory: docs/performance.md.
        cast(Any, model).to(memory_format=torch.channels_last)  # the annotations of `to` lack this form
    if config.gradient_checkpointing:
        try:
            # The reentrant form does not support `autograd.grad` with chosen inputs, which both half steps use.
            model.gradient_checkpointing_enable({"use_reentrant": False})
        except ValueError as error:
            raise UserError(f"gradient_checkpointing: {' '.join(str(error).split())}") from error
    if config.torch_compile:
        model.compile()
    images = None if config.streaming else [len(domain) for domain in train if isinstance(domain, Domain)]
    method = make_method(config, names, images, accelerator.num_processes)
    parameters = method.prepare(model)
    same_on_all(model.parameters())
    statistics = running_statistics(model)
    # A detector with an added domain keeps its saved class sentences.
    captions = getattr(model.config, "prompt", None) == "P3" and config.method != "add_domain"
    encode_captions = caption_encoder(backbone_path(config.backbone)) if captions else None
    blends = getattr(model, "trains_on_blends", False)
    if blends and config.self_blended:
        raise UserError(f"self_blended must be false for {config.backbone!r}, found true: it makes blends of its own.")
    sampler, loader = make_loader(
        train,
        processor,
        config.batch_size,
        config.seed,
        config.steps_per_epoch,
        num_workers=config.num_workers,
        pin_memory=accelerator.device.type == "cuda",
        transforms=TRANSFORMS[config.augment],
        pairs=method.pairs,
        self_blended=config.self_blended,
        masks=(masks := method.needs_masks or bool(getattr(model, "needs_masks", False))),
        blends=blends,
    )
    if masks and (note := missing_masks(train, blends)):
        accelerator.print(note)
    if method.needs_codes:
        with accelerator.main_process_first():  # the main process trains the tokenizer, the others load it
            method.image_tokenizer = make_image_tokenizer(
                config.image_tokenizer,
                cast(GMDFConfig, model.config),
                training_crops(sampler, loader, config.epochs),
                config.image_tokenizer_steps,
                accelerator.device,
                config.output_dir / "image_tokenizer",
            )
    episode_of = partial(
        episode_of_batch,
        num_domains=len(train),
        config=cast(GMDFConfig, model.config),  # used only if patches are hidden
        hide_patches=method.needs_codes,
        encode_captions=encode_captions,
        device=accelerator.device,
    )
    dtype = validation_dtype(accelerator.mixed_precision, model)
    score = partial(
        score_domains,
        processor=processor,
        batch_size=2 * config.batch_size,
        num_workers=config.num_workers,
        encode_captions=encode_captions,
        dtype=dtype,
    )
    # Template P3 needs the text tower if an image has a caption.
    save_options = {"slim": config.save_slim and encode_captions is None} if isinstance(model, GMDFModel) else {}
    return Setup(
        accelerator=accelerator,
        train=train,
        validation=validation,
        test=test,
        method=method,
        model=model,
        parameters=parameters,
        statistics=[tensor for tensor in statistics if tensor.is_floating_point()],
        restore_on_failure=[*method.changed_tensors(model), *statistics],
        processor=processor,
        save_options=save_options,
        episode_of=episode_of,
        dtype=dtype,
        score=score,
        sampler=sampler,
        loader=loader,
    )


def backbone_path(backbone: str) -> str:
    """Hub id or folder of a backbone; `tiny_clip` is the CLIP in this package."""
    return str(gmdf_hf.TINY_CLIP) if backbone == "tiny_clip" else backbone


def check_method(backbone: str, method: str, train_tower: str, baseline_model: str = "classifier") -> None:
    """Check that a backbone supports the training options, before any data are loaded, drawn or removed.

    Args:
        backbone: Hub id or folder of a CLIP, another image backbone or a trained GM-DF, `tiny_clip`, or the name of a
            detector.
        method: As in `TrainConfig`.
        train_tower: As in `TrainConfig`.
        baseline_model: As in `TrainConfig`.

    Raises:
        UserError: If it does not, or its configuration cannot be read.
    """
    found = backbone_type(backbone)
    if found in DETECTORS:
        possible = list(CLASSIFIER_METHODS)
    else:
        possible = [name for name in get_args(MethodName) if (name == "add_domain") == (found == GMDFConfig.model_type)]
    if method not in possible:
        raise UserError(
            f"The backbone {backbone!r} has the model type {found!r}, which trains with {', '.join(possible)}; found "
            f"the method {method!r}."
        )
    if train_tower != "all" and not trains_gmdf(found, method, baseline_model):
        raise UserError(
            f"train_tower chooses parts of a GM-DF's tower; the backbone {backbone!r} has the model type {found!r}, and"
            f" {method!r} trains its own classifier with `all`; found {train_tower!r}."
        )


def trains_gmdf(model_type: str, method: str, baseline_model: str) -> bool:
    """Whether a method trains a `GMDFModel` on a backbone instead of the backbone's own image classifier."""
    if model_type in DETECTORS:  # networks of their own; `baseline_model` is for backbones
        return False
    return model_type in ("clip", "gmdf") or method not in CLASSIFIER_METHODS or baseline_model == "gmdf"


def backbone_type(backbone: str) -> str:
    """Model type in a backbone's configuration: `clip`, `gmdf`, `vit`, `timm_wrapper` and so on; a detector's name.

    Raises:
        UserError: If the configuration cannot be read.
    """
    if backbone in DETECTORS:
        return backbone
    try:
        return str(PreTrainedConfig.get_config_dict(backbone_path(backbone))[0].get("model_type"))
    except (OSError, ValueError) as error:
        raise unusable("backbone", backbone, error) from error


def make_model(config: TrainConfig, domains: Sequence[str]) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """Make the initial model of a run and its image processor.

    `config.model` describes GM-DF; other image classifiers ignore it. Baselines ignore options that do not apply to
    them, so that all rows of a table share one recipe.

    Raises:
        UserError: If the backbone cannot be used.
    """
    size, attention = config.image_size, config.attn_implementation
    found = backbone_type(config.backbone)
    if not trains_gmdf(found, config.method, config.baseline_model):
        if config.backbone in DETECTORS:
            return new_detector(config.backbone, domains, size, config.detector)
        return load_classifier(config.backbone, domains, size, attention)
    if config.method == "add_domain":
        model = grown_model(config.backbone, domains[0], attention)
    else:
        fields = config.model | {"image_size": size, "attn_implementation": attention_by_tower(attention, found)}
        model = start_model(config.backbone, domains, fields)
    return model, image_processor(config.backbone, found, model.config.image_size)


def image_processor(backbone: str, model_type: str, image_size: int) -> GMDFImageProcessor:
    """Image processor of a detector: that of a trained detector, CLIP's, or another backbone's at `image_size`.

    Raises:
        UserError: If the backbone has no usable image processor.
    """
    if model_type == "clip":
        return GMDFImageProcessor.of_size(image_size)
    try:
        if model_type == GMDFConfig.model_type:
            return GMDFImageProcessor.from_pretrained(backbone)
        return image_processor_of(backbone, image_size)
    except (OSError, ValueError, ImportError) as error:
        raise unusable("backbone", backbone, error) from error


def start_model(backbone: str, domains: Sequence[str], fields: dict[str, Any]) -> GMDFModel:
    """Make a detector from a pre-trained CLIP or another image backbone.

    Args:
        backbone: Hub id or folder of the checkpoint, or `tiny_clip`.
        domains: Names of the source domains.
        fields: Further arguments of `GMDFModel.from_backbone`.

    Raises:
        UserError: If the backbone cannot be used.
    """
    try:
        return GMDFModel.from_backbone(backbone_path(backbone), domains=domains, **fields)
    except (OSError, ValueError, ImportError) as error:
        raise unusable("backbone", backbone, error) from error


def grown_model(detector: str, domain: str, attn_implementation: str) -> GMDFModel:
    """Load a trained detector and add a domain to it.

    Args:
        detector: Hub id or folder.
        domain: Name of the new domain.
        attn_implementation: Attention implementation of transformers.

    Raises:
        UserError: If the detector cannot be loaded, or already has that domain.
    """
    try:
        model = GMDFModel.from_pretrained(detector, attn_implementation=attn_implementation)
        add_domain(model, domain)
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"No domain can be added to {detector!r}: {' '.join(str(error).split())}") from error
    return model
