"""`effort`: Effort (Yan et al. 2025), training in the subspace orthogonal to what a vision tower knows."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.functional import linear

from gmdf_hf.common.processes import num_processes
from gmdf_hf.data.episodes import Episode
from gmdf_hf.training.classifiers import attention_maps, freeze_all_but, head_parameters
from gmdf_hf.training.methods.merged import Merged, backward, merged_losses
from gmdf_hf.training.methods.method import Losses

RANK = 1  # n - r: singular vectors that train
ORTHOGONALITY, SINGULAR_VALUES = 1.0, 1.0  # weights lambda of the constraints


class SubspaceLinear(nn.Linear):
    """A linear map ``W = U_r S_r V_r + u s v`` by its singular values: the first term is frozen, the second trains.

    Args:
        original: The map to start from, which the new one equals.
        rank: Number of singular vectors, those of the smallest values, in the second term.
    """

    frozen_left: torch.Tensor
    frozen_right: torch.Tensor
    squared_norm: torch.Tensor

    def __init__(self, original: nn.Linear, rank: int = RANK) -> None:
        super().__init__(original.in_features, original.out_features, device="meta")
        left, values, right = torch.linalg.svd(original.weight.detach(), full_matrices=False)
        kept = len(values) - rank
        self.weight = nn.Parameter((left[:, :kept] * values[:kept]) @ right[:kept], requires_grad=False)
        self.bias = original.bias
        self.left, self.right = nn.Parameter(left[:, kept:].clone()), nn.Parameter(right[kept:].clone())
        self.values = nn.Parameter(values[kept:].clone())
        # Not saved: the decomposition of the backbone gives them again.
        self.register_buffer("frozen_left", left[:, :kept].clone(), persistent=False)
        self.register_buffer("frozen_right", right[:kept].clone(), persistent=False)
        self.register_buffer("squared_norm", values.square().sum(), persistent=False)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Map inputs of shape `(..., in_features)`."""
        return super().forward(input) + linear(linear(input, self.right) * self.values, self.left)

    def merged(self) -> torch.Tensor:
        """The whole matrix W, shape `(out_features, in_features)`."""
        return self.weight + (self.left * self.values) @ self.right

    def orthogonality(self) -> torch.Tensor:
        """``|U^T U - I|^2 + |V V^T - I|^2`` (Frobenius) of frozen and trained singular vectors together.

        The frozen ones are orthonormal, which leaves the products that a trained one takes part in.
        """
        one = torch.eye(len(self.values), device=self.values.device)
        loss = self.values.new_zeros(())
        for trained, frozen in ((self.left, self.frozen_left), (self.right.T, self.frozen_right.T)):
            loss = loss + 2 * (frozen.T @ trained).square().sum() + (trained.T @ trained - one).square().sum()
        return loss

    def norm_change(self) -> torch.Tensor:
        """``| |W|^2 - |W_0|^2 |`` (Frobenius), with the original W_0: the sum of squared singular values is kept."""
        return (self.merged().square().sum() - self.squared_norm).abs()


class Effort(Merged):
    """Effort: ``L = L_ce + (L_orth + L_ksv)``, the two constraints being means over the maps.

    In each linear map of the tower's attention the principal subspace is frozen and the residual one, of rank 1,
    trains; besides, the head. The paper's weights of the constraints are not known to us; 1 is ours. The saved model
    has the merged matrices and is a plain one.

    On CLIP ViT-L/14, 196,704 parameters in the maps (published: 0.19 M) and 786,433 of projection and temperature,
    which take the place of the linear head.

    Args:
        shares: Weight of each domain's mean loss, shape `(domains,)`.
    """

    def prepare(self, model: nn.Module) -> list[nn.Parameter]:
        """Decompose the attention's maps, and freeze all but residuals and head."""
        trained = list(head_parameters(model).values())
        self.maps = []
        for name, original in attention_maps(model).items():
            new = SubspaceLinear(original)
            model.set_submodule(name, new)
            self.maps.append(new)
            trained += [new.left, new.values, new.right]
        return freeze_all_but(model, trained)

    def step(self, model: nn.Module, episode: Episode, accelerator: Accelerator) -> Losses:
        """Cross-entropy of the merged domains, and the constraints."""
        with accelerator.autocast():
            losses, _ = merged_losses(model, episode, self.shares)
        share = 1 / (len(self.maps) * num_processes())
        each = [torch.stack([one.orthogonality(), one.norm_change()]) for one in self.maps]
        of_maps = torch.stack(each).sum(0)
        losses["orthogonality"] = ORTHOGONALITY * share * of_maps[0]
        losses["norm_change"] = SINGULAR_VALUES * share * of_maps[1]
        return backward(losses, accelerator)

    def saved_state(self, model: nn.Module) -> dict[str, torch.Tensor]:
        """State with merged matrices."""
        state = model.state_dict()
        for name, module in model.named_modules():
            if isinstance(module, SubspaceLinear):
                state[f"{name}.weight"] = module.merged().detach()
                for part in ("left", "values", "right"):
                    del state[f"{name}.{part}"]
        return state
