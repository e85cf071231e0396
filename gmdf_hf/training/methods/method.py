"""Base class of training methods: trainable parameters, training step and route of the images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from gmdf_hf.data.episodes import Episode
from gmdf_hf.modeling import GMDFModel
from gmdf_hf.training.classifiers import freeze_tower
from gmdf_hf.training.image_tokenizer import ImageTokenizer

Losses = dict[str, torch.Tensor]


class Method:
    """A training method of `scripts/meta_train.py`: one subclass per file, listed in `make_method`.

    Attributes:
        needs_codes: Whether the method uses L_mim, which needs visual codes.
        needs_masks: Whether the method uses what was forged in each image.
        pairs: Whether a batch has pairs of real and fake images of one group.
        trains_model: Whether the model is in training mode (a linear probe's features are frozen).
        image_tokenizer: Visual codes of patches; set by `set_up` if `needs_codes`.
        train_tower: Part of CLIP's vision tower that trains: `all`, `layer_norms` or `none`.
    """

    needs_codes: bool = False
    needs_masks: bool = False
    pairs: bool = False
    trains_model: bool = True
    image_tokenizer: ImageTokenizer | None = None

    def __init__(self, train_tower: str = "all") -> None:
        self.train_tower = train_tower

    def prepare(self, model: nn.Module) -> list[nn.Parameter]:
        """Set `requires_grad` and return the parameters that the run's optimizer updates (theta_O).

        By default the experts of a GM-DF are frozen at zero effect, so that the model equals CLIP.
        """
        if not isinstance(model, GMDFModel):
            return [parameter for parameter in model.parameters() if parameter.requires_grad]
        for parameter in model.expert_parameters().values():
            parameter.requires_grad_(False)
        return self.shared_parameters(model)

    def shared_parameters(self, model: GMDFModel) -> list[nn.Parameter]:
        """theta_O of a GM-DF, with the tower frozen according to `train_tower`."""
        if self.train_tower != "all":
            freeze_tower(model, but_layer_norms=self.train_tower == "layer_norms")
        return list(model.shared_parameters().values())

    def step(self, model: Any, episode: Episode, accelerator: Accelerator) -> Losses:
        """Compute the gradients of theta_O in `.grad`.

        Args:
            model: The detector.
            episode: Images of all domains.
            accelerator: Accelerator of the run, with precision and gradient scaler.

        Returns:
            This process's share of each loss; the sum over processes is the loss.
        """
        raise NotImplementedError

    def describe_step(self, model: Any, episode: Episode, accelerator: Accelerator) -> dict[str, float]:
        """Statistics of the next step for the run's history; has no side effects."""
        return {}

    def route(self, model: nn.Module) -> nn.Module:
        """Model for scoring images; by default their domain is unknown, as for an unseen domain."""
        return model

    def saved_state(self, model: nn.Module) -> dict[str, torch.Tensor] | None:
        """State of the model to save, if `prepare` changed its architecture; None for its own."""
        return None

    def changed_tensors(self, model: nn.Module) -> Sequence[torch.Tensor]:
        """Tensors that `step` changes in place, to be restored if the iteration fails."""
        return list(self.state().values())

    def state(self) -> Mapping[str, torch.Tensor]:
        """The method's tensors that a resumed run needs; loaded in place."""
        return {}
