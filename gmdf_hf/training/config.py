"""Frozen configuration of a run, read from a recipe file and the command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from gmdf_hf.common.errors import UserError
from gmdf_hf.common.options import add_yaml_options, first_problem
from gmdf_hf.common.schema import check_name
from gmdf_hf.training.domain_source import DomainSource

# Methods that train an image classifier or a GM-DF, and those that need a GM-DF.
OwnTowerMethod = Literal["linear_probe", "gend", "effort", "lora"]  # they choose what trains in the tower
ClassifierMethod = Literal["direct_merge", "balanced_erm", "ltw", "dcl", "rfm", OwnTowerMethod]
MethodName = Literal["gmdf", "merged_losses", "mldg", "add_domain", ClassifierMethod]
# Fields of GMDFConfig that a recipe may set; the others are derived from backbone and domains.
MODEL_FIELDS = (
    "dil",
    "expert_bottleneck_size",
    "prompt_size",
    "num_prompt_tokens",
    "aggregation",
    "expert_scale",
    "prompt",
    "mask_ratio",
    "mask_strategy",
    "codebook_size",
    "projection_dim",
    "freeze_batch_norm",
)


class TrainConfig(BaseModel):
    """Configuration of `scripts/meta_train.py`; defaults follow section 5.1 of the paper where given (decision D13)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source_domains: dict[str, DomainSource] = Field(description="Domains to train on, by name.")
    unseen_domains: dict[str, DomainSource] = Field({}, description="Domains to score once, after training.")
    hold_out: tuple[str, ...] = Field((), description="Source domains to treat as unseen instead.")
    backbone: str = Field(
        "openai/clip-vit-base-patch16",
        description="Hub id or folder of a CLIP checkpoint; `tiny_clip` is the one in this package. Or of another "
        "image backbone of transformers, timm's included: its own configuration says what it is. Or a detector of the "
        "paper's tables by its name, such as `xception` (docs/detectors.md).",
    )
    image_size: int | None = Field(
        None, ge=8, description="Side of the images in pixels, if other than the backbone's."
    )
    model: dict[str, Any] = Field({}, description="Fields of `GMDFConfig` to set; not used by other image classifiers.")
    detector: dict[str, Any] = Field(
        {},
        description="Fields of the configuration of a detector that `backbone` names; besides, `pretrained`: hub id or "
        "folder of safetensors weights for the network inside it.",
    )
    method: MethodName = Field(
        "gmdf",
        description="`gmdf`; a baseline on the same CLIP, `merged_losses` or `mldg`; what an image classifier can have "
        "too: `direct_merge`, `balanced_erm`, `linear_probe` and systems of other papers (docs/detectors.md); or "
        "`add_domain`: the backbone is a trained detector, which learns one more domain, all it knew being untouched.",
    )
    baseline_model: Literal["classifier", "gmdf"] = Field(
        "classifier",
        description="What the methods of any classifier train on a backbone other than CLIP: its own `classifier`, "
        "or a `gmdf` whose experts stay at zero effect, as on CLIP.",
    )
    lora: dict[str, Any] = Field(
        {}, description="Fields of PEFT's `LoraConfig` for the method `lora`, such as `{r: 8, lora_alpha: 16}`."
    )
    epochs: int = Field(40, ge=1, description="Passes over the videos of the largest domain.")
    max_steps: int | None = Field(None, ge=1, description="Stop after so many meta-iterations.")
    batch_size: int = Field(
        32, ge=2, multiple_of=2, description="Images of each domain in a meta-iteration, half of them real."
    )
    learning_rate: float = Field(3e-6, gt=0, description="Step size delta of theta_O (Adam).")
    inner_optimizer: Literal["adam", "sgd"] = Field(
        "adam",
        description="Optimizer of theta_E: `adam` with moments for each domain, or `sgd`, plain descent as in Eq. 10, "
        "which `second_order` needs (decision D17).",
    )
    inner_learning_rate: float = Field(3e-4, gt=0, description="Step size beta of theta_E (Eq. 10).")
    inner_max_grad_norm: float | None = Field(
        1.0, gt=0, description="Shrink each domain's gradient of theta_E to at most this norm."
    )
    mldg_learning_rate: float = Field(
        1e-2,
        gt=0,
        description="Step size alpha of `mldg`'s and `ltw`'s step on the meta-train domains (plain descent).",
    )
    train_tower: Literal["all", "layer_norms", "none"] = Field(
        "all",
        description="What theta_O holds of the vision tower: `all`, its `layer_norms`, or `none` of it, which leaves "
        "the projection, the temperature and the masked-image head. Fewer weights want a larger `learning_rate`.",
    )
    alignment_weight: float = Field(1.0, ge=0, description="Weight of L_sis in Eq. 11.")
    alignment_queue: int = Field(
        512, ge=0, description="Images of a domain whose features L_sis compares, those of past batches included (D18)."
    )
    mim_weight: float = Field(1.0, ge=0, description="Weight of L_mim in Eq. 11.")
    source_weight: float = Field(
        0.0,
        ge=0,
        description="Weight of the source domains' loss, on the aggregated route, in the objective of theta_O "
        "(decision D16).",
    )
    meta_gradient: Literal["first_order", "second_order"] = Field(
        "first_order",
        description="`first_order`, or `second_order`: theta_O's gradient goes through Eq. 10, as in MAML (D9).",
    )
    outer_experts: Literal["source", "all"] = Field(
        "source",
        description="Experts used on the meta-test batch: those of the `source` domains (decision D3), or `all`.",
    )
    align_gradient: Literal["target", "both"] = Field(
        "target", description="Which features L_sis trains: `target`, or `both` (decision D12)."
    )
    image_tokenizer: str = Field(
        "train",
        description="Visual codes for L_mim: `train` one on the training crops, a folder with a trained one, or "
        "`dalle`, the published codebook.",
    )
    image_tokenizer_steps: int = Field(1000, ge=1, description="Steps of that training.")
    max_grad_norm: float | None = Field(None, gt=0, description="Shrink the gradient of theta_O to at most this norm.")
    lr_scheduler: Literal[
        "constant", "linear", "cosine", "cosine_with_restarts", "polynomial", "constant_with_warmup", "inverse_sqrt"
    ] = Field(
        "constant",
        description="Schedule of `learning_rate`, named as in transformers: `constant`, `linear`, `cosine` and so on.",
    )
    warmup_steps: int = Field(0, ge=0, description="Meta-iterations over which `learning_rate` rises from 0.")
    mixed_precision: Literal["no", "bf16", "fp16", "auto"] = Field(
        "no",
        description="Precision of training, validation and test: `no`, `bf16`, `fp16`, or `auto`: bf16 on a GPU or CPU "
        "with units for it, fp16 on older CUDA cards, else no.",
    )
    gradient_checkpointing: bool = Field(
        False, description="Recompute activations in the backward pass: less memory, more time."
    )
    attn_implementation: str = Field(
        "sdpa", description="Attention of transformers: `sdpa`, `eager`, `flash_attention_2`."
    )
    torch_compile: bool = Field(False, description="Compile the model with `torch.compile`.")
    streaming: bool = Field(
        False, description="Read the training splits as streams: nothing is downloaded first. Needs `steps_per_epoch`."
    )
    steps_per_epoch: int | None = Field(
        None,
        ge=1,
        description="Meta-iterations that count as an epoch, if other than all videos of the largest domain.",
    )
    augment: Literal["none", "standard"] = Field(
        "none",
        description="Random changes of training pictures besides mirroring: `none`, as in the paper, or `standard`: "
        "light, blur, scale, noise and JPEG (`gmdf_hf/data/transforms.py`).",
    )
    self_blended: bool = Field(
        False,
        description="Train on self-blended images of the reals (SBI) in place of fakes; not in validation and test.",
    )
    seed: int = Field(0, ge=0, description="Random seed of initialisation, order, masks and flips.")
    num_workers: int = Field(0, ge=0, description="Processes that decode images.")
    output_dir: Path = Field(Path("runs/gmdf"), description="Folder of the run.")
    resume: bool = Field(False, description="Go on from the last checkpoint in `output_dir`, if there is one.")
    save_steps: int | None = Field(
        None, ge=1, description="Meta-iterations between checkpoints; besides, there is one at the end of every epoch."
    )
    keep: int = Field(2, ge=1, description="Checkpoints to keep.")
    save_slim: bool = Field(
        True, description="Leave text tower and masked-image head out of the saved model (not with prompt P3)."
    )
    push_to_hub: str | None = Field(
        None, description="Hub repository `user/name` to publish the finished run to; a new one is private."
    )
    report_to: str | None = Field(None, description="Tracker of accelerate, such as `tensorboard`.")

    @field_validator("model")
    @classmethod
    def _check_model_fields(cls, value: dict[str, Any]) -> dict[str, Any]:
        unknown = sorted(set(value) - set(MODEL_FIELDS))
        if unknown:
            raise ValueError(f"unknown key {unknown[0]!r}; a recipe can set {', '.join(MODEL_FIELDS)}")
        if not value:
            return value
        from gmdf_hf.modeling import GMDFConfig  # imports transformers, which takes seconds; `--help` does not need it

        try:
            GMDFConfig(**value)
        except Exception as error:  # strict dataclasses raise several error types of their own
            raise ValueError(str(error).splitlines()[-1].strip()) from error
        return value

    @field_validator("mixed_precision", mode="before")
    @classmethod
    def _accept_the_no_of_yaml(cls, value: Any) -> Any:
        return "no" if value is False else value

    @field_validator("push_to_hub")
    @classmethod
    def _check_repository(cls, value: str | None) -> str | None:
        # Checked before training, not after it.
        if value is not None:
            from huggingface_hub.utils import validate_repo_id  # slow to import

            validate_repo_id(value)
            if value.count("/") != 1:
                raise ValueError(f"expected a repository user/name, found {value!r}")
        return value

    @field_validator("hold_out", mode="before")
    @classmethod
    def _accept_one_name(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check_domains(self) -> TrainConfig:
        for name in (*self.source_domains, *self.unseen_domains):
            check_name(name)
        for name in self.hold_out:
            if name not in self.source_domains:
                raise ValueError(f"hold_out names {name!r}; the source domains are {', '.join(self.source_domains)}")
        if twice := sorted(set(self.source_domains) & set(self.unseen_domains)):
            raise ValueError(f"{twice[0]!r} is both a source and an unseen domain")
        found = f"found {len(self.train_domains)}: {', '.join(self.train_domains) or 'none'}"
        if self.method == "add_domain":
            if len(self.train_domains) != 1:
                raise ValueError(f"add_domain trains exactly one source domain, {found}")
        elif len(self.train_domains) < (2 if self.method in ("gmdf", "merged_losses", "mldg", "ltw") else 1):
            raise ValueError(f"training needs at least two source domains, {found}")
        return self

    @model_validator(mode="after")
    def _check_what_excludes_each_other(self) -> TrainConfig:
        if self.warmup_steps and self.lr_scheduler == "constant":
            raise ValueError("warmup_steps needs another lr_scheduler than constant: constant_with_warmup, for example")
        if self.train_tower != "all" and self.method in (*get_args(OwnTowerMethod), "add_domain"):
            raise ValueError(f"train_tower has no effect with {self.method}, which has its own choice of what trains")
        if self.streaming and self.method == "gend":
            raise ValueError("gend trains on pairs of one group, which a stream cannot look up: leave streaming out")
        if self.streaming and self.steps_per_epoch is None:
            raise ValueError("streaming needs steps_per_epoch, because the length of a stream is unknown")
        if self.meta_gradient == "second_order" and self.inner_optimizer != "sgd":
            raise ValueError(
                f"second_order differentiates Eq. 10 as it is written: it needs inner_optimizer sgd, found "
                f"{self.inner_optimizer!r}"
            )
        if (twice := self.method if self.method == "ltw" else self.meta_gradient) != "first_order":
            # Each of these silently gives a wrong gradient, or has no second derivative.
            if self.gradient_checkpointing:
                raise ValueError(f"{twice} does not work with gradient_checkpointing: the gradient would be wrong")
            if self.torch_compile:
                raise ValueError(f"{twice} does not work with torch_compile, which has no double backward")
            if (attention := self.attn_implementation) not in ("sdpa", "eager"):
                raise ValueError(
                    f"{twice} needs attn_implementation sdpa or eager, found {attention!r} without double backward"
                )
        return self

    @property
    def train_domains(self) -> dict[str, DomainSource]:
        """Source domains that are not held out."""
        return {name: source for name, source in self.source_domains.items() if name not in self.hold_out}

    @property
    def test_only_domains(self) -> dict[str, DomainSource]:
        """Unseen domains, the held-out ones first."""
        return {name: self.source_domains[name] for name in self.hold_out} | self.unseen_domains


def load_recipe(path: Path, overrides: dict[str, Any]) -> TrainConfig:
    """Read a recipe and override its fields with the command line's values.

    Args:
        path: YAML file with fields of `TrainConfig`.
        overrides: Fields that replace the file's.

    Raises:
        UserError: If the file cannot be read, or a field is unknown or out of range.
    """
    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise UserError(f"The recipe {path} cannot be read: {error.strerror}.") from error
    except yaml.YAMLError as error:
        raise UserError(f"The recipe {path} is not YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(fields, dict):
        raise UserError(f"The recipe {path} must be a mapping of fields, found {type(fields).__name__}.")
    try:
        return TrainConfig(**fields | overrides)
    except ValidationError as error:
        first, reason = error.errors()[0], first_problem(error)
        if first["type"] == "extra_forbidden":
            known = TrainConfig if len(first["loc"]) == 1 else DomainSource
            reason = f"{'.'.join(map(str, first['loc']))}: unknown key; known are {', '.join(known.model_fields)}"
        raise UserError(f"{path}: {reason}.") from error


def parse_command_line(
    arguments: Sequence[str] | None, description: str | None, default_recipe: Path, program: str | None = None
) -> TrainConfig:
    """Make a `TrainConfig` from `--recipe FILE` and one option per field; values are parsed as YAML.

    A bare name, such as `paper`, is a recipe in the folder of the default one, which the package includes.

    Raises:
        UserError: As `load_recipe`.
    """
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(program, description=description, formatter_class=form, allow_abbrev=False)
    parser.add_argument("--recipe", type=Path, default=default_recipe, help=f"YAML file (default: {default_recipe})")
    add_yaml_options(parser, TrainConfig, yaml.safe_load)
    recipe = (overrides := vars(parser.parse_args(arguments))).pop("recipe")
    if len(recipe.parts) == 1 and not recipe.suffix and not recipe.exists():
        recipe = default_recipe.with_name(f"{recipe}.yaml")
    return load_recipe(recipe, overrides)
