"""Configuration of a GM-DF model."""

import math
import re
from collections.abc import Sequence
from typing import Any, cast

import transformers
from packaging.version import Version

# Both bounds are enforced, because the package uses internal modules of transformers that any minor version may change.
# This file is loaded first, so the check runs before an import below fails with an unrelated message.
TRANSFORMERS = ("5.20", "5.25")  # first version that works, first one that was not tested
if not Version(TRANSFORMERS[0]) <= Version(transformers.__version__) < Version(TRANSFORMERS[1]):
    needed = f"transformers>={TRANSFORMERS[0]},<{TRANSFORMERS[1]}"
    raise ImportError(f"GM-DF needs {needed}, found {transformers.__version__}: pip install '{needed}'")

from huggingface_hub.dataclasses import strict  # noqa: E402
from transformers import AutoConfig, CLIPConfig, PreTrainedConfig, PreTrainedTokenizerBase  # noqa: E402
from transformers.configuration_utils import SubConfigSpec  # noqa: E402

DIL_VARIANTS = ("affine", "affine_bias", "cross_attention")
AGGREGATIONS = ("sum", "mean")
MASK_STRATEGIES = ("random", "block")
CLIP_VISION = "clip_vision_model"
TEXT_TOWERS = ("clip_text_model", "siglip_text_model", "siglip2_text_model")
EXPERT_SCALE = 64.0  # of new detectors; docs/evidence.md compares other values

