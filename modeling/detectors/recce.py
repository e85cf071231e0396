"""RECCE: reconstruction of real faces, whose failure on fakes guides the classification."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from torch.nn.functional import interpolate, normalize, relu

from .detector import Detector, DetectorConfig, DetectorOutput, scaled
from .xception import SeparableConv2d, Xception

ENCODER = 7  # blocks of the encoder; the other five follow the graph reasoning
DECODER = (256, 128, 64)  # channels of the decoder's stages, each of which doubles the side
SCALES = 2  # stages whose features enter the graph, 2 and 4 times as large as the encoder's
NOISE = 0.1  # standard deviation of the white noise on training images
RECONSTRUCTION, METRIC = 0.1, 0.1  # weights lambda of the losses


@strict
class RECCEConfig(DetectorConfig):
    """Configuration of a [`RECCE`]."""

    model_type = "recce"

    image_size: int = 299


@dataclass
class RECCEOutput(DetectorOutput):
    """Output of a `RECCE`.

    Attributes:
        reconstruction: The decoder's image, shape `(B, 3, image_size, image_size)`.
        features: Mean features of the encoder and of each decoder stage, each `(B, channels)`.
    """

    reconstruction: torch.Tensor | None = None
    features: tuple[torch.Tensor, ...] | None = None


class DecoderStage(nn.Module):
    """Enlargement to twice the side, then a separable convolution.

    Args:
        inputs: Channels of the input.
        outputs: Channels of the output.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv, self.norm = SeparableConv2d(inputs, outputs), nn.BatchNorm2d(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map features `(B, inputs, h, w)` to `(B, outputs, 2 h, 2 w)`."""
        return relu(self.norm(self.conv(interpolate(x, scale_factor=2.0))))


class GraphReasoning(nn.Module):
    """One scale of the bipartite graph between vertices of the encoder and of the decoder.

    Vertex v_i is a position of the encoder's features; its neighbours u_j are the r x r positions of the decoder's
    features that cover it. ``e_ij = w^T relu(A v_i + B u_j)``, ``a_ij = softmax_j(e_ij)``, and the result at v_i is
    ``sum_j a_ij C u_j``.

    Args:
        channels: Channels of the encoder's features.
        neighbours: Channels of the decoder's features.
        ratio: Side r of a vertex in the decoder's features.
    """

    def __init__(self, channels: int, neighbours: int, ratio: int) -> None:
        super().__init__()
        self.ratio = ratio
        self.vertex = nn.Conv2d(channels, neighbours, 1, bias=False)
        self.neighbour = nn.Conv2d(neighbours, neighbours, 1)
        self.score = nn.Conv2d(neighbours, 1, 1, bias=False)
        self.value = nn.Conv2d(neighbours, channels, 1)

    def forward(self, encoded: torch.Tensor, decoded: torch.Tensor) -> torch.Tensor:
        """Combine `(B, C, h, w)` and `(B, D, r h, r w)` to `(B, C, h, w)`."""
        size, r = encoded.shape[-2:], self.ratio
        vertex = self.vertex(encoded).repeat_interleave(r, -1).repeat_interleave(r, -2)
        scores = self.score(relu(vertex + self.neighbour(decoded)))

        def blocks(x: torch.Tensor) -> torch.Tensor:  # (B, channels, h, w, r * r)
            return x.unflatten(-1, (size[1], r)).unflatten(-3, (size[0], r)).transpose(-3, -2).flatten(-2)

        return (blocks(scores).softmax(-1) * blocks(self.value(decoded))).sum(-1)


class RECCE(Detector):
    """RECCE (Cao et al. 2022): reconstruction-classification learning on an Xception.

    The first seven blocks encode the image, with white noise in training; a decoder reconstructs it. Graph reasoning
    adds what the decoder knows to the encoder's features on two scales, and reconstruction-guided attention stresses
    where the reconstruction fails: ``F' = F + sigmoid(conv(|x' - x|)) * conv(F)``. The other blocks classify F'. The
    loss is ``L_cls + 0.1 L_r + 0.1 L_m``:

    - L_r: L1 distance of image and reconstruction, of real images alone.
    - L_m: mean ``d = (1 - cos) / 2`` of real pairs minus that of real-fake pairs, of the mean features of the encoder
      and of each decoder stage; their mean here.

    The paper gives no widths of decoder and graph, nor the noise's strength; they are ours.

    22,225,001 parameters, of which Xception without classifier is 20,806,952; no published count is known to us.
    """

    config_class = RECCEConfig

    def __init__(self, config: RECCEConfig) -> None:
        super().__init__(config)
        self.network = Xception(config.width)
        channels = self.network.middle_channels
        sizes = [channels, *(scaled(number, config.width) for number in DECODER)]
        self.decoder = nn.ModuleList(DecoderStage(*pair) for pair in itertools.pairwise(sizes))
        self.image = nn.Conv2d(sizes[-1], 3, 3, padding=1)
        self.graphs = nn.ModuleList(GraphReasoning(channels, sizes[scale], 2**scale) for scale in range(1, SCALES + 1))
        self.attention, self.attended = nn.Conv2d(3, 1, 3, padding=1), nn.Conv2d(channels, channels, 1)
        self.classifier = nn.Linear(self.network.out_channels, 2)
        self.post_init()

    def classify(self, pixel_values: torch.Tensor) -> RECCEOutput:
        """Reconstruction, graph reasoning, attention and classification."""
        noise = NOISE * torch.randn_like(pixel_values) if self.training else 0
        encoded = self.network.stem(pixel_values + noise)
        for block in self.network.blocks[:ENCODER]:
            encoded = block(encoded)
        stages, x = [], encoded
        for stage in self.decoder:
            x = stage(x)
            stages.append(x)
        side = pixel_values.shape[-1]
        reconstruction = torch.tanh(self.image(interpolate(x, size=(side, side), mode="bilinear")))
        pairs = zip(self.graphs, stages, strict=False)
        x = encoded + sum(graph(encoded, decoded) for graph, decoded in pairs)
        missed = interpolate((reconstruction - pixel_values).abs(), size=x.shape[-2:], mode="bilinear")
        x = x + torch.sigmoid(self.attention(missed)) * self.attended(x)
        for block in self.network.blocks[ENCODER:]:
            x = block(x)
        return RECCEOutput(
            logits=self.classifier(self.network.tail(x).mean((2, 3))),
            reconstruction=reconstruction,
            features=tuple(features.mean((2, 3)) for features in (encoded, *stages)),
        )

    def auxiliary_losses(
        self,
        output: RECCEOutput,
        pixel_values: torch.Tensor,
        labels: torch.Tensor,
        domain_ids: torch.Tensor,
        forged: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """Losses of the reconstruction and the metric; fakes have 0, and the mean is that over reals."""
        assert output.reconstruction is not None and output.features is not None
        real = (labels == 0).float()
        real = real * len(real) / real.sum().clamp(min=1)
        missed = (output.reconstruction - pixel_values).abs().mean((1, 2, 3))
        metric = torch.stack([metric_loss(features.float(), labels) for features in output.features]).mean(0)
        return {"reconstruction": RECONSTRUCTION * real * missed, "metric": METRIC * real * metric}

    def load_backbone(self, tensors: dict[str, torch.Tensor]) -> None:
        """Load timm's `legacy_xception`."""
        self.network.load_timm(tensors)


def metric_loss(features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean distance ``(1 - cos) / 2`` of an image to the other reals minus that to the fakes.

    Args:
        features: Shape `(B, channels)`.
        labels: 0 real, 1 fake, shape `(B,)`.

    Returns:
        Shape `(B,)`; a mean over no image is 0.
    """
    unit = normalize(features, dim=-1)
    distances = (1 - unit @ unit.T) / 2
    fake = (labels == 1).to(distances)
    others = (1 - fake)[None] * (1 - torch.eye(len(labels), device=labels.device))
    near = (distances * others).sum(1) / others.sum(1).clamp(min=1)
    return near - (distances * fake).sum(1) / fake.sum().clamp(min=1)


RECCEConfig.register_for_auto_class()
RECCE.register_for_auto_class("AutoModelForImageClassification")
