"""What the weights of GM-DF need to be rebuilt."""

import re
from collections.abc import Sequence
from typing import Any, cast

import transformers
from packaging.version import Version

# Both bounds are hard, because modules of transformers are used that any minor version may change. They are checked
# here, in the file that is loaded first, before an import below fails with a reason of its own.
TRANSFORMERS = ("5.20", "5.25")  # first version that works, first one that was not tested
if not Version(TRANSFORMERS[0]) <= Version(transformers.__version__) < Version(TRANSFORMERS[1]):
    needed = f"transformers>={TRANSFORMERS[0]},<{TRANSFORMERS[1]}"
    raise ImportError(f"GM-DF needs {needed}, found {transformers.__version__}: pip install '{needed}'")

from huggingface_hub.dataclasses import strict  # noqa: E402
from transformers import (  # noqa: E402
    CLIPConfig,
    CLIPTextConfig,
    CLIPVisionConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.configuration_utils import SubConfigSpec  # noqa: E402

DIL_VARIANTS = ("affine", "affine_bias", "cross_attention")
AGGREGATIONS = ("sum", "mean")
MASK_STRATEGIES = ("random", "block")
EXPERT_SCALE = 64.0  # of new detectors; docs/evidence.md has what other values gave

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
        vision_config: CLIP vision tower, as a `CLIPVisionConfig` or a dict of its fields.
        text_config: CLIP text tower, as a `CLIPTextConfig` or a dict of its fields.
        projection_dim: Width P of the space image and text share.
        logit_scale_init_value: Start of the learned log temperature, as in CLIP.
        initializer_factor: Factor on the spread of randomly initialised CLIP weights, as in CLIP.
        domains: Names of the source domains, in the order of their experts.
        dil: Variant of the Dataset Information Layer (Table 9): `affine`, `affine_bias` or `cross_attention`.
        expert_bottleneck_size: Width R inside an expert.
        prompt_size: Numbers M in a domain's prompt vector.
        num_prompt_tokens: Tokens the prompt vector is cut into; read by `cross_attention` alone.
        expert_scale: Constant factor on every expert's output (decision D17). `from_clip` starts with 64; checkpoints
            that do not say were trained with 1.
        text_shift_scale: Constant factor on the text affine's shift: `from_clip` sets one over the temperature.
        aggregation: Reduction over the experts' views of an image whose domain is not known: `sum` or `mean`.
        prompt: Template of the class sentences, P1 to P7 (Table 6).
        prompt_ids: Token ids of the real and of the fake sentence, `(2, length)`.
        mask_ratio: Share of the patches that masked-image modelling hides, in (0, 1).
        mask_strategy: `random` patches or `block`-wise.
        codebook_size: Codes T that the masked-image head tells apart.
        threshold: Probability of fake from which a face is called fake; training sets it to the one chosen on the
            source domains' validation videos.
        expert_effect: Share of the decision that `experts` and `text` affine make on images of `known` and `unknown`
            domains, as training measured it; None where it did not.
        slim: Whether text tower and masked-image head are left out: what classification does not need.

    Raises:
        StrictDataclassError: If a field has the wrong type or is out of range.
    """

    model_type = "gmdf"
    keys_to_ignore_at_inference = [  # noqa: RUF012  `Trainer` then hands logits alone to `compute_metrics`
        "image_embeds",
        "text_embeds",
        "mim_code_logits",
        "mim_pixels",
        "hidden_states",
        "attentions",
        "expert_weights",
    ]
    sub_configs_defaults = {  # noqa: RUF012
        "vision_config": SubConfigSpec(CLIPVisionConfig),
        "text_config": SubConfigSpec(CLIPTextConfig),
    }

    vision_config: dict | CLIPVisionConfig | None = None
    text_config: dict | CLIPTextConfig | None = None
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
    expert_effect: dict[str, dict[str, float]] | None = None
    slim: bool = False

    def __post_init__(self, **kwargs):
        if self.id2label is None and kwargs.get("num_labels", 2) == 2:
            self.id2label = {0: "real", 1: "fake"}
        if self.label2id is None and self.id2label is not None:
            self.label2id = {label: int(number) for number, label in self.id2label.items()}
        if not type(self).__module__.startswith("transformers_modules."):
            # The package registers its own pipeline, which needs no trust in a saved folder's.
            kwargs.pop("custom_pipelines", None)
        super().__post_init__(**kwargs)  # turns the sub-configs into objects
        self.domains = list(self.domains)
        if self.prompt_ids is None:
            # Two sentences that differ, for a model made without a tokenizer: start, word, end.
            start, end = self.text.bos_token_id, self.text.eos_token_id
            self.prompt_ids = [[cast(int, start), word, cast(int, end)] for word in (0, 1)]

    def validate_architecture(self):
        """Check the fields against each other (called by `strict`)."""
        if not self.domains or len(set(self.domains)) != len(self.domains) or not all(self.domains):
            raise ValueError(f"`domains` must be distinct names, at least one, found {self.domains}.")
        for name in self.domains:
            # Names become parts of file names and pages.
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
        labels, rows = self.id2label or {}, self.prompt_ids or []
        if len(labels) != 2:
            raise ValueError(f"GM-DF has two classes, real and fake; found {len(labels)} labels.")
        if len(rows) != 2 or len({len(ids) for ids in rows}) != 1:
            raise ValueError(f"`prompt_ids` must be two rows of equal length, found {rows}.")
        if rows[0] == rows[1]:
            raise ValueError(
                f"`prompt_ids` must be two different sentences, one of real and one of fake; both are "
                f"{rows[0]}: every image would get the probability 0.5."
            )
        vocab_size = self.text.vocab_size
        if not all(0 <= token < vocab_size for row in rows for token in row):
            raise ValueError(f"`prompt_ids` must lie in [0, {vocab_size}), found {rows}.")

    @classmethod
    def from_clip(cls, clip: CLIPConfig, domains: Sequence[str], **fields) -> "GMDFConfig":
        """Configuration of a detector that starts as a given CLIP; `fields` are those of this class."""
        start: dict[str, Any] = {
            "projection_dim": clip.projection_dim,
            "logit_scale_init_value": clip.logit_scale_init_value,
            "expert_scale": EXPERT_SCALE,
        }
        vision, text = cast(CLIPVisionConfig, clip.vision_config), cast(CLIPTextConfig, clip.text_config)
        start |= {"vision_config": vision.to_dict(), "text_config": text.to_dict(), "domains": list(domains)}
        return cls(**start | fields)

    def set_prompts(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Fill `prompt_ids` with the template's sentences; P3's without a caption, for those come with a batch."""
        sentences = [text.replace("{caption} ", "") for text in PROMPT_TEMPLATES[self.prompt]]
        self.prompt_ids = tokenizer(sentences, padding=True)["input_ids"]
        self.validate_architecture()

    @property
    def vision(self) -> CLIPVisionConfig:
        """`vision_config` as the object that every instance holds."""
        return cast(CLIPVisionConfig, self.vision_config)

    @property
    def text(self) -> CLIPTextConfig:
        """`text_config` as the object that every instance holds."""
        return cast(CLIPTextConfig, self.text_config)

    @property
    def image_size(self) -> int:
        """Side of the images in pixels."""
        return cast(int, self.vision.image_size)

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return cast(int, self.vision.patch_size)

    @property
    def num_experts(self) -> int:
        """Number of source domains E."""
        return len(self.domains)


__all__ = ["GMDFConfig"]
