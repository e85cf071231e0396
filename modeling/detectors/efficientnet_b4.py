"""EfficientNet-B4, transformers' own implementation in its published size."""

from collections.abc import Sequence

from torch import nn
from transformers import EfficientNetConfig, EfficientNetForImageClassification

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
    config = EfficientNetConfig(
        image_size=image_size,
        width_coefficient=WIDTH * width,
        depth_coefficient=DEPTH * width,
        hidden_dim=8 * round(FEATURES * width / 8),
        dropout_rate=0.4,
        batch_norm_momentum=0.1,  # PyTorch's weight of the batch; transformers' 0.99 is TensorFlow's weight of the past
        id2label={0: "real", 1: "fake"},
        label2id={"real": 0, "fake": 1},
    )
    config.update({"domains": list(domains)})
    model = EfficientNetForImageClassification(config)
    for module in model.modules():
        # transformers draws all weights with a deviation of 0.02, those of the normalisations too: features vanish.
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1] // module.groups
            nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
    return model
