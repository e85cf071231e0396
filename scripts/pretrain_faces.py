"""Pre-train a backbone's vision tower on the training faces of a recipe's source domains, without their labels.

python scripts/pretrain_faces.py --recipe scripts/recipes/real_faces.yaml --output runs/backbones/all

The output is a CLIP folder for `--backbone`: a common starting point for comparing methods on machines without a
web-trained CLIP. Three self-supervised tasks are trained jointly: the pixels of hidden patches, the strength of added
blur and noise, and the location of a pasted, degraded image region. It takes about 6 minutes on one core.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from pydantic import Field
from torch import nn
from torch.nn.functional import (
    affine_grid,
    avg_pool2d,
    binary_cross_entropy_with_logits,
    conv2d,
    grid_sample,
    interpolate,
    l1_loss,
    mse_loss,
    pad,
)
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel, get_cosine_schedule_with_warmup
from transformers.utils import logging as transformers_logging

from gmdf_hf.common.errors import DomainError, UserError, exit_on_error
from gmdf_hf.common.options import Options, parse_options
from gmdf_hf.data.dataset import Domain, load_domain
from gmdf_hf.data.frames import Draw, FrameReader, collate
from gmdf_hf.data.patches import draw_mask, patchify
from gmdf_hf.modeling import GMDFImageProcessor, GMDFModel
from gmdf_hf.training.config import TrainConfig, load_recipe
from gmdf_hf.training.setup import backbone_path, start_model

MASK_RATIO = 0.3
LARGEST_BLUR = 1.5  # standard deviation in pixels
STRONGEST_NOISE = 0.17  # standard deviation, in units of the normalised image
REACH = 4  # radius of the blur kernel in pixels


def blur(images: torch.Tensor, widths: torch.Tensor) -> torch.Tensor:
    """Blur each image of shape `(B, C, H, W)` with a Gaussian of its own standard deviation, `(B,)` in pixels."""
    offsets = torch.arange(-REACH, REACH + 1)
    weights = torch.exp(-0.5 * (offsets / widths[:, None].clamp(min=1e-3)) ** 2)
    weights = (weights / weights.sum(1, keepdim=True)).repeat_interleave(images.shape[1], 0)[:, None]
    rows = images.flatten(0, 1)[None]
    rows = conv2d(pad(rows, (REACH, REACH, 0, 0), mode="reflect"), weights[:, :, None], groups=len(weights))
    rows = conv2d(pad(rows, (0, 0, REACH, REACH), mode="reflect"), weights[:, :, :, None], groups=len(weights))
    return rows.view_as(images)


def worsen(images: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Blur half of the images, add noise to half, and change the brightness and colour of all.

    Args:
        images: Normalised, shape `(B, 3, H, W)`.
        generator: Source of randomness.

    Returns:
        Images of the same shape; and the strengths of blur and noise relative to their maximum, `(B, 2)`.
    """
    strengths = torch.rand(len(images), 2, generator=generator)
    strengths = strengths * (torch.rand(len(images), 2, generator=generator) < 0.5)
    images = blur(images, LARGEST_BLUR * strengths[:, 0])
    noise = torch.randn(images.shape, generator=generator)
    images = images + STRONGEST_NOISE * strengths[:, 1, None, None, None] * noise
    gain = 0.85 + 0.3 * torch.rand(len(images), 1, 1, 1, generator=generator)
    return gain * images + 0.43 * (torch.rand(len(images), 3, 1, 1, generator=generator) - 0.5), strengths


def move(images: torch.Tensor, amount: float, generator: torch.Generator) -> torch.Tensor:
    """Rotate, scale and shift each image by a random share of `amount` (radians, factor, half sides)."""
    turn, scale, *shift = (torch.rand(4, len(images), generator=generator) - 0.5) * amount
    cos, sin = (1 + scale) * turn.cos(), (1 + scale) * turn.sin()
    matrices = torch.stack([torch.stack([cos, -sin, shift[0]], 1), torch.stack([sin, cos, shift[1]], 1)], 1)
    grid = affine_grid(matrices, list(images.shape), align_corners=False)
    return grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def draw_regions(count: int, side: int, generator: torch.Generator) -> torch.Tensor:
    """Soft regions of random place, size and outline, shape `(count, 1, side, side)`, 1 inside and 0 outside."""
    axis = torch.linspace(-1, 1, side)
    centre = 0.8 * (torch.rand(count, 2, 1, 1, generator=generator) - 0.5)
    radius = 0.25 + 0.5 * torch.rand(count, 2, 1, 1, generator=generator)
    distance = ((axis - centre[:, :1]) / radius[:, :1]) ** 2 + ((axis[:, None] - centre[:, 1:]) / radius[:, 1:]) ** 2
    bumps = interpolate(torch.randn(count, 1, 5, 5, generator=generator), size=(side, side), mode="bicubic")
    inside = (1 - distance + 0.35 * bumps > 0).float()
    return blur(inside, 0.3 + torch.rand(count, generator=generator) * side / 24)


