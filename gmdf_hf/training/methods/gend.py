"""`gend`: GenD (Yermakov et al. 2025), layer normalisations and head on the hypersphere."""

from __future__ import annotations

import math

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.functional import normalize, pdist

from gmdf_hf.common.processes import num_processes
from gmdf_hf.data.episodes import Episode
from gmdf_hf.training.classifiers import features_of, freeze_all_but, head_parameters, norm_parameters
from gmdf_hf.training.methods.merged import Merged, backward, merged_losses
from gmdf_hf.training.methods.method import Losses

ALIGNMENT, UNIFORMITY = 0.1, 0.5  # weights alpha and beta of the losses
TEMPERATURE = 2.0  # t of the uniformity


def alignment(features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """``mean |x - y|^2`` over all pairs of images of one class (Wang & Isola 2020); 0 without a pair.

    Args:
        features: Of unit length, shape `(B, D)`.
        labels: Class of each image, shape `(B,)`.
    """
    first, second = torch.triu_indices(len(labels), len(labels), 1, device=labels.device)
    same = labels[first] == labels[second]
    squares = (features[first] - features[second]).pow(2).sum(1)
    return (squares * same).sum() / same.sum().clamp(min=1)


def uniformity(features: torch.Tensor) -> torch.Tensor:
    """``log mean exp(-t |x - y|^2)`` over all pairs of images (Wang & Isola 2020); 0 for fewer than two.

    Args:
        features: Of unit length, shape `(B, D)`.
    """
    if len(features) < 2:
        return features.sum() * 0
    exponents = -TEMPERATURE * pdist(features).pow(2)
    return exponents.logsumexp(0) - math.log(len(exponents))


class GenD(Merged):
    """GenD: ``L = L_ce + 0.1 L_align + 0.5 L_unif``, on paired real and fake images.

    Only the gains and biases of the normalisations and the head train. The losses are those of features of unit length.
    On CLIP they are the projected ones, whose cosines to the class sentences are the logits: the projection takes the
    place of GenD's linear head. The head of another classifier gets features that are not normalised, so that the saved
    model is a plain one. With several processes, pairs are those of one process.

    On CLIP ViT-L/14, 102,400 parameters of layer normalisations and 786,433 of projection and temperature; published
    are 0.03 % of the network, which are the normalisations and 2,050 of the head.

    Args:
        shares: Weight of each domain's mean loss, shape `(domains,)`.
    """

    pairs = True

    def prepare(self, model: nn.Module) -> list[nn.Parameter]:
        """Freeze all but normalisations and head."""
        return freeze_all_but(model, [*norm_parameters(model), *head_parameters(model).values()])

    def step(self, model: nn.Module, episode: Episode, accelerator: Accelerator) -> Losses:
        """Cross-entropy of the merged domains, alignment and uniformity."""
        with accelerator.autocast(), features_of(model) as features:
            losses, _ = merged_losses(model, episode, self.shares)
        on_sphere = normalize(features[0].flatten(1).float(), dim=-1)
        losses["alignment"] = ALIGNMENT * alignment(on_sphere, episode.labels) / num_processes()
        losses["uniformity"] = UNIFORMITY * uniformity(on_sphere) / num_processes()
        return backward(losses, accelerator)
