import pytest
import torch

from gmdf_hf.data.episodes import Episode
from gmdf_hf.data.patches import draw_mask
from gmdf_hf.training.image_tokenizer import GMDFImageTokenizer, GMDFImageTokenizerConfig


@pytest.fixture
def episode():
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(12, 3, 32, 32, generator=generator)
    return Episode.of(
        images,
        torch.tensor([0, 0, 1, 1] * 3),
        torch.tensor([0] * 4 + [2] * 4 + [1] * 4),
        mask=draw_mask(4, 4, 0.2, generator=torch.Generator().manual_seed(5)),
    )


@pytest.fixture
def tokenizer():
    torch.manual_seed(0)
    config = GMDFImageTokenizerConfig(image_size=32, patch_size=8, hidden_size=16, codebook_size=20)
    return GMDFImageTokenizer(config).eval()
