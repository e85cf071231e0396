"""UCF's losses by loops over the images."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from gmdf_hf.common.errors import UserError
from gmdf_hf.modeling.detectors import image_processor_of
from gmdf_hf.modeling.detectors.ucf import UCF, AdaptiveNorm, UCFConfig, contrast, partners_of
from gmdf_hf.training.classifiers import load_classifier, new_detector

LABELS = torch.tensor([0, 0, 1, 1, 0, 1])
DOMAINS = torch.tensor([0, 0, 0, 0, 1, 1])
IMAGES = torch.rand(6, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1


def model() -> UCF:
    torch.manual_seed(0)
    return UCF(UCFConfig(image_size=64, width=0.0625, domains=["a", "b"])).train()


@torch.no_grad()
def test_adaptive_normalisation_by_its_definition():
    torch.manual_seed(0)
    module, content, fingerprint = AdaptiveNorm(3, 2), torch.randn(2, 3, 4, 4), torch.randn(2, 2, 4, 4)
    found = module(content, fingerprint)
    for image in range(2):
        style = module.affine.weight @ fingerprint[image].mean((1, 2)) + module.affine.bias
        for channel in range(3):
            plane = content[image, channel]
            normal = (plane - plane.mean()) / (plane.var(unbiased=False) + module.norm.eps).sqrt()
            expected = (1 + style[channel]) * normal + style[3 + channel]
            torch.testing.assert_close(found[image, channel], expected, rtol=1e-4, atol=1e-5)


def test_partners_are_of_the_other_class_and_the_same_domain():
    assert partners_of(LABELS, DOMAINS).tolist() == [2, 3, 0, 1, 5, 4]
    assert partners_of(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 0])).tolist() == [1, 0, 0]
    assert partners_of(torch.tensor([0, 1]), torch.tensor([0, 1])).tolist() == [1, 0]  # of another domain
    assert partners_of(torch.tensor([1, 1]), torch.tensor([0, 0])).tolist() == [0, 1]  # nobody


@pytest.mark.parametrize("kinds", [[0, 0, 1, 2, 0, 1], [0, 0, 0], [0, 1]])
def test_contrast_by_its_definition(kinds):
    features = torch.randn(len(kinds), 5, generator=torch.Generator().manual_seed(1))
    expected = []
    for i, kind in enumerate(kinds):
        order = [(i + step) % len(kinds) for step in range(1, len(kinds))]
        same, other = ([j for j in order if (kinds[j] == kind) is wanted] for wanted in (True, False))
        if same and other:
            near, far = (torch.dist(features[i], features[found[0]]) for found in (same, other))
            expected.append(max(3.0 + float(near - far), 0.0))
        else:
            expected.append(0.0)
    torch.testing.assert_close(contrast(features, torch.tensor(kinds)), torch.tensor(expected), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_losses_are_the_weighted_sums_of_the_paper():
    detector = model()
    output = detector.classify(IMAGES)
    losses = detector.auxiliary_losses(output, IMAGES, LABELS, DOMAINS)
    own = detector.decoder(output.content, output.fingerprint, 64)
    for image, partner in enumerate([2, 3, 0, 1, 5, 4]):
        crossed = detector.decoder(output.content, output.fingerprint[[2, 3, 0, 1, 5, 4]], 64)[image]
        missed = (own[image] - IMAGES[image]).abs().mean() + (crossed - IMAGES[image]).abs().mean()
        torch.testing.assert_close(losses["reconstruction"][image], 0.3 * missed, rtol=1e-4, atol=1e-5)
        alone = detector.decoder(output.content[[image]], output.fingerprint[[partner]], 64)[0]
        torch.testing.assert_close(alone, crossed, rtol=1e-4, atol=1e-4)
    kinds = [0, 0, 1, 1, 0, 2]
    logits = detector.methods(output.specific.mean((2, 3)))
    for image, kind in enumerate(kinds):
        expected = 0.1 * cross_entropy(logits[image], torch.tensor(kind))
        torch.testing.assert_close(losses["specific"][image], expected)
    total = detector(IMAGES, labels=LABELS).loss
    assert total.isfinite() and total > cross_entropy(output.logits, LABELS)


def test_more_domains_than_methods_are_refused_before_training(tmp_path):
    detector = model()
    with pytest.raises(ValueError, match="tells 2 methods apart, found 3 data sets"):
        detector.check_domains(3)
    detector.save_pretrained(tmp_path)
    image_processor_of(detector.config).save_pretrained(tmp_path)
    for make in (
        lambda: load_classifier(str(tmp_path), ["x", "y", "z"]),
        lambda: new_detector("ucf", ["x", "y"], fields={"image_size": 64, "width": 0.0625, "num_methods": 1}),
    ):
        with pytest.raises(UserError, match=r"methods apart, found . data sets.*--backbone ucf") as caught:
            make()
        assert "\n" not in str(caught.value)
    assert load_classifier(str(tmp_path), ["x", "y"])[0].config.domains == ["x", "y"]


def test_inference_needs_the_fingerprint_alone():
    detector = model().eval()
    detector.content = None
    assert detector(IMAGES[:1]).logits.shape == (1, 2)
