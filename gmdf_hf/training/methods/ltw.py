"""`ltw`: learning to weight (LTW, Sun et al. 2021), a weight for each image learned on a meta-test domain."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from accelerate import Accelerator
from torch import nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy

from gmdf_hf.common.processes import sum_over_processes
from gmdf_hf.data.episodes import Episode
from gmdf_hf.modeling import GMDFModel
from gmdf_hf.training.classifiers import features_of, head_map
from gmdf_hf.training.methods.merged import backward
from gmdf_hf.training.methods.method import Losses, Method

COMPACT, META_TEST = 0.01, 1.0  # weights lambda and beta
HIDDEN = 100  # units in the weight net


class WeightNet(nn.Module):
    """Weight of each image from its features: ``V(f) = 2 sigmoid(MLP(f))``, 1 at the start.

    Args:
        features: Number of features.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        last = nn.Linear(HIDDEN, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(nn.Linear(features, HIDDEN), nn.ReLU(), last)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Weights of shape `(B,)` of features `(B, D)`."""
        return 2 * torch.sigmoid(self.layers(features)[:, 0])


def compactness(fake: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor, centre: torch.Tensor) -> torch.Tensor:
    """Intra-class compact loss: mean of ``(p - c)^2`` over reals less that over fakes, c being the reals' centre.

    Args:
        fake: Probability p of fake, shape `(B,)`.
        labels: 0 real, 1 fake, shape `(B,)`.
        weights: Of each image in the mean, shape `(B,)`.
        centre: c, a scalar without gradient.
    """
    return ((fake - centre).square() * (1 - 2 * labels) * weights).sum()


class LTW(Method):
    """LTW: ``grad_theta (F(theta) + beta G(theta'))`` with ``theta' = theta - alpha grad_theta F(theta, w)``.

    F is the loss of the meta-train domains, ``sum_i V_w(f_i) l_i + lambda L_icc``, with a weight net V_w; G is the
    cross-entropy of the meta-test domain. The weight net descends on G alone, through theta', because F is least
    without any weight. Both gradients are exact, of second order. After the released settings, lambda is 0.01 and
    beta 1.

    Ours, where the paper's form is not known to us: L_icc on probabilities, which bounds its second term; the layers of
    the weight net; a plain gradient step to theta'. A detector's own losses are left out.

    Args:
        inner_learning_rate: alpha.
        train_tower: As in `Method`.
    """

    def __init__(self, inner_learning_rate: float, train_tower: str = "all") -> None:
        super().__init__(train_tower)
        self.inner_learning_rate = inner_learning_rate

    def prepare(self, model: nn.Module) -> list[nn.Parameter]:
        """Add the parameters of the weight net."""
        parameters = super().prepare(model)
        features = model.config.projection_dim if isinstance(model, GMDFModel) else head_map(model).in_features
        self.net = WeightNet(features).to(parameters[0].device)
        # Mean probability of fake over the reals so far, and their number.
        self.reals = torch.zeros(2, dtype=torch.float64, device=parameters[0].device)
        return [*parameters, *self.net.parameters()]

    def step(self, model: nn.Module, episode: Episode, accelerator: Accelerator) -> Losses:
        """One meta-iteration; `source` is the weighted loss of the meta-train domains.

        Raises:
            ValueError: If the run uses a gradient scaler, which is not supported.
        """
        if accelerator.scaler is not None:
            raise ValueError("ltw takes its inner step without a gradient scaler: use mixed_precision no or bf16.")
        theta = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        rows, test = episode.source, episode.target
        labels, weights = episode.labels[rows], episode.weights[rows] / len(episode.source_domains)
        # Fused attention kernels have no second derivative.
        with accelerator.autocast(), sdpa_kernel(SDPBackend.MATH):
            each, fake, features = self.losses_of(model, theta, episode, rows)
            chosen = self.net(features)
            self.move_centre(fake.detach()[labels == 0])
            compact = COMPACT * compactness(fake, labels, weights, self.reals[0].to(fake))
            inner = (chosen * each * weights).sum() + compact
            found = torch.autograd.grad(inner, list(theta.values()), create_graph=True, allow_unused=True)
            filled = [torch.zeros_like(p) if g is None else g for p, g in zip(theta.values(), found, strict=True)]
            steps = zip(theta.items(), sum_over_processes(filled), strict=True)
            moved = {name: parameter - self.inner_learning_rate * gradient for (name, parameter), gradient in steps}
            of_test = self.losses_of(model, moved, episode, test)[0]
        losses = {
            "source": (chosen.detach() * each * weights).sum(),
            "compact": compact,
            "classification": META_TEST * (of_test * episode.weights[test]).sum(),
        }
        return backward(losses, accelerator)

    def losses_of(
        self, model: nn.Module, theta: Mapping[str, torch.Tensor], episode: Episode, rows: slice
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Cross-entropy `(n,)`, probability of fake `(n,)` and detached features `(n, D)` of images, at theta."""
        inputs = {"pixel_values": episode.pixel_values[rows]}
        if episode.prompt_ids is not None:
            inputs["prompt_ids"] = episode.prompt_ids[rows]
        with features_of(model) as features:
            logits = functional_call(model, dict(theta), (), inputs).logits.float()
        each = cross_entropy(logits, episode.labels[rows], reduction="none")
        return each, logits.softmax(1)[:, 1], features[0].flatten(1).detach().float()

    @torch.no_grad()
    def move_centre(self, of_reals: torch.Tensor) -> None:
        """Include probabilities of reals `(n,)`, those of other processes too, in the running mean."""
        new = torch.stack([of_reals.sum(), of_reals.new_tensor(float(len(of_reals)))]).to(self.reals)
        total, count = sum_over_processes([new])[0] + torch.stack([self.reals.prod(), self.reals[1]])
        self.reals.copy_(torch.stack([total / count.clamp(min=1), count]))

    def state(self) -> Mapping[str, torch.Tensor]:
        """Weight net and centre of the reals."""
        return {"reals": self.reals} | {f"net.{name}": tensor for name, tensor in self.net.state_dict().items()}
