"""EfficientNet-B4, transformers' own implementation in its published size."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import EfficientNetConfig, EfficientNetForImageClassification, EfficientNetModel

# Compound scaling of B4 (Tan & Le 2019; width and depth of the authors' release). transformers' default is B7.
WIDTH, DEPTH, FEATURES = 1.4, 1.8, 1792


def efficientnet_b4(
    image_size: int = 380, width: float = 1.0, domains: Sequence[str] = ()
) -> EfficientNetForImageClassification:
    """EfficientNet-B4 (Tan & Le 2019) with random weights and two classes.

    17,552,202 parameters; published for 1000 classes: 19 million (Table 2 of the paper), 19,341,616 counted, of which
    1,793,000 are the classifier's. Its checkpoint is an `efficientnet` of transformers and needs no code.

    Args:
        image_size: Side of the images in pixels.
        width: Factor on all numbers of channels and blocks; 1 is the published network.
        domains: Names of the source domains.
    """
    config = b4_config(image_size, width)
    config.update({"id2label": {0: "real", 1: "fake"}, "label2id": {"real": 0, "fake": 1}, "domains": list(domains)})
    model = EfficientNetForImageClassification(config)
    draw_weights(model)
    return model


def b4_config(image_size: int, width: float) -> EfficientNetConfig:
    """Configuration of EfficientNet-B4; the arguments are those of `efficientnet_b4`."""
    return EfficientNetConfig(
        image_size=image_size,
        width_coefficient=WIDTH * width,
        depth_coefficient=DEPTH * width,
        hidden_dim=8 * round(FEATURES * width / 8),
        dropout_rate=0.4,
        batch_norm_momentum=0.1,  # PyTorch's weight of the batch; transformers' 0.99 is TensorFlow's weight of the past
    )


def draw_weights(network: nn.Module) -> None:
    """Draw the weights of an EfficientNet."""
    for module in network.modules():
        # transformers draws all weights with a deviation of 0.02, those of the normalisations too: features vanish.
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1] // module.groups
            nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)


class B4Features(nn.Module):
    """EfficientNet-B4 without classifier, for detectors that use features of inner stages.

    Args:
        image_size: Side of the images in pixels.
        width: As in `efficientnet_b4`.
    """

    def __init__(self, image_size: int, width: float) -> None:
        super().__init__()
        config = b4_config(image_size, width)
        self.network = EfficientNetModel(config)
        # Number of blocks up to the end of each stage.
        repeats = (math.ceil(config.depth_coefficient * number) for number in config.num_block_repeats)
        self.ends = list(itertools.accumulate(repeats))
        blocks: Any = self.network.encoder.blocks
        self.channels: list[int] = [blocks[end - 1].projection.project_conv.out_channels for end in self.ends]
        self.out_channels: int = config.hidden_dim

    def stem(self, x: torch.Tensor) -> torch.Tensor:
        """The convolution before the blocks: `(B, 3, H, W)` to `(B, 48, H / 2, W / 2)`."""
        return self.network.embeddings(x)

    def stage(self, x: torch.Tensor, number: int) -> torch.Tensor:
        """Blocks of a stage, 1 to 7, on the features of the one before."""
        for block in self.network.encoder.blocks[([0, *self.ends])[number - 1] : self.ends[number - 1]]:
            x = block(x)
        return x

    def tail(self, x: torch.Tensor) -> torch.Tensor:
        """The convolution after the blocks: `(B, 448, h, w)` to `(B, 1792, h, w)`."""
        encoder = self.network.encoder
        return encoder.top_activation(encoder.top_bn(encoder.top_conv(x)))

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Load the weights of a transformers `efficientnet` of the same size.

        Args:
            tensors: Content of its safetensors file; the classifier is not used.

        Raises:
            ValueError: If a weight is missing or has another shape.
        """
        given = {name.removeprefix("efficientnet."): tensor for name, tensor in tensors.items()}
        own = {name: tensor for name, tensor in self.network.state_dict().items() if "num_batches" not in name}
        wrong = [name for name, tensor in own.items() if name not in given or given[name].shape != tensor.shape]
        if wrong:
            raise ValueError(f"no weights of transformers' efficientnet of this size: {', '.join(wrong[:3])}.")
        self.network.load_state_dict({name: given[name] for name in own}, strict=False)
