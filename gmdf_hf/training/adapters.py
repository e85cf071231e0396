"""Single domain experts: add one to a trained model, train it alone, save and load it (a few megabytes).

The parameters of domain n (its expert and DIL in every block, its prompt vector, its text affine) are row n of the
parameters that `GMDFModel.expert_parameters` names.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.hooks import RemovableHandle

from gmdf_hf.modeling import GMDFModel
from gmdf_hf.modeling.loading_gmdf import BrokenModelError
from gmdf_hf.modeling.untrusted_gmdf import refusing_damage

BASE_FIELDS = ("name", "revision", "sha256")
WEIGHTS_NAME, DESCRIPTION_NAME = "expert.safetensors", "expert.json"


def add_domain(model: GMDFModel, domain: str) -> int:
    """Add a domain whose expert starts at zero effect.

    Scores with known `domain_ids` stay bit-identical, because the rows of the other domains are copied. Scores without
    `domain_ids` change, because the mean over experts includes the new one.

    Args:
        model: Detector; changed in place.
        domain: Name of the new domain.

    Returns:
        Index of the new domain.

    Raises:
        ValueError: If the model already has that domain.
    """
    if not domain or domain in model.config.domains:
        raise ValueError(f"A new domain needs a new name, found {domain!r}, which is in {model.config.domains}.")
    config = copy.deepcopy(model.config)
    config.domains, config.slim = [domain], True
    for name, fresh in type(model)(config).expert_parameters().items():
        owner, _, attribute = name.rpartition(".")
        module = model.get_submodule(owner)
        old = getattr(module, attribute)
        grown = torch.cat([old.data, fresh.data.to(old)])
        setattr(module, attribute, nn.Parameter(grown, requires_grad=old.requires_grad))
    model.config.domains = [*model.config.domains, domain]
    return len(model.config.domains) - 1


def train_only_domain(model: GMDFModel, domain: str) -> dict[str, nn.Parameter]:
    """Freeze all but one domain's expert, prompt vector and text affine.

    The rows of the other domains are in the same tensors. A hook sets their gradient to zero, so that a new optimizer
    without weight decay leaves them bit-identical.

    Args:
        model: Detector; changed in place.
        domain: Name of the domain to train.

    Returns:
        The parameters to give to the optimizer, by name.

    Raises:
        ValueError: If the model has no such domain.
    """
    index = model.domain_id(domain)
    model.requires_grad_(False)

    def own_row(gradient: torch.Tensor) -> torch.Tensor:
        kept = torch.zeros_like(gradient)
        kept[index] = gradient[index]
        return kept

    hooks: list[RemovableHandle] = getattr(model, "_own_row_hooks", [])  # of the domain trained before
    for hook in hooks:
        hook.remove()
    parameters = model.expert_parameters()
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    hooks = [parameter.register_hook(own_row) for parameter in parameters.values()]
    model.__dict__["_own_row_hooks"] = hooks  # bypasses `nn.Module.__setattr__`, which is not typed for a list
    return parameters


def base_digest(model: GMDFModel) -> str:
    """SHA-256 of an expert's base: the shared weights of the vision side and the class sentences."""
    experts = model.expert_parameters()
    digest = hashlib.sha256(json.dumps(model.config.prompt_ids).encode())
    for name, parameter in sorted(model.named_parameters()):
        if name not in experts and not name.startswith(("text_model.", "text_projection.", "mim_head.")):
            data = parameter.detach().cpu().contiguous().flatten().view(torch.uint8)
            digest.update(name.encode())
            digest.update(data.numpy().tobytes())
    return digest.hexdigest()


def save_expert(model: GMDFModel, domain: str, save_directory: str | os.PathLike) -> None:
    """Write one domain's expert: `expert.safetensors`, and `expert.json` with the digest of its base.

    Args:
        model: Detector.
        domain: Name of the domain.
        save_directory: Folder to write.

    Raises:
        ValueError: If the model has no such domain.
    """
    index, folder = model.domain_id(domain), Path(save_directory)
    folder.mkdir(parents=True, exist_ok=True)
    rows = {name: value.detach()[index].cpu().clone() for name, value in model.expert_parameters().items()}
    name = str(model.config.name_or_path)
    description = {
        "domain": domain,
        "base": {
            "name": Path(name).name if os.path.isdir(name) else name,
            "revision": getattr(model.config, "_commit_hash", None),
            "sha256": base_digest(model),
        },
    }
    save_file(rows, folder / WEIGHTS_NAME, metadata={"format": "pt"})
    (folder / DESCRIPTION_NAME).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def load_expert(
    model: GMDFModel, name_or_path: str | os.PathLike, revision: str | None = None, token: str | None = None
) -> int:
    """Add a domain with the expert that `save_expert` wrote.

    Args:
        model: Detector; changed in place.
        name_or_path: Folder, or repository on the hub.
        revision: Branch, tag or commit of the repository.
        token: Token for a private repository.

    Returns:
        Index of the new domain.

    Raises:
        ValueError: If the expert has another base or other shapes, or the model already has its domain.
        OSError: If the expert is not found.
    """
    files = [Path(name_or_path) / name for name in (DESCRIPTION_NAME, WEIGHTS_NAME)]
    if not os.path.isdir(name_or_path):
        names = (DESCRIPTION_NAME, WEIGHTS_NAME)
        files = [Path(hf_hub_download(str(name_or_path), name, revision=revision, token=token)) for name in names]
    with refusing_damage(name_or_path):
        description = json.loads(files[0].read_text(encoding="utf-8"))
        domain, base = str(description["domain"]), {key: description["base"][key] for key in BASE_FIELDS}
        rows = load_file(files[1])
    if broken := sorted(n for n, row in rows.items() if not row.is_floating_point() or not row.isfinite().all()):
        raise BrokenModelError(f"{name_or_path} is damaged: no finite floating-point numbers in {broken[0]}.")
    digest = base_digest(model)
    if digest != base["sha256"]:
        raise ValueError(
            f"The expert {name_or_path} was trained on another base: expected {base['name']} at revision "
            f"{base['revision']} with SHA-256 {base['sha256']}, in the precision it was trained in, found {digest}."
        )
    shapes = {name: tuple(value.shape[1:]) for name, value in model.expert_parameters().items()}
    found = {name: tuple(value.shape) for name, value in rows.items()}
    if found != shapes:
        wrong = sorted(name for name in shapes | found if shapes.get(name) != found.get(name))[0]
        raise ValueError(
            f"The expert {name_or_path} does not fit: expected {wrong} of shape {shapes.get(wrong)}, "
            f"found {found.get(wrong)}."
        )
    index = add_domain(model, domain)
    with torch.no_grad():
        for name, parameter in model.expert_parameters().items():
            parameter[index] = rows[name].to(parameter)
    return index
