"""Visual codes of patches, the targets of masked-image modelling; not part of a published detector (decision D7)."""

import math
from dataclasses import dataclass

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from torch.nn.functional import gumbel_softmax, interpolate, mse_loss, pixel_shuffle, pixel_unshuffle
from transformers import FlavaImageCodebook, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.utils import ModelOutput


@strict
class GMDFImageTokenizerConfig(PreTrainedConfig):
    """Configuration of a [`GMDFImageTokenizer`].

    Args:
        image_size: Side of the images in pixels.
        patch_size: Side of a patch in pixels; one code per patch.
        hidden_size: Channels of encoder and decoder.
        codebook_size: Number of codes T.
    """

    model_type = "gmdf_image_tokenizer"
    image_size: int = 224
    patch_size: int = 16
    hidden_size: int = 64
    codebook_size: int = 512

    def validate_architecture(self):
        """Check the fields against each other (called by `strict`)."""
        if self.image_size % self.patch_size:
            raise ValueError(
                f"`image_size` must be a multiple of `patch_size`, found {self.image_size} and {self.patch_size}."
            )


@dataclass
class GMDFImageTokenizerOutput(ModelOutput):
    """Losses and reconstruction of a `GMDFImageTokenizer`.

    Attributes:
        loss: ``reconstruction_loss + kl_weight * KL``, a scalar.
        reconstruction_loss: Mean squared error of the normalised pixels, a scalar.
        reconstruction: Images decoded from relaxed codes, shape `(B, 3, H, W)`.
    """

    loss: torch.Tensor | None = None
    reconstruction_loss: torch.Tensor | None = None
    reconstruction: torch.Tensor | None = None


class ResidualConv(nn.Module):
    """Two 3x3 convolutions over the grid of patches with a skip connection."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.conv1 = nn.Conv2d(hidden_size, hidden_size, 3, padding=1)
        self.conv2 = nn.Conv2d(hidden_size, hidden_size, 3, padding=1)

    def forward(self, grid: torch.Tensor) -> torch.Tensor:
        """Map `(B, hidden, h, w)` to the same shape."""
        return grid + self.conv2(nn.functional.gelu(self.conv1(nn.functional.gelu(grid))))


class GMDFImageTokenizer(PreTrainedModel):
    """Gumbel-Softmax variational autoencoder that encodes each patch as one of T codes (section 3.3).

    Args:
        config: See `GMDFImageTokenizerConfig`.
    """

    config: GMDFImageTokenizerConfig
    main_input_name = "pixel_values"

    def __init__(self, config: GMDFImageTokenizerConfig):
        super().__init__(config)
        pixels, width = 3 * config.patch_size**2, config.hidden_size
        self.encoder = nn.Sequential(nn.Conv2d(pixels, width, 1), ResidualConv(width), ResidualConv(width))
        self.code_classifier = nn.Conv2d(width, config.codebook_size, 1)
        self.codebook = nn.Conv2d(config.codebook_size, width, 1, bias=False)
        self.decoder = nn.Sequential(ResidualConv(width), ResidualConv(width), nn.Conv2d(width, pixels, 1))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d):
            fan_in = module.in_channels * math.prod(module.kernel_size)
            init.normal_(module.weight, std=fan_in**-0.5)
        if isinstance(module, GMDFImageTokenizer):
            init.normal_(module.codebook.weight, std=1.0)  # a code selects one column: unit deviation for any T

    def code_logits(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Scores of the codes, shape `(B, T, h, w)`, for normalised images `(B, 3, H, W)`."""
        return self.code_classifier(self.encoder(pixel_unshuffle(pixel_values, self.config.patch_size)))

    @torch.no_grad()
    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Most probable code of each patch, shape `(B, patches)`, in row-major order."""
        return self.code_logits(pixel_values).argmax(1).flatten(1)

    def forward(
        self, pixel_values: torch.Tensor, temperature: float = 1.0, kl_weight: float = 0.0
    ) -> GMDFImageTokenizerOutput:
        """Encode, draw relaxed codes, decode.

        Args:
            pixel_values: Normalised images, shape `(B, 3, H, W)`.
            temperature: Of the Gumbel-Softmax; a low value approaches a one-hot code.
            kl_weight: Weight of the divergence of the code distribution from the uniform one.

        Returns:
            See `GMDFImageTokenizerOutput`.

        Raises:
            ValueError: If the images are not of the configured size.
        """
        size = self.config.image_size
        if tuple(pixel_values.shape[1:]) != (3, size, size):
            raise ValueError(
                f"`pixel_values` must have shape (batch, 3, {size}, {size}), found {tuple(pixel_values.shape)}."
            )
        logits = self.code_logits(pixel_values)
        codes = gumbel_softmax(logits, tau=temperature, dim=1)
        reconstruction = pixel_shuffle(self.decoder(self.codebook(codes)), self.config.patch_size)
        reconstruction_loss = mse_loss(reconstruction, pixel_values)
        log_q = logits.log_softmax(1)
        divergence = (log_q.exp() * log_q).sum(1).mean() + math.log(self.config.codebook_size)
        return GMDFImageTokenizerOutput(
            loss=reconstruction_loss + kl_weight * divergence,
            reconstruction_loss=reconstruction_loss,
            reconstruction=reconstruction,
        )


class DalleImageTokenizer(nn.Module):
    """The published DALL-E codebook (8192 codes) as a target of masked-image modelling, from FLAVA's copy.

    Args:
        codebook: `FlavaImageCodebook.from_pretrained("facebook/flava-image-codebook", use_safetensors=True)`.
        grid_size: Patches along a side of the detector's images; the codebook has one code per 8x8 pixels.
    """

    def __init__(self, codebook: FlavaImageCodebook, grid_size: int):
        super().__init__()
        self.codebook = codebook.requires_grad_(False).eval()
        self.grid_size = grid_size
        self.mean = nn.Buffer(torch.tensor(OPENAI_CLIP_MEAN)[:, None, None], persistent=False)
        self.std = nn.Buffer(torch.tensor(OPENAI_CLIP_STD)[:, None, None], persistent=False)

    @torch.no_grad()
    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Code of each patch, shape `(B, patches)`, for images with CLIP's normalisation, shape `(B, 3, H, W)`."""
        pixels = (pixel_values * self.std + self.mean).clamp(0, 1)
        pixels = interpolate(pixels, size=8 * self.grid_size, mode="bicubic", antialias=True).clamp(0, 1)
        # The codebook was trained on pixels scaled to [0.1, 0.9] (DALL-E's logit-Laplace likelihood).
        return self.codebook.get_codebook_indices(0.8 * pixels + 0.1).flatten(1)


ImageTokenizer = GMDFImageTokenizer | DalleImageTokenizer

__all__ = ["DalleImageTokenizer", "GMDFImageTokenizer", "GMDFImageTokenizerConfig", "ImageTokenizer"]
