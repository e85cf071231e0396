"""MAT: several attention maps over enhanced textures, the multi-attentional detector."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from torch.nn.functional import (
    adaptive_avg_pool2d,
    conv2d,
    cross_entropy,
    elu,
    hardswish,
    interpolate,
    normalize,
    pad,
    relu,
)

from .detector import Detector, DetectorConfig, DetectorOutput, scaled
from .efficientnet_b4 import B4Features, draw_weights

MAPS = 4  # number M of attention maps
TEXTURE, ATTENTION, STAGES = 2, 5, 7  # stages behind which textures and attention are; number of stages
MIDDLE = 256  # features of each half before the classifier
INNER, OUTER = (0.05, 0.1), 0.2  # margins of the regional independence loss: of real and fake, between centres
MOMENTUM = 0.05  # alpha of the centres
SHRINK, BLUR, KERNEL = 0.3, 7.0, 11  # degraded image: factor of its side, deviation and width of the Gaussian


@strict
class MATConfig(DetectorConfig):
    """Configuration of a [`MAT`]."""

    model_type = "mat"

    image_size: int = 380


@dataclass
class MATOutput(DetectorOutput):
    """Output of a `MAT`.

    Attributes:
        attention: Attention maps, shape `(B, 4, h, w)`.
        semantic: Pooled features of each map before the textures are enhanced, shape `(B, 4, channels)`.
    """

    attention: torch.Tensor | None = None
    semantic: torch.Tensor | None = None


def pooled(features: torch.Tensor, attention: torch.Tensor) -> torch.Tensor:
    """Bilinear attention pooling: ``v_k = sum_ij A_k F / ||sum_ij A_k F||`` (Eq. 2).

    Args:
        features: Shape `(B, C, H, W)`.
        attention: Shape `(B, M, h, w)`; resized to the features.

    Returns:
        Shape `(B, M, C)`.
    """
    attention = interpolate(attention, size=features.shape[-2:], mode="bilinear")
    return normalize(torch.einsum("bmij,bcij->bmc", attention, features), dim=-1)


class AttentionMaps(nn.Module):
    """Positive attention maps: two convolutions with batch normalisation, ``elu + 1`` at the end.

    Args:
        channels: Channels of the features.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.conv2, self.norm2 = nn.Conv2d(channels, MAPS, 1, bias=False), nn.BatchNorm2d(MAPS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map features `(B, channels, h, w)` to `(B, 4, h, w)`."""
        return elu(self.norm2(self.conv2(relu(self.norm1(self.conv1(x)))))) + 1


class TextureEnhancement(nn.Module):
    """Densely connected convolutions on what local averages do not hold, ``T = f - D(f)``.

    Args:
        channels: Channels of the features.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inputs = [channels * number for number in (1, 2, 3)]
        self.norms = nn.ModuleList(nn.BatchNorm2d(number) for number in inputs)
        self.convs = nn.ModuleList(nn.Conv2d(number, channels, 3, padding=1, bias=False) for number in inputs)
        self.last = nn.Conv2d(4 * channels, channels, 1, bias=False)
        self.last_norm = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Enhance features `(B, channels, H, W)`; averages are over the cells of a grid of `size`.

        Returns:
            Textures of the same shape, and the averages `(B, channels, *size)`.
        """
        averages = adaptive_avg_pool2d(x, size)
        parts = [x - interpolate(averages, size=x.shape[-2:])]
        for norm, convolution in zip(self.norms, self.convs, strict=True):
            parts.append(convolution(relu(norm(torch.cat(parts, dim=1)))))
        return relu(self.last_norm(self.last(torch.cat(parts, dim=1)))), averages


class Centres(nn.Module):
    """Moving mean of each map's features: ``c_t = c_{t-1} - alpha (c_{t-1} - mean_i V_i)`` (Eq. 5).

    Named as the mean of a batch normalisation, with which it is averaged over processes.

    Args:
        channels: Channels of the features.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.running_mean = nn.Buffer(torch.zeros(MAPS, channels))

    def forward(self, semantic: torch.Tensor) -> torch.Tensor:
        """Centres after a step with features `(B, 4, channels)`, which are kept in training."""
        centres = self.running_mean - MOMENTUM * (self.running_mean - semantic.mean(0))
        if self.training:
            self.running_mean.copy_(centres.detach())
        return centres


def regional_independence(semantic: torch.Tensor, centres: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """``sum_j [|V_j - c_j| - m_in(y)]_+ + sum_{j != k} [m_out - |c_j - c_k|]_+`` of each image (Eq. 4).

    Args:
        semantic: Features V of each map, shape `(B, M, channels)`.
        centres: Shape `(M, channels)`.
        labels: 0 real, 1 fake, shape `(B,)`.
    """
    inner = (semantic - centres).pow(2).sum(-1).add(1e-12).sqrt()
    margins = torch.tensor(INNER, device=labels.device)[labels]
    between = (centres[:, None] - centres).pow(2).sum(-1).add(1e-12).sqrt()
    apart = relu(OUTER - between) * (1 - torch.eye(len(centres), device=labels.device))
    return relu(inner - margins[:, None]).sum(1) + apart.sum()


def degraded(images: torch.Tensor) -> torch.Tensor:
    """Images reduced to 0.3 of their side, blurred and enlarged again."""
    side = images.shape[-1]
    small = interpolate(images, size=(max(round(SHRINK * side), KERNEL),) * 2, mode="bilinear")
    places = torch.arange(KERNEL, device=images.device) - KERNEL // 2
    weights = torch.exp(-(places**2) / (2 * BLUR**2)).to(images)
    weights = (weights / weights.sum()).expand(images.shape[1], 1, 1, -1)
    small = pad(small, (KERNEL // 2,) * 4, mode="reflect")
    small = conv2d(conv2d(small, weights, groups=images.shape[1]), weights.mT, groups=images.shape[1])
    return interpolate(small, size=(side, side), mode="bilinear")


def guided(images: torch.Tensor, attention: torch.Tensor) -> torch.Tensor:
    """Attention guided augmentation: ``X (1 - A) + X_d A`` with A an image's map over its maximum (Eq. 6).

    Args:
        images: Shape `(B, 3, H, W)`.
        attention: One map of each image, shape `(B, h, w)`.
    """
    share = attention / attention.amax((1, 2), keepdim=True).clamp(min=1e-6)
    share = interpolate(share[:, None], size=images.shape[-2:], mode="bilinear")
    return images * (1 - share) + degraded(images) * share


class MAT(Detector):
    """Multi-attentional detector (Zhao et al. 2021) on EfficientNet-B4.

    Four attention maps from stage 5 pool the textures of stage 2, and their sum pools the last features; both decide.
    The loss is ``L_ce + L_RIL``, on the images; training adds the cross-entropy of the augmented images, whose region
    under one random map is degraded.

    The authors' code has textures of their own for each map, a border without attention and a dropout of maps, which
    the paper has not; its alpha is smaller in each epoch, here it is constant. Margins, alpha, weights and the strength
    of the degradation are the paper's from memory; that code has others.

    18,332,882 parameters; no published count is known to us; EfficientNet-B4 without classifier has 17,548,616.
    """

    config_class = MATConfig

    def __init__(self, config: MATConfig) -> None:
        super().__init__(config)
        self.features = B4Features(config.image_size, config.width)
        textures, middle = self.features.channels[TEXTURE - 1], scaled(MIDDLE, config.width)
        self.attention = AttentionMaps(self.features.channels[ATTENTION - 1])
        self.enhancement = TextureEnhancement(textures)
        self.centres = Centres(textures)
        self.local, self.whole = nn.Linear(MAPS * textures, middle), nn.Linear(self.features.out_channels, middle)
        self.dropout = nn.Dropout(0.5)
        self.classifier = nn.Linear(2 * middle, 2)
        self.post_init()
        draw_weights(self.features)

    def classify(self, pixel_values: torch.Tensor) -> MATOutput:
        """Textures under each map and the last features under all maps."""
        x = self.features.stem(pixel_values)
        stages = {}
        for number in range(1, STAGES + 1):
            x = stages[number] = self.features.stage(x, number)
        attention = self.attention(stages[ATTENTION])
        textures, averages = self.enhancement(stages[TEXTURE], attention.shape[-2:])
        local = hardswish(self.local(pooled(textures, attention).flatten(1)))
        last = self.features.tail(x)
        together = interpolate(attention.sum(1, keepdim=True), size=last.shape[-2:], mode="bilinear")
        whole = (last * together).sum((2, 3)) / together.sum((2, 3)).clamp(min=1e-6)
        whole = hardswish(self.whole(self.dropout(whole)))
        return MATOutput(
            logits=self.classifier(torch.cat([local, whole], dim=1)),
            attention=attention,
            semantic=pooled(averages, attention),
        )

    def auxiliary_losses(
        self,
        output: MATOutput,
        pixel_values: torch.Tensor,
        labels: torch.Tensor,
        domain_ids: torch.Tensor,
        forged: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """Regional independence and, in training, the augmented images."""
        assert output.attention is not None and output.semantic is not None
        semantic = output.semantic.float()
        losses = {"independence": regional_independence(semantic, self.centres(semantic), labels)}
        if self.training:
            rows = torch.arange(len(labels), device=labels.device)
            chosen = output.attention.detach()[rows, torch.randint(MAPS, labels.shape, device=labels.device)]
            logits = self.classify(guided(pixel_values, chosen)).logits
            assert logits is not None
            losses["augmented"] = cross_entropy(logits.float(), labels, reduction="none")
        return losses

    def load_backbone(self, tensors: dict[str, torch.Tensor]) -> None:
        """Load a transformers EfficientNet-B4."""
        self.features.load(tensors)


MATConfig.register_for_auto_class()
MAT.register_for_auto_class("AutoModelForImageClassification")
