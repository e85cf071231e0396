import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from gmdf_hf.training.losses import alignment_loss, classification_loss, masked_image_loss


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Eq. 8 with the matrix square root of the product of the covariances.

    Its trace is the sum of the roots of the eigenvalues; `sqrtm` of scipy 1.15 is NaN for some singular matrices.
    """
    covariance_a, covariance_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    roots = np.sqrt(scipy.linalg.eigvals(covariance_a @ covariance_b).real.clip(0))
    return ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(covariance_a + covariance_b) - 2 * roots.sum()


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(2, 12), st.integers(2, 12), st.integers(2, 8), st.integers(0, 10**6))
def test_alignment_equals_the_matrix_square_root(n, m, width, seed):
    rng = np.random.default_rng(seed)
    sources = [rng.normal(size=(n, width)) for _ in range(3)]
    target = rng.normal(size=(m, width)) * 2 + 1
    expected = np.mean([frechet(source, target) for source in sources])
    ours = alignment_loss([torch.tensor(source) for source in sources], torch.tensor(target))
    assert float(ours) == pytest.approx(expected, abs=1e-4)


def test_alignment_takes_source_domains_of_different_sizes():
    rng = np.random.default_rng(0)
    sources, target = [rng.normal(size=(n, 6)) for n in (3, 7, 4)], rng.normal(size=(5, 6))
    expected = np.mean([frechet(source, target) for source in sources])
    ours = alignment_loss([torch.tensor(source) for source in sources], torch.tensor(target))
    assert float(ours) == pytest.approx(expected, abs=1e-6)


def test_alignment_passes_gradcheck():
    torch.manual_seed(0)
    source = torch.randn(4, 6, dtype=torch.double, requires_grad=True)
    target = torch.randn(5, 6, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s, t: alignment_loss([s, s.flip(1) * 2], t), (source, target))


def test_alignment_gradient_is_finite_where_batches_outnumber_dimensions():
    source = torch.randn(32, 4, requires_grad=True)
    alignment_loss([source], torch.randn(32, 4)).backward()
    assert source.grad.isfinite().all()


def test_a_number_that_is_not_finite_comes_out_as_such():
    source, target = torch.randn(4, 3), torch.randn(4, 3)
    source[1, 2] = torch.nan
    assert alignment_loss([target, source], target).isnan()


def test_equal_distributions_are_at_distance_zero():
    features = torch.randn(8, 5, dtype=torch.double)
    assert float(alignment_loss([features, features.flip(0)], features)) == pytest.approx(0, abs=1e-9)


def test_alignment_is_computed_in_single_precision_under_autocast():
    source, target = torch.randn(8, 5), torch.randn(8, 5)
    with torch.autocast("cpu", torch.bfloat16):
        low = alignment_loss([source.bfloat16().float()], target.bfloat16())
    assert low.dtype == torch.float32
    assert float(low) == pytest.approx(float(alignment_loss([source], target)), rel=0.05)


def test_one_image_has_no_covariance():
    with pytest.raises(ValueError, match="at least 2 images of each domain, found 1"):
        alignment_loss([torch.randn(4, 3)], torch.randn(1, 3))


def test_classification_is_the_sum_of_the_domains_means():
    logits, labels = torch.randn(7, 2), torch.tensor([0, 1, 0, 1, 1, 0, 1])
    ids = torch.tensor([0, 0, 2, 2, 2, 3, 3])
    expected = sum(cross_entropy(logits[ids == n], labels[ids == n]) for n in (0, 2, 3))
    weights = torch.tensor([1 / 2, 1 / 2, 1 / 3, 1 / 3, 1 / 3, 1 / 2, 1 / 2])
    torch.testing.assert_close(classification_loss(logits, labels, weights), expected)


def test_masked_image_loss_is_cross_entropy_plus_l1():
    logits = torch.tensor([[0.0, 0.0], [100.0, 0.0]])
    pixels, patches = torch.zeros(2, 3), torch.tensor([[1.0, -1.0, 0.0], [0.0, 0.0, 4.0]])
    loss = masked_image_loss(logits, pixels, torch.tensor([1, 0]), patches)
    assert float(loss) == pytest.approx(np.log(2) / 2 + 1.0)
