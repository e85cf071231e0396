import pytest
import torch
from transformers import FlavaImageCodebook, FlavaImageCodebookConfig

from gmdf_hf.training.image_tokenizer import DalleImageTokenizer, GMDFImageTokenizer, GMDFImageTokenizerConfig
from gmdf_hf.training.visual_codes import train_image_tokenizer


def make_tokenizer() -> GMDFImageTokenizer:
    torch.manual_seed(0)
    config = GMDFImageTokenizerConfig(image_size=32, patch_size=8, hidden_size=32, codebook_size=16)
    return GMDFImageTokenizer(config)


def flat_images(count: int, seed: int) -> torch.Tensor:
    """Images whose patches have one of four colours, which sixteen codes can distinguish."""
    generator = torch.Generator().manual_seed(seed)
    colours = torch.tensor([[1.0, -1, -1], [-1, 1, -1], [-1, -1, 1], [1, 1, 1]])
    choice = torch.randint(4, (count, 4, 4), generator=generator)
    return colours[choice].permute(0, 3, 1, 2).repeat_interleave(8, 2).repeat_interleave(8, 3), choice.flatten(1)


def test_training_finds_codes_that_tell_patches_apart():
    tokenizer = make_tokenizer()
    errors = train_image_tokenizer(tokenizer, (flat_images(16, step)[0] for step in range(150)), 150)
    assert len(errors) == 150
    assert errors[-1] < 0.15 * errors[0]
    images, choice = flat_images(16, 999)
    codes = tokenizer.encode(images)
    assert codes.shape == (16, 16)
    used = [set(codes[choice == colour].tolist()) for colour in range(4)]
    assert len(set.union(*used)) == sum(len(of_colour) for of_colour in used)  # no code stands for two colours
    assert not any(p.requires_grad for p in tokenizer.parameters())
    assert not tokenizer.training


def test_loss_is_reconstruction_plus_divergence_from_uniform():
    tokenizer, images = make_tokenizer(), flat_images(4, 0)[0]
    torch.manual_seed(1)
    output = tokenizer(images, temperature=0.5, kl_weight=2.0)
    torch.testing.assert_close(output.reconstruction_loss, (output.reconstruction - images).square().mean())
    q = tokenizer.code_logits(images).softmax(1)
    divergence = (q * (q * 16).log()).sum(1).mean()
    torch.testing.assert_close(output.loss, output.reconstruction_loss + 2 * divergence)


def test_tokenizer_saves_and_loads(tmp_path):
    tokenizer = make_tokenizer().eval()
    tokenizer.save_pretrained(tmp_path)
    loaded, report = GMDFImageTokenizer.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    images = flat_images(2, 0)[0]
    assert torch.equal(loaded.encode(images), tokenizer.encode(images))


def test_wrong_sizes_are_named():
    with pytest.raises(ValueError, match=r"\(batch, 3, 32, 32\), found \(2, 3, 16, 16\)"):
        make_tokenizer()(torch.zeros(2, 3, 16, 16))
    with pytest.raises(Exception, match="multiple of `patch_size`, found 30 and 8"):
        GMDFImageTokenizerConfig(image_size=30, patch_size=8)


def test_published_codebook_gives_one_code_a_patch():
    torch.manual_seed(0)
    codebook = FlavaImageCodebook(FlavaImageCodebookConfig(hidden_size=4, vocab_size=50, num_blocks_per_group=1))
    tokenizer = DalleImageTokenizer(codebook, grid_size=6)
    images = torch.randn(2, 3, 48, 48)
    codes = tokenizer.encode(images)
    assert codes.shape == (2, 36)
    assert codes.max() < 50
    # The codebook's input has pixels in [0.1, 0.9] and patches of 8 pixels.
    seen = {}
    codebook.get_codebook_indices = lambda pixels: seen.update(pixels=pixels) or torch.zeros(2, 6, 6, dtype=torch.long)
    black_and_white = (torch.tensor([0.0, 1.0]).view(2, 1, 1, 1) - tokenizer.mean) / tokenizer.std
    tokenizer.encode(black_and_white.expand(2, 3, 48, 48))
    torch.testing.assert_close(seen["pixels"].amax((1, 2, 3)), torch.tensor([0.1, 0.9]))
