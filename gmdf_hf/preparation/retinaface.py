"""RetinaFace with a MobileNet-0.25 body, as in the paper (weights: hub repository `py-feat/retinaface`).

Deng et al., "RetinaFace: Single-stage Dense Face Localisation in the Wild". Parameter names follow the published
checkpoint.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from gmdf_hf.common.errors import DetectorError
from gmdf_hf.preparation.faces import DETECTION_SIDE, MIN_SCORE, Face, inside, reduce_to

STRIDES = (8, 16, 32)
ANCHOR_SIDES = ((16, 32), (64, 128), (256, 512))
BGR_MEAN = (104.0, 117.0, 123.0)
CENTER_VARIANCE, SIZE_VARIANCE = 0.1, 0.2
NMS_IOU = 0.4


def convolution(
    inputs: int, outputs: int, kernel: int = 3, stride: int = 1, slope: float | None = 0.1
) -> nn.Sequential:
    """Convolution, batch norm and (unless `slope` is None) leaky ReLU."""
    layers = [nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs)]
    return nn.Sequential(*layers, *([] if slope is None else [nn.LeakyReLU(slope)]))


def separable(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """Depthwise then pointwise convolution, each with batch norm and leaky ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False),
        nn.BatchNorm2d(inputs),
        nn.LeakyReLU(0.1),
        *convolution(inputs, outputs, kernel=1),
    )


