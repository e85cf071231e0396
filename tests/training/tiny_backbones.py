"""Checkpoints of tiny classifiers with random weights, and short runs that start from them."""

from pathlib import Path

import torch
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    ConvNextImageProcessor,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from gmdf_hf.training.config import TrainConfig
from tests.domains import write_domain

VIT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "image_size": 32, "patch_size": 8}  # noqa: E501  # fmt: skip
CONVNEXT = {"hidden_sizes": [8, 8], "depths": [1, 1], "num_stages": 2}
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 8], "depths": [1, 1], "layer_type": "basic"}
SQUARE, SHORTEST = {"height": 32, "width": 32}, {"shortest_edge": 32}
BACKBONES = {
    "vit": (ViTForImageClassification, ViTConfig(**VIT, num_labels=5), ViTImageProcessor(size=SQUARE)),
    "convnext": (
        ConvNextForImageClassification,
        ConvNextConfig(**CONVNEXT, num_labels=2),
        ConvNextImageProcessor(size=SHORTEST),
    ),
    "resnet": (
        ResNetForImageClassification,
        ResNetConfig(**RESNET, num_labels=2),
        ConvNextImageProcessor(size=SHORTEST),
    ),
}


def save_backbone(kind: str, folder: Path) -> str:
    """Save a random checkpoint of that kind with its image processor."""
    model_class, config, processor = BACKBONES[kind]
    torch.manual_seed(0)
    model_class(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def miniature(tmp_path: Path, kind: str, **fields) -> TrainConfig:
    """Configuration of four iterations on two domains of noise, with a checkpoint after two."""
    for seed, name in enumerate("xyz"):
        if not (tmp_path / name).exists():
            write_domain(tmp_path / name, seed)
    settings = {
        "source_domains": {name: str(tmp_path / name) for name in "xy"},
        "unseen_domains": {"z": str(tmp_path / "z")},
        "backbone": save_backbone(kind, tmp_path / kind),
        "method": "direct_merge",
        "model": {"codebook_size": 16},  # a field of GM-DF, without effect here
        "epochs": 1,
        "steps_per_epoch": 4,
        "save_steps": 2,
        "batch_size": 4,
        "learning_rate": 1e-3,
        "output_dir": tmp_path / "run",
    }
    return TrainConfig(**settings | fields)
