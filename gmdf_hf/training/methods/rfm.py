"""`rfm`: representative forgery mining (RFM, Wang & Deng 2021), training on images whose telling places are erased."""

from __future__ import annotations

from dataclasses import replace

import torch
from accelerate import Accelerator
from torch import nn

from gmdf_hf.data.episodes import Episode
from gmdf_hf.training.methods.merged import Merged
from gmdf_hf.training.methods.method import Losses

BLOCKS = 3  # erased in each image
LARGEST = 120 / 224  # largest side of a block, as a share of the image's


def forgery_attention(model: nn.Module, episode: Episode, accelerator: Accelerator) -> torch.Tensor:
    """Forgery attention map ``max_channels |d (O_fake - O_real) / d image|``, shape `(B, H, W)`.

    The logits O are those of evaluation: no dropout, and running statistics that stay as they are.
    """
    training = model.training
    pixel_values = episode.pixel_values.detach().clone().requires_grad_()
    prompts = {} if episode.prompt_ids is None else {"prompt_ids": episode.prompt_ids}
    with accelerator.autocast():
        logits = model.eval()(pixel_values=pixel_values, **prompts).logits.float()
    model.train(training)
    difference = (logits[:, 1] - logits[:, 0]).sum()
    # A factor does not change the order of the places, and in half precision keeps small gradients from being 0.
    scaled = difference if accelerator.scaler is None else accelerator.scaler.scale(difference)
    return torch.autograd.grad(scaled, pixel_values)[0].abs().amax(1)


def blocks_to_erase(attention: torch.Tensor, chances: torch.Tensor) -> torch.Tensor:
    """Suspicious forgeries erasing: True where an image is erased, shape `(B, H, W)`.

    A block of random size covers the place of the largest attention that is not erased yet, at a random position in
    the block, and so on; it ends at the image's border.

    Args:
        attention: Forgery attention maps, shape `(B, H, W)`.
        chances: Random numbers in [0, 1) for height and width of each block and for the place's position in it, shape
            `(blocks, 4, B)`.
    """
    height, width = attention.shape[1:]
    rows = torch.arange(height, device=attention.device)
    columns = torch.arange(width, device=attention.device)
    erased = torch.zeros_like(attention, dtype=torch.bool)
    tallest, widest = (max(round(LARGEST * side), 1) for side in (height, width))
    for of_height, of_width, of_row, of_column in chances:
        places = attention.masked_fill(erased, -1.0).flatten(1).argmax(1)
        tall, wide = (of_height * tallest).floor() + 1, (of_width * widest).floor() + 1
        top = places // width - (of_row * tall).floor()
        left = places % width - (of_column * wide).floor()
        inside = (rows >= top[:, None]) & (rows < (top + tall)[:, None])
        across = (columns >= left[:, None]) & (columns < (left + wide)[:, None])
        erased |= inside[:, :, None] & across[:, None, :]
    return erased


class RFM(Merged):
    """RFM: the merged domains' loss on images of both classes, whose three most telling blocks are noise.

    Facts that the paper leaves open are those of the released code: 3 blocks of up to 120 of 224 pixels a side, in each
    image of each batch.

    Ours: a block always covers its place; the noise lies between each channel's lowest and highest value in the image,
    because normalisations differ between networks (there between a quarter and three quarters of all values); that
    code's lower bound of the loss, 0.04, is left out.

    Args:
        shares: Weight of each domain's mean loss, shape `(domains,)`.
    """

    def step(self, model: nn.Module, episode: Episode, accelerator: Accelerator) -> Losses:
        """`merged_step` on erased images."""
        attention = forgery_attention(model, episode, accelerator)
        images = episode.pixel_values
        chances = torch.rand(BLOCKS, 4, len(images)).to(images.device)
        erased = blocks_to_erase(attention, chances)[:, None]
        low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
        noise = low + (high - low) * torch.rand_like(images)
        return super().step(model, replace(episode, pixel_values=torch.where(erased, noise, images)), accelerator)