class Body(nn.Module):
    """MobileNetV1 at a quarter of its width; returns maps of stride 8, 16 and 32."""

    def __init__(self) -> None:
        super().__init__()
        self.stage1 = nn.Sequential(
            convolution(3, 8, stride=2),
            separable(8, 16),
            separable(16, 32, 2),
            separable(32, 32),
            separable(32, 64, 2),
            separable(64, 64),
        )
        self.stage2 = nn.Sequential(separable(64, 128, 2), *(separable(128, 128) for _ in range(5)))
        self.stage3 = nn.Sequential(separable(128, 256, 2), separable(256, 256))

    def forward(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        first = self.stage1(pixels)
        second = self.stage2(first)
        return [first, second, self.stage3(second)]


class Pyramid(nn.Module):
    """Feature pyramid: the coarser map is added to each map."""

    def __init__(self) -> None:
        super().__init__()
        self.output1, self.output2, self.output3 = (convolution(width, 64, kernel=1) for width in (64, 128, 256))
        self.merge1, self.merge2 = convolution(64, 64), convolution(64, 64)

    def forward(self, maps: list[torch.Tensor]) -> list[torch.Tensor]:
        fine, middle, coarse = self.output1(maps[0]), self.output2(maps[1]), self.output3(maps[2])
        middle = self.merge2(middle + F.interpolate(coarse, size=middle.shape[2:], mode="nearest"))
        fine = self.merge1(fine + F.interpolate(middle, size=fine.shape[2:], mode="nearest"))
        return [fine, middle, coarse]


class Context(nn.Module):
    """SSH context module: three receptive fields in parallel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv3X3 = convolution(64, 32, slope=None)
        self.conv5X5_1 = convolution(64, 16)
        self.conv5X5_2 = convolution(16, 16, slope=None)
        self.conv7X7_2 = convolution(16, 16)
        self.conv7x7_3 = convolution(16, 16, slope=None)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        middle = self.conv5X5_1(features)
        parts = [self.conv3X3(features), self.conv5X5_2(middle), self.conv7x7_3(self.conv7X7_2(middle))]
        return F.relu(torch.cat(parts, dim=1))


class Head(nn.Module):
    """Output head: `values` numbers for each of the two anchors of every cell."""

    def __init__(self, values: int) -> None:
        super().__init__()
        self.values = values
        self.conv1x1 = nn.Conv2d(64, 2 * values, 1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.conv1x1(features).permute(0, 2, 3, 1).reshape(features.shape[0], -1, self.values)


class RetinaFace(nn.Module):
    """The network: from a BGR picture minus `BGR_MEAN` to raw offsets and class logits per anchor."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fpn = Body(), Pyramid()
        self.ssh1, self.ssh2, self.ssh3 = Context(), Context(), Context()
        self.ClassHead = nn.ModuleList(Head(2) for _ in STRIDES)
        self.BboxHead = nn.ModuleList(Head(4) for _ in STRIDES)
        self.LandmarkHead = nn.ModuleList(Head(10) for _ in STRIDES)

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return boxes `(B, A, 4)`, class logits `(B, A, 2)` and landmarks `(B, A, 10)` for A anchors."""
        maps = self.fpn(self.body(pixels))
        maps = [context(features) for context, features in zip((self.ssh1, self.ssh2, self.ssh3), maps, strict=True)]

        def join(head: nn.ModuleList) -> torch.Tensor:
            return torch.cat([part(m) for part, m in zip(head, maps, strict=True)], dim=1)

        return join(self.BboxHead), join(self.ClassHead), join(self.LandmarkHead)


def anchors(height: int, width: int) -> torch.Tensor:
    """Return `(center x, center y, side)` in pixels of every anchor, shape `(A, 3)`, in the order of the heads."""
    parts = []
    for stride, sides in zip(STRIDES, ANCHOR_SIDES, strict=True):
        rows, columns = -(-height // stride), -(-width // stride)
        y, x, side = torch.meshgrid(torch.arange(rows), torch.arange(columns), torch.tensor(sides), indexing="ij")
        parts.append(torch.stack([(x + 0.5) * stride, (y + 0.5) * stride, side], dim=-1).reshape(-1, 3))
    return torch.cat(parts)


def decode(boxes: torch.Tensor, points: torch.Tensor, prior: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn offsets from anchors into pixels.

    Args:
        boxes: Raw boxes, shape `(A, 4)`.
        points: Raw landmarks, shape `(A, 10)`.
        prior: Anchors, shape `(A, 3)`.

    Returns:
        Boxes `(left, top, right, bottom)` of shape `(A, 4)` and points of shape `(A, 5, 2)`.
    """
    center, side = prior[:, :2], prior[:, 2:]
    middle = center + boxes[:, :2] * CENTER_VARIANCE * side
    half = side * torch.exp(boxes[:, 2:] * SIZE_VARIANCE) / 2
    landmarks = center[:, None] + points.reshape(-1, 5, 2) * CENTER_VARIANCE * side[:, None]
    return torch.cat([middle - half, middle + half], dim=1), landmarks


def suppress(boxes: np.ndarray, scores: np.ndarray) -> list[int]:
    """Return the indices that non-maximum suppression keeps, best first."""
    order, kept = list(np.argsort(-scores, kind="stable")), []
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    while order:
        best = order.pop(0)
        kept.append(int(best))
        rest = boxes[order]
        overlap = np.minimum(rest[:, 2:], boxes[best, 2:]) - np.maximum(rest[:, :2], boxes[best, :2])
        shared = overlap.clip(0).prod(axis=1)
        iou = shared / (areas[order] + areas[best] - shared)
        order = [index for index, value in zip(order, iou, strict=True) if value <= NMS_IOU]
    return kept


class RetinaFaceDetector:
    """Callable detector around `RetinaFace`.

    Args:
        weights: `.pth` state dict (loaded without code execution) or `.safetensors`.

    Raises:
        DetectorError: If the file does not contain this network's parameters.
    """

    def __init__(self, weights: Path) -> None:
        try:
            if weights.suffix == ".safetensors":
                state: dict[str, Any] = load_file(weights)
            else:
                state = torch.load(weights, map_location="cpu", weights_only=True)
            state = state.get("state_dict", state)
        # Both readers raise many types of exception for invalid files.
        except Exception as error:
            raise DetectorError(f"{weights}: cannot be read as weights ({type(error).__name__}).") from error
        state = {name.removeprefix("module."): value for name, value in state.items()}
        self.network = RetinaFace().eval()
        # The checkpoint also contains the body's ImageNet classifier, which detection does not use.
        state = {name: value for name, value in state.items() if not name.startswith("body.fc.")}
        try:
            self.network.load_state_dict(state)
        except RuntimeError as error:
            raise DetectorError(f"{weights}: not a RetinaFace MobileNet-0.25 checkpoint. {error}") from error

    @torch.inference_mode()
    def __call__(self, pixels: np.ndarray) -> list[Face]:
        small, factor = reduce_to(pixels, DETECTION_SIDE)
        batch = torch.from_numpy(small[..., ::-1].astype(np.float32) - np.asarray(BGR_MEAN, np.float32)).permute(
            2, 0, 1
        )[None]
        boxes, logits, points = (output[0] for output in self.network(batch))
        scores = logits.softmax(dim=-1)[:, 1]
        keep = scores > MIN_SCORE
        boxes, points = decode(boxes[keep], points[keep], anchors(*small.shape[:2])[keep])
        boxes, points, scores = boxes.double().numpy() * factor, points.double().numpy() * factor, scores[keep].numpy()
        kept = suppress(boxes, scores)
        return inside([Face(tuple(boxes[i].tolist()), points[i], float(scores[i])) for i in kept], pixels)
