"""Multi-task's energies, selection and losses by loops."""

import math

import pytest
import torch

from gmdf_hf.modeling.detectors.multi_task import MultiTask, MultiTaskConfig

IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
LABELS = torch.tensor([0, 1, 1])
FORGED = torch.zeros(3, 32, 32)
FORGED[1, 8:24, 8:24], FORGED[2] = 1.0, -1.0  # the third one's mask is unknown


@pytest.fixture
def detector() -> MultiTask:
    torch.manual_seed(0)
    return MultiTask(MultiTaskConfig(image_size=32, width=0.5)).eval()


def losses(detector: MultiTask, forged: torch.Tensor | None) -> dict[str, torch.Tensor]:
    return detector.losses(detector.classify(IMAGES), IMAGES, LABELS, torch.zeros(3, dtype=torch.long), forged)


@torch.no_grad()
def test_energies_of_both_halves_are_the_logits(detector):
    output = detector(IMAGES)
    assert output.latent.shape == (3, 64, 2, 2)
    for image in range(3):
        for label in (0, 1):
            half = output.latent[image, 32 * label : 32 * label + 32].flatten().tolist()
            assert float(output.logits[image, label]) == pytest.approx(sum(map(abs, half)) / len(half), rel=1e-5)


@torch.no_grad()
def test_the_loss_of_the_energies(detector):
    logits = torch.tensor([[0.9, 0.2], [0.4, 0.7], [1.5, 0.0]])
    expected = [0.2 + 0.1, 0.4 + 0.3, 1.5 + 1.0]
    torch.testing.assert_close(detector.classification_loss(logits, LABELS), torch.tensor(expected))


@torch.no_grad()
def test_the_decoder_sees_the_half_of_the_class_alone(detector):
    latent = detector.classify(IMAGES).latent
    found = detector.decode(latent, LABELS)
    for image, label in enumerate(LABELS.tolist()):
        for other in (False, True):
            changed = latent[[image]].clone()
            changed.unflatten(1, (2, 32))[:, label if other else 1 - label] += 1
            pairs = zip(found, detector.decode(changed, LABELS[[image]]), strict=True)
            assert [torch.allclose(a[[image]], b, atol=1e-5) for a, b in pairs] == [not other] * 2
    assert found[0].shape == (3, 2, 32, 32) and found[1].shape == IMAGES.shape and found[1].abs().max() <= 1


@torch.no_grad()
def test_segmentation_and_reconstruction_pixel_by_pixel(detector):
    found = losses(detector, FORGED)
    assert list(found) == ["classification", "segmentation", "reconstruction"]
    segmented, image = detector.decode(detector.classify(IMAGES).latent, LABELS)
    for number in (0, 1):
        of_pixels = []
        for i in range(32):
            for j in range(32):
                genuine, forged = segmented[number, :, i, j].tolist()
                right, wrong = (forged, genuine) if FORGED[number, i, j] else (genuine, forged)
                of_pixels.append(math.log(1 + math.exp(wrong - right)))
        assert float(found["segmentation"][number]) == pytest.approx(sum(of_pixels) / 1024, rel=1e-4)
    squares = [(image[number] - IMAGES[number]).square().mean() for number in range(3)]
    torch.testing.assert_close(found["reconstruction"], torch.stack(squares))


def test_an_unknown_mask_has_no_loss_and_no_gradient(detector):
    assert losses(detector, FORGED)["segmentation"][2] == 0
    without = losses(detector, None)["segmentation"]
    assert not without.any()
    without.sum().backward()
    assert not detector.segmentation[0].weight.grad.any()  # zero, not None: processes sum their gradients
    with pytest.raises(Exception, match="multiple of 16, found 40"):
        MultiTaskConfig(image_size=40)