# Table 6 of the paper: the sentence for a real and for a fake face. P3 puts a caption of the image before the sentence;
# the table prints "real face" in both of its columns, which could not tell the classes apart, so "fake" is used here.
PROMPT_TEMPLATES = {
    "P1": ("A photo of real face", "A photo of fake face"),
    "P2": ("This is a photo of real", "This is a photo of fake"),
    "P3": ("{caption} A photo of real face", "{caption} A photo of fake face"),
    "P4": ("Real", "Fake"),
    "P5": ("This is how a real face looks like", "This is how a fake face looks like"),
    "P6": ("This photo contains real face", "This photo contains fake face"),
    "P7": ("Real face is in this photo", "Fake face is in this photo"),
}


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
    sub_configs_defaults = {  # noqa: RUF012
        "vision_config": SubConfigSpec(AutoConfig, model_type="clip_vision_model"),
        "text_config": SubConfigSpec(AutoConfig, model_type="clip_text_model", optional=True),
    }

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    projection_dim: int = 512
    logit_scale_init_value: float | int = 2.6592
    initializer_factor: float | int = 1.0
    domains: list[str] | tuple[str, ...] = ("a", "b")
    dil: str = "affine"
    expert_bottleneck_size: int = 64
    prompt_size: int = 64
    num_prompt_tokens: int = 4
    expert_scale: float | int = 1.0
    text_shift_scale: float | int = 1.0
    aggregation: str = "mean"
    prompt: str = "P1"
    prompt_ids: list[list[int]] | None = None
    mask_ratio: float = 0.2
    mask_strategy: str = "random"
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
        if not type(self).__module__.startswith("transformers_modules."):
            # The package registers its own pipeline, so the code in the saved folder need not be trusted.
            kwargs.pop("custom_pipelines", None)
        if self.text_config is None and _model_type(self.vision_config) == CLIP_VISION:
            self.text_config = {}
        super().__post_init__(**kwargs)  # turns the sub-configs into objects
        self.domains = list(self.domains)
        if not self.is_clip and self.backbone_image_size is None:
            self.backbone_image_size = image_size_of(self.vision)
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
        for key, allowed in (
            ("dil", DIL_VARIANTS),
            ("aggregation", AGGREGATIONS),
            ("prompt", tuple(PROMPT_TEMPLATES)),
            ("mask_strategy", MASK_STRATEGIES),
        ):
            if getattr(self, key) not in allowed:
                raise ValueError(f"`{key}` must be one of {list(allowed)}, found {getattr(self, key)!r}.")
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
            raise ValueError(
                f"CLIP's towers go together: found {self.vision.model_type!r} with the text tower {text!r}."
            )
        if self.text_config is None and self.prompt_ids is not None:
            raise ValueError("`prompt_ids` need a text tower, which this backbone has not: leave them out.")
        if self.prompt == "P3" and not self.is_clip:
            raise ValueError("The captions of prompt P3 need CLIP's text tower: choose another prompt.")

    @classmethod
    def from_clip(cls, clip: CLIPConfig, domains: Sequence[str], **fields) -> "GMDFConfig":
        """Configuration of a detector based on a CLIP checkpoint; `fields` are those of this class."""
        start: dict[str, Any] = {
            "projection_dim": clip.projection_dim,
            "logit_scale_init_value": clip.logit_scale_init_value,
            "expert_scale": EXPERT_SCALE,
        }
        vision, text = cast(PreTrainedConfig, clip.vision_config), cast(PreTrainedConfig, clip.text_config)
        start |= {"vision_config": vision.to_dict(), "text_config": text.to_dict(), "domains": list(domains)}
        return cls(**start | fields)

    @classmethod
    def from_backbone(cls, backbone: PreTrainedConfig, domains: Sequence[str], **fields) -> "GMDFConfig":
        """Configuration of a detector based on a backbone checkpoint; `fields` are those of this class.

        Raises:
            ValueError: If the checkpoint is a composite model other than SigLIP.
        """
        start: dict = {"expert_scale": EXPERT_SCALE, "text_shift_scale": math.exp(-cls.logit_scale_init_value)}
        vision = backbone
        if backbone.model_type in ("siglip", "siglip2"):
            vision = backbone.vision_config
            start |= {"text_config": backbone.text_config.to_dict(), "projection_dim": vision.hidden_size}
        elif backbone.sub_configs:
            raise ValueError(
                f"GM-DF starts from CLIP, SigLIP or an image backbone; the model type {backbone.model_type!r} has the "
                f"parts {sorted(backbone.sub_configs)}."
            )
        vision_fields = vision.to_dict()
        if vision.model_type == "timm_wrapper":  # otherwise it holds 1000 class names that the backbone does not use
            vision_fields |= {"num_labels": 2, "num_classes": 0, "label_names": []}
        return cls(vision_config=vision_fields, domains=list(domains), **start | fields)

    def set_prompts(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Fill `prompt_ids` with the template's sentences; those of P3 lack the caption, which comes with a batch."""
        sentences = [text.replace("{caption} ", "") for text in PROMPT_TEMPLATES[self.prompt]]
        # SigLIP takes its features from the last position; it was trained with padding to the full length.
        length = {} if self.is_clip else {"max_length": self.text.max_position_embeddings}
        self.prompt_ids = tokenizer(sentences, padding="max_length" if length else True, **length)["input_ids"]
        self.validate_architecture()

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
    def has_siglip_text(self) -> bool:
        """Whether the text tower is SigLIP's, which adds a bias to the logits."""
        return self.text_config is not None and not self.is_clip

    @property
    def image_size(self) -> int:
        """Side of the images in pixels."""
        return self.vision.image_size if self.is_clip else cast(int, self.backbone_image_size)

    @property
    def patch_size(self) -> int | None:
        """Side in pixels of the patches that L_mim masks; None if the backbone does not support masking."""
        return self.vision.patch_size if self.is_clip else self.backbone_patch_size


def _model_type(vision_config: dict | PreTrainedConfig | None) -> str:
    """Model type of an image backbone's configuration; CLIP's if it is not set."""
    if isinstance(vision_config, PreTrainedConfig):
        return vision_config.model_type
    return (vision_config or {}).get("model_type", CLIP_VISION)


def image_size_of(vision_config: PreTrainedConfig) -> int:
    """Side in pixels of the images that a backbone was trained on; 224 if its configuration has no image size."""
    if vision_config.model_type == "siglip2_vision_model":
        return math.isqrt(vision_config.num_patches) * vision_config.patch_size
    size: Any = (getattr(vision_config, "pretrained_cfg", None) or {}).get("input_size")
    size = size[-1] if size else getattr(vision_config, "image_size", 224)
    return size if isinstance(size, int) else size[0]


__all__ = ["GMDFConfig"]