def paste(images: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Paste a moved and degraded region of another image, or of the image itself, into about half of the images.

    Args:
        images: Normalised, shape `(B, 3, H, W)`.
        generator: Source of randomness.

    Returns:
        Images of the same shape; and the pasted fraction of each pixel, `(B, 1, H, W)`.
    """
    count = len(images)

    def some(share: float) -> torch.Tensor:
        return torch.rand(count, 1, 1, 1, generator=generator) < share

    pieces = torch.where(some(0.5), images[torch.randperm(count, generator=generator)], images)
    pieces, _ = worsen(move(pieces, 0.12, generator), generator)
    own, theirs = ([image.mean((2, 3), keepdim=True), image.std((2, 3), keepdim=True)] for image in (images, pieces))
    recoloured = (pieces - theirs[0]) / (theirs[1] + 1e-2) * own[1] + own[0]
    pieces = torch.where(some(0.6), recoloured, pieces)
    opacity = some(0.6) * (0.5 + 0.5 * torch.rand(count, 1, 1, 1, generator=generator))
    share = opacity * draw_regions(count, images.shape[-1], generator)
    return images + share * (pieces - images), share


class Pretraining(nn.Module):
    """A detector's vision tower with temporary heads for the three tasks.

    Args:
        model: A detector made from the backbone, with experts at zero effect.
    """

    def __init__(self, model: GMDFModel):
        super().__init__()
        self.model = model
        width = model.config.vision.hidden_size
        self.pasted_patch, self.pasted_image = nn.Linear(width, 1), nn.Linear(width, 1)
        self.quality = nn.Linear(width, 2)

    def forward(self, images: torch.Tensor, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Losses on normalised faces of shape `(B, 3, H, W)`."""
        side = self.model.config.vision.patch_size
        with torch.no_grad():
            images, strengths = worsen(move(images, 0.1, generator), generator)
            images, share = paste(images, generator)
        hidden = draw_mask(len(images), images.shape[-1] // side, MASK_RATIO, generator=generator)
        vision = self.model.vision_model(
            images,
            domain_prompts=self.model.domain_prompts,
            bool_masked_pos=hidden,
            mask_token=self.model.mim_head.mask_token,
            domain_ids=torch.zeros(len(images), dtype=torch.long),
        )
        patches, face = vision.last_hidden_state[:, 1:], vision.pooler_output
        _, pixels = self.model.mim_head(patches[hidden])
        of_patch, of_image = avg_pool2d(share, side).flatten(1), (share.amax((1, 2, 3)) > 0.3).float()
        return {
            "hidden_patches": l1_loss(pixels.float(), patchify(images, side)[hidden]),
            "quality": mse_loss(self.quality(face).float(), strengths),
            "pasted_patch": binary_cross_entropy_with_logits(self.pasted_patch(patches)[..., 0].float(), of_patch),
            "pasted_image": 0.5 * binary_cross_entropy_with_logits(self.pasted_image(face)[..., 0].float(), of_image),
        }


def endless_faces(
    domains: Sequence[Domain], processor: GMDFImageProcessor, batch_size: int, seed: int, unread: set[str]
) -> Iterator[torch.Tensor]:
    """Endless batches of faces of all domains, shuffled per epoch; reasons for skipped frames go to `unread`."""
    order = torch.Generator().manual_seed(seed)
    frames = [(index, row) for index, domain in enumerate(domains) for row in range(len(domain))]
    while True:
        shuffled = [frames[place] for place in torch.randperm(len(frames), generator=order).tolist()]
        mirrored = torch.randint(2, (len(frames),), generator=order).tolist()
        draws = [Draw(domain, row, chance) for (domain, row), chance in zip(shuffled, mirrored, strict=True)]
        reader = FrameReader(domains, processor)
        whole, readable = len(draws) >= batch_size, False
        for batch in DataLoader(reader, batch_size, sampler=draws, collate_fn=collate, drop_last=whole):
            unread |= {item.reason for item in batch["skipped"]}
            if "pixel_values" in batch:
                readable = True
                yield batch["pixel_values"]
        if not readable:  # otherwise the loop would not end
            raise DomainError(f"None of the {len(frames)} faces can be read; one of the reasons: {min(unread)}")


def pretrain(
    config: TrainConfig, output: Path, steps: int = 700, batch_size: int = 128, learning_rate: float = 1e-3
) -> None:
    """Pre-train and write a copy of the backbone's CLIP folder with a new vision tower.

    Args:
        config: Recipe with domains, backbone, image size and seed.
        output: Folder to write.
        steps: Number of optimizer steps.
        batch_size: Faces in a step.
        learning_rate: Peak of a schedule with warm-up and cosine decay.

    Raises:
        UserError: If the backbone cannot be used, or its image size differs from the recipe's.
        DomainError: If a domain cannot be used or no face can be read.
    """
    torch.manual_seed(config.seed)
    small = {"expert_bottleneck_size": 1, "codebook_size": 1, "attn_implementation": "eager"}
    model = start_model(config.backbone, ["faces"], small)
    own = model.config.image_size
    if config.image_size not in (None, own):
        raise UserError(f"Pre-training keeps the backbone's image_size of {own}, found {config.image_size}.")
    domains = [load_domain(name, "train", **source.model_dump()) for name, source in config.train_domains.items()]
    processor = GMDFImageProcessor.of_size(own)
    unread: set[str] = set()
    task = Pretraining(model)
    parameters = [parameter for parameter in task.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, learning_rate, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = get_cosine_schedule_with_warmup(optimizer, steps // 15, steps)
    generator = torch.Generator().manual_seed(config.seed)
    task.train()
    with tqdm(total=steps, unit="it", desc="pre-training") as bar:
        faces = endless_faces(domains, processor, batch_size, config.seed, unread)
        for images, _ in zip(faces, range(steps), strict=False):
            with torch.autocast("cpu", torch.bfloat16):  # almost twice as fast on a CPU with bfloat16 units
                losses = task(images, generator)
            sum(losses.values()).backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            bar.update()
            bar.set_postfix({name: f"{loss.item():.3f}" for name, loss in losses.items()})
    path = backbone_path(config.backbone)
    clip = CLIPModel.from_pretrained(path)
    tower = {name: value for name, value in model.state_dict().items() if name in clip.state_dict()}
    clip.load_state_dict(tower)
    parts = clip, AutoTokenizer.from_pretrained(path), AutoImageProcessor.from_pretrained(path)
    output.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=output) as folder:
        for part in parts:
            part.save_pretrained(folder)
        # config.json is written last: a folder that has it is complete, even if a run was killed. Other files stay.
        for file in sorted(Path(folder).iterdir(), key=lambda file: file.name == "config.json"):
            file.replace(output / file.name)
    for reason in sorted(unread):
        print(f"left out: {reason}", file=sys.stderr)


class PretrainOptions(Options):
    """Whose faces to train on, and how."""

    recipe: Path = Field(description="Recipe whose source domains, backbone and seed to take.")
    hold_out: tuple[str, ...] = Field((), description="Source domains whose faces must not be seen.")
    output: Path = Field(description="CLIP folder to write.")
    steps: int = Field(700, ge=1, description="Optimizer steps.")
    batch_size: int = Field(128, ge=1, description="Faces in a step.")
    learning_rate: float = Field(1e-3, gt=0, description="Peak of the schedule.")


def main(arguments: list[str] | None = None) -> None:
    """Read the command line and train."""
    options = parse_options(PretrainOptions, arguments, __doc__)
    config = load_recipe(options.recipe, {"hold_out": list(options.hold_out), "method": "direct_merge"})
    pretrain(config, options.output, options.steps, options.batch_size, options.learning_rate)


if __name__ == "__main__":
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    with exit_on_error("pretrain_faces.py"):
        main()
