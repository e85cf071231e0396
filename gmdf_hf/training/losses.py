"""The three losses of Eq. 11."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import cross_entropy, l1_loss
from torch.nn.utils.rnn import pad_sequence

from gmdf_hf.common.processes import num_processes, process_index, sum_over_processes


def classification_loss(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """L_cls: cross-entropy, averaged over each domain's images and summed over domains (Eq. 9, decision D11).

    Eq. 9 lacks the minus sign of a cross-entropy. The sum over domains follows the loop of Algorithm 1.

    Args:
        logits: Scores of real and fake, shape `(B, 2)`.
        labels: 0 real, 1 fake, shape `(B,)`.
        weights: 1 / (images of the image's domain, summed over processes), shape `(B,)`.

    Returns:
        A scalar; the sum over processes is the loss.
    """
    return (cross_entropy(_at_least_single(logits), labels, reduction="none") * weights).sum()


def alignment_loss(sources: Sequence[torch.Tensor], target: torch.Tensor) -> torch.Tensor:
    """L_sis: squared Fréchet distance between source and meta-test features (Eq. 8, decision D11).

    ``|mu_s - mu_t|^2 + Tr(S_s + S_t - 2 (S_s S_t)^(1/2))``, averaged over source domains. Eq. 8 names its means
    inconsistently; the paper's text compares source with meta-test. With A and B the centred batches over
    ``sqrt(n - 1)``, ``Tr((S_s S_t)^(1/2))`` is the nuclear norm of ``A B^T``, which is ``<U V^T, A B^T>`` with the
    orthogonal factor ``U V^T`` as a constant. Value and gradient are exact, and the decomposition needs no autograd.
    All processes have the same features and split the source domains' decompositions between them.

    Args:
        sources: Features of each source domain, each of shape `(n, P)`.
        target: Features of the meta-test domain, shape `(m, P)`.

    Returns:
        A scalar, non-negative up to rounding.

    Raises:
        ValueError: If a batch has fewer than two images.
    """
    smallest = min(len(features) for features in (*sources, target))
    if smallest < 2:
        raise ValueError(f"A covariance needs at least 2 images of each domain, found {smallest}.")
    with torch.autocast(target.device.type, enabled=False):
        b, target_mean = _centre(target)
        centred, means = zip(*map(_centre, sources), strict=True)
        # Zero rows do not change the singular values: one decomposition for source domains with different batch sizes.
        a = pad_sequence(list(centred), batch_first=True)  # (S, n, P)
        products = a @ b.T
        # The decomposition raises on non-finite values; the means below propagate them to the loss instead.
        finite = products.detach().isfinite().all()
        a_finite, b_finite = a.detach().where(finite, 0), b.detach().where(finite, 0)
        factors = torch.zeros_like(products, requires_grad=False)
        for domain in range(process_index(), len(a), num_processes()):
            factors[domain] = orthogonal_factor(a_finite[domain], b_finite)
        (factors,) = sum_over_processes([factors])
        cross = (factors * products).sum((1, 2))
        between_means = (torch.stack(means) - target_mean).square().sum(-1)
        return (between_means + a.square().sum((1, 2)) + b.square().sum() - 2 * cross).mean()


@torch.no_grad()
def orthogonal_factor(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """``U V^T`` of the singular value decomposition ``A B^T = U S V^T``; the gradient of the nuclear norm.

    Computed from the eigenvalues of the smallest Gram matrix (side n, m or P), in double precision because they are
    squared singular values.

    Args:
        a: A, shape `(n, P)`.
        b: B, shape `(m, P)`.

    Returns:
        Shape `(n, m)`; singular values of 0 are omitted.
    """
    if a.shape[1] < min(len(a), len(b)):
        (a_basis, a_core), (b_basis, b_core) = torch.linalg.qr(a.double()), torch.linalg.qr(b.double())
        return (a_basis @ orthogonal_factor(a_core, b_core).double() @ b_basis.T).to(a.dtype)
    if len(a) < len(b):
        return orthogonal_factor(b, a).T
    product = a.double() @ b.double().T
    squares, vectors = torch.linalg.eigh(product.T @ product)
    present = squares > squares[-1] * len(squares) * torch.finfo(squares.dtype).eps
    inverse = squares.where(present, 1).rsqrt().where(present, 0)
    return (product @ ((vectors * inverse) @ vectors.T)).to(a.dtype)


def _centre(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Centred batch over ``sqrt(n - 1)``, whose Gram matrix is the covariance, and the mean."""
    features = _at_least_single(features)
    mean = features.mean(0)
    return (features - mean) / (len(features) - 1) ** 0.5, mean


def masked_image_loss(
    code_logits: torch.Tensor, pixels: torch.Tensor, codes: torch.Tensor, patches: torch.Tensor
) -> torch.Tensor:
    """L_mim: cross-entropy of the hidden patches' visual codes (Eq. 7) plus L1 of their pixels (decision D7).

    Args:
        code_logits: Predicted scores of the codes, shape `(K, T)`.
        pixels: Predicted pixels, shape `(K, 3 * patch_size**2)`.
        codes: Codes of the hidden patches, shape `(K,)`.
        patches: Normalised pixels of the hidden patches, same shape as `pixels`.

    Returns:
        A scalar; both terms are means over the hidden patches.
    """
    return cross_entropy(_at_least_single(code_logits), codes) + l1_loss(_at_least_single(pixels), patches)


def _at_least_single(tensor: torch.Tensor) -> torch.Tensor:
    """Convert half precision to single precision, for accurate sums; keep double precision."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
