"""Configuration of a GM-DF model."""

import re
from typing import Any, Literal, cast

import transformers
from packaging.version import Version

# Both bounds are enforced, because the package uses internal modules of transformers that any minor version may change.
# This file is loaded first, so the check runs before an import below fails with an unrelated message.
# First version that works, first one that was not tested. 5.17 needs torchvision beside it; the package asks for 5.18.
TRANSFORMERS = ("5.17", "5.25")
if not Version(TRANSFORMERS[0]) <= Version(transformers.__version__) < Version(TRANSFORMERS[1]):
    needed = f"transformers>={TRANSFORMERS[0]},<{TRANSFORMERS[1]}"
    raise ImportError(f"GM-DF needs {needed}, found {transformers.__version__}: pip install '{needed}'")

from huggingface_hub.dataclasses import strict  # noqa: E402
from transformers import AutoConfig, PreTrainedConfig  # noqa: E402

IN_PACKAGE = not __name__.startswith("transformers_modules.")  # otherwise this is the copy in a checkpoint
CLIP_VISION = "clip_vision_model"
TEXT_TOWERS = ("clip_text_model", "siglip_text_model", "siglip2_text_model")


@strict
class GMDFConfig(PreTrainedConfig):
    r"""Configuration of a [`GMDFModel`].

    Any configuration can be instantiated without a tokenizer: `prompt_ids` are a field, filled by
    `GMDFModel.from_clip`, and neutral ids inside the vocabulary otherwise.

    Args:
        vision_config: Image backbone (decision D20): CLIP's vision tower, or any other one of transformers, timm's
            included, as a configuration or a dict of its fields; a dict without `model_type` is CLIP's.
        text_config: Text tower of CLIP or SigLIP, in the same form; None with another backbone: the class features are
            then learned vectors.
        projection_dim: Width P of the joint image and text space.
        logit_scale_init_value: Start of the learned log temperature, as in CLIP.
        initializer_factor: Factor on the spread of randomly initialised CLIP weights, as in CLIP.
        domains: Names of the source domains, in the order of their experts.
        dil: Variant of the Dataset Information Layer (Table 9): `affine`, `affine_bias` or `cross_attention`.
        expert_bottleneck_size: Width R inside an expert.
        prompt_size: Length M of a domain's prompt vector.
        num_prompt_tokens: Number of tokens the prompt vector is split into; used by `cross_attention` only.
        expert_scale: Constant factor on every expert's output (decision D17). `from_clip` sets 64; checkpoints without
            this field were trained with 1.
        text_shift_scale: Constant factor on the text affine's shift: `from_clip` sets the reciprocal of the
            temperature.
        aggregation: Reduction over the experts' outputs for an image of an unknown domain: `sum` or `mean`.
        prompt: Template of the class sentences, P1 to P7 (Table 6).
        prompt_ids: Token ids of the real and of the fake sentence, `(2, length)`.
        mask_ratio: Share of the patches that masked-image modelling hides, in (0, 1).
        mask_strategy: `random` patches or `block`-wise.
        codebook_size: Number T of codes that the masked-image head predicts.
        threshold: Smallest probability of fake at which a face is classified as fake; training sets it to the value
            chosen on the source domains' validation videos.
        training_data: Training data: `kind` (drawn, test data, real), `domains`, `evidence`; None if not recorded.
        expert_effect: Measured share of the `experts` and of the `text` affine in the decision, for images of `known`
            and `unknown` domains; None if training did not measure it.
        backbone_image_size: Side in pixels of the images of a backbone other than CLIP; None for the backbone's own.
        backbone_patch_size: Side in pixels of its patches, or of one position of its last feature map; set when the
            model is made.
        backbone_pooler: Whether its own pooler computes the image features; False uses its class token, for checkpoints
            without a pooler.
        freeze_batch_norm: Whether its batch normalisation keeps the loaded statistics in training too.
        slim: Whether text tower and masked-image head are left out; classification does not need them.

    Raises:
        StrictDataclassError: If a field has the wrong type or is out of range.
    """

    model_type = "gmdf"
    keys_to_ignore_at_inference = [  # noqa: RUF012  `Trainer` then passes only the logits to `compute_metrics`
        "image_embeds",
        "text_embeds",
        "mim_code_logits",
        "mim_pixels",
        "hidden_states",
        "attentions",
        "expert_weights",
    ]
    sub_configs = {"vision_config": AutoConfig, "text_config": AutoConfig}  # noqa: RUF012

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    projection_dim: int = 512
    logit_scale_init_value: float | int = 2.6592
    initializer_factor: float | int = 1.0
    domains: list[str] | tuple[str, ...] = ("a", "b")
    dil: Literal["affine", "affine_bias", "cross_attention"] = "affine"
    expert_bottleneck_size: int = 64
    prompt_size: int = 64
    num_prompt_tokens: int = 4
    expert_scale: float | int = 1.0
    text_shift_scale: float | int = 1.0
    aggregation: Literal["sum", "mean"] = "mean"
    prompt: Literal["P1", "P2", "P3", "P4", "P5", "P6", "P7"] = "P1"
    prompt_ids: list[list[int]] | None = None
    mask_ratio: float = 0.2
    mask_strategy: Literal["random", "block"] = "random"
    codebook_size: int = 512
    threshold: float | int = 0.5
    training_data: dict[str, Any] | None = None
    expert_effect: dict[str, dict[str, float]] | None = None
    backbone_image_size: int | None = None
    backbone_patch_size: int | None = None
    backbone_pooler: bool = True
    freeze_batch_norm: bool = True
    slim: bool = False

    def __post_init__(self, **kwargs):
        if self.id2label is None and kwargs.get("num_labels", 2) == 2:
            self.id2label = {0: "real", 1: "fake"}
        if self.label2id is None and self.id2label is not None:
            self.label2id = {label: int(number) for number, label in self.id2label.items()}
        if IN_PACKAGE:  # its own pipeline is used, so the code in the saved folder need not be trusted
            kwargs.pop("custom_pipelines", None)
        self.vision_config = _tower(self.vision_config or {}, CLIP_VISION)
        if self.text_config is not None or self.is_clip:
            self.text_config = _tower(self.text_config or {}, TEXT_TOWERS[0])
        super().__post_init__(**kwargs)
        self.domains = list(self.domains)
        if self.prompt_ids is None and self.text_config is not None:
            # Two different sentences for a model without a tokenizer: start, word, end.
            start, end = self.text.bos_token_id, self.text.eos_token_id
            if self.is_clip:
                self.prompt_ids = [[start, word, end] for word in (0, 1)]
            else:  # SigLIP's own end token ids exceed small vocabularies
                self.prompt_ids = [[word] for word in (0, 1)]

    def validate_architecture(self):
        """Check the fields against each other (called by `strict`)."""
        if not self.domains or len(set(self.domains)) != len(self.domains) or not all(self.domains):
            raise ValueError(f"`domains` must be distinct names, at least one, found {self.domains}.")
        for name in self.domains:
            # Names become parts of file names and HTML pages.
            if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", name):
                raise ValueError(
                    f"`domains` must be names of letters, digits, '.', '_' and '-' that begin with a letter, a digit "
                    f"or _, at most 100 characters, found {name[:100]!r}."
                )
        for key in ("projection_dim", "expert_bottleneck_size", "prompt_size", "num_prompt_tokens", "codebook_size"):
            if getattr(self, key) < 1:
                raise ValueError(f"`{key}` must be at least 1, found {getattr(self, key)}.")
        if self.prompt_size % self.num_prompt_tokens:
            raise ValueError(
                f"`prompt_size` must be a multiple of `num_prompt_tokens`, found {self.prompt_size} and "
                f"{self.num_prompt_tokens}."
            )
        for key in ("expert_scale", "text_shift_scale"):
            if not getattr(self, key) > 0:
                raise ValueError(f"`{key}` must be above 0, found {getattr(self, key)}.")
        if not 0 < self.mask_ratio < 1:
            raise ValueError(f"`mask_ratio` must lie between 0 and 1, found {self.mask_ratio}.")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"`threshold` must lie in [0, 1], found {self.threshold}.")
        labels = self.id2label or {}
        if len(labels) != 2:
            raise ValueError(f"GM-DF has two classes, real and fake; found {len(labels)} labels.")
        self._validate_towers()
        if self.prompt_ids is None:
            return
        if len(self.prompt_ids) != 2 or len({len(ids) for ids in self.prompt_ids}) != 1:
            raise ValueError(f"`prompt_ids` must be two rows of equal length, found {self.prompt_ids}.")
        if self.prompt_ids[0] == self.prompt_ids[1]:
            raise ValueError(
                f"`prompt_ids` must be two different sentences, one of real and one of fake; both are "
                f"{self.prompt_ids[0]}: every image would get the probability 0.5."
            )
        vocab_size = self.text.vocab_size
        if not all(0 <= token < vocab_size for row in self.prompt_ids for token in row):
            raise ValueError(f"`prompt_ids` must lie in [0, {vocab_size}), found {self.prompt_ids}.")

    def _validate_towers(self) -> None:
        text = None if self.text_config is None else self.text.model_type
        if text is not None and text not in TEXT_TOWERS:
            raise ValueError(f"`text_config` must be one of {list(TEXT_TOWERS)}, found {text!r}.")
        if self.is_clip != (text == TEXT_TOWERS[0]):
            raise ValueError(f"CLIP's two towers need each other: found {self.vision.model_type!r} and {text!r}.")
        if self.text_config is None and self.prompt_ids is not None:
            raise ValueError("`prompt_ids` need a text tower, which this backbone does not have: leave them out.")
        if self.prompt == "P3" and not self.is_clip:
            raise ValueError("The captions of prompt P3 need CLIP's text tower: choose another prompt.")

    def to_diff_dict(self) -> dict[str, Any]:
        """Fields for `config.json`, without those that have transformers' defaults, in the towers too."""
        towers = {key: getattr(self, key) for key in self.sub_configs}
        return super().to_diff_dict() | {
            key: tower.to_diff_dict() for key, tower in towers.items() if tower is not None
        }

    @property
    def vision(self) -> Any:
        """`vision_config` as an object; its fields are those of its own class."""
        return self.vision_config

    @property
    def text(self) -> Any:
        """`text_config` as an object, for a model with a text tower."""
        return self.text_config

    @property
    def num_experts(self) -> int:
        """Number of source domains E."""
        return len(self.domains)

    @property
    def is_clip(self) -> bool:
        """Whether the image backbone is CLIP's vision tower, which has the experts inside its blocks."""
        return self.vision.model_type == CLIP_VISION

    @property
    def image_size(self) -> int:
        """Side of the images in pixels."""
        return self.vision.image_size if self.is_clip else cast(int, self.backbone_image_size)

    @property
    def patch_size(self) -> int | None:
        """Side in pixels of the patches that L_mim masks; None if the backbone does not support masking."""
        return self.vision.patch_size if self.is_clip else self.backbone_patch_size


def _tower(fields: dict | PreTrainedConfig, default: str) -> PreTrainedConfig:
    """Configuration of a tower from its fields; without `model_type` it is of the default one."""
    return AutoConfig.for_model(**{"model_type": default} | fields) if isinstance(fields, dict) else fields


__all__ = ["GMDFConfig"]
