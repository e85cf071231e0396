"""`lora`: low-rank adapters (Hu et al. 2022) by PEFT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import nn

from gmdf_hf.common.errors import UserError
from gmdf_hf.training.classifiers import attention_maps, freeze_all_but, head_parameters
from gmdf_hf.training.methods.merged import Merged


class LoRA(Merged):
    """Fine-tuning of low-rank adapters and the head, with equal domain weights: ``W + (alpha / r) B A``, B starts at 0.

    By default the adapters are those of the linear maps of the tower's attention. The saved model has the merged
    matrices and needs no PEFT.

    On CLIP ViT-L/14 with rank 8, 1,572,864 parameters of adapters and 786,433 of projection and temperature.

    Args:
        shares: Weight of each domain's mean loss, shape `(domains,)`.
        fields: Fields of PEFT's `LoraConfig`, such as `r`, `lora_alpha`, `lora_dropout`, `target_modules`.

    Raises:
        UserError: If PEFT is not installed, or does not take a field.
    """

    def __init__(self, shares: torch.Tensor, fields: Mapping[str, Any]) -> None:
        super().__init__(shares)
        try:
            from peft import LoraConfig
        except ModuleNotFoundError as error:
            raise UserError("The method lora needs peft: pip install 'gmdf-hf[peft]'.") from error
        try:
            self.config = LoraConfig(**fields)
        except (TypeError, ValueError) as error:
            raise UserError(f"lora: expected fields of peft's LoraConfig: {' '.join(str(error).split())}") from error

    def prepare(self, model: nn.Module) -> list[nn.Parameter]:
        """Insert the adapters and freeze all but these and the head."""
        from peft import inject_adapter_in_model

        head = [parameter for parameter in head_parameters(model).values() if parameter.requires_grad]
        if self.config.target_modules is None:
            self.config.target_modules = list(attention_maps(model))
        try:
            inject_adapter_in_model(self.config, model)
        except ValueError as error:
            raise UserError(f"lora: {' '.join(str(error).split())}") from error
        for parameter in head:
            parameter.requires_grad_(True)  # PEFT freezes all but the adapters
        adapters = [parameter for name, parameter in model.named_parameters() if ".lora_" in name]
        return freeze_all_but(model, [*adapters, *head])

    def saved_state(self, model: nn.Module) -> dict[str, torch.Tensor]:
        """State with merged matrices, under the names of the plain model."""
        from peft.tuners.lora import LoraLayer

        state = {key.replace(".base_layer.", "."): tensor for key, tensor in model.state_dict().items()}
        for name, module in model.named_modules():
            if isinstance(module, LoraLayer):
                state[f"{name}.weight"] = (
                    state[f"{name}.weight"] + cast(Any, module).get_delta_weight("default").detach()
                )
                state = {key: tensor for key, tensor in state.items() if not key.startswith(f"{name}.lora_")}
        return state
