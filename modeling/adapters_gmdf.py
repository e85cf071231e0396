"""Domain experts on their own: growing a trained model by one, and files of a few megabytes that hold one."""

import copy
import hashlib
import json
import os
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file, save_file
from torch import nn

# theta_E of Algorithm 1: what the inner step trains. All else is theta_O.
EXPERT_PARAMETERS = (".experts.", "domain_prompts", "text_affine.")
WEIGHTS_NAME, DESCRIPTION_NAME = "expert.safetensors", "expert.json"


class ExpertAdapterMixin:
    """What a `GMDFModel` can do with single experts.

    All that belongs to domain n - its expert and DIL in every block, its prompt vector, its text affine - is row n of
    the parameters that `expert_parameters` names, and nothing else is.
    """

    def expert_parameters(self) -> dict[str, nn.Parameter]:
        """theta_E of Algorithm 1 by name: experts, their DILs and alphas, prompt vectors, text affines."""
        return {n: p for n, p in self.named_parameters() if any(part in n for part in EXPERT_PARAMETERS)}

    def domain_id(self, domain: str) -> int:
        """Index of a source domain's expert.

        Args:
            domain: Name of the domain.

        Raises:
            ValueError: If the model was not trained on that domain.
        """
        if domain not in self.config.domains:
            raise ValueError(f"This model knows the domains {self.config.domains}, found {domain!r}.")
        return self.config.domains.index(domain)

    def add_domain(self, domain: str) -> int:
        """Grow the model by a domain, whose expert starts at zero effect.

        Scores with known `domain_ids` stay as they are, to the bit: the others' rows are copied. Scores without do
        change, for one more expert, silent at first, takes part in the mean.

        Args:
            domain: Name of the new domain.

        Returns:
            Its index.

        Raises:
            ValueError: If the model has that domain.
        """
        if not domain or domain in self.config.domains:
            raise ValueError(f"A new domain needs a new name, found {domain!r} beside {self.config.domains}.")
        config = copy.deepcopy(self.config)
        config.domains, config.slim = [domain], True
        for name, fresh in type(self)(config).expert_parameters().items():
            owner, _, attribute = name.rpartition(".")
            module = self.get_submodule(owner)
            old = getattr(module, attribute)
            grown = torch.cat([old.data, fresh.data.to(old)])
            setattr(module, attribute, nn.Parameter(grown, requires_grad=old.requires_grad))
        self.config.domains = [*self.config.domains, domain]
        return len(self.config.domains) - 1

    def train_only_domain(self, domain: str) -> dict[str, nn.Parameter]:
        """Freeze all but one domain's expert, prompt vector and text affine.

        The rows of the other domains are in the same tensors: their gradient is set to zero as it is made, so that an
        optimizer without weight decay and with no earlier steps leaves them as they are, to the bit.

        Args:
            domain: Name of the domain to train.

        Returns:
            The parameters to give to the optimizer, by name.

        Raises:
            ValueError: If the model has no such domain.
        """
        index = self.domain_id(domain)
        self.requires_grad_(False)

        def own_row(gradient: torch.Tensor) -> torch.Tensor:
            kept = torch.zeros_like(gradient)
            kept[index] = gradient[index]
            return kept

        for hook in getattr(self, "_own_row_hooks", ()):  # of a domain trained before
            hook.remove()
        parameters = self.expert_parameters()
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        self._own_row_hooks = [parameter.register_hook(own_row) for parameter in parameters.values()]
        return parameters

    def base_digest(self) -> str:
        """SHA-256 of what an expert was trained beside: shared weights of the vision side, and the class sentences."""
        experts = self.expert_parameters()
        digest = hashlib.sha256(json.dumps(self.config.prompt_ids).encode())
        for name, parameter in sorted(self.named_parameters()):
            if name not in experts and not name.startswith(("text_model.", "text_projection.", "mim_head.")):
                data = parameter.detach().cpu().contiguous().flatten().view(torch.uint8)
                digest.update(name.encode())
                digest.update(data.numpy())
        return digest.hexdigest()

    def save_expert(self, domain: str, save_directory: str | os.PathLike) -> None:
        """Write one domain's expert: `expert.safetensors` and `expert.json`, which says what base it belongs to.

        Args:
            domain: Name of the domain.
            save_directory: Folder to write.

        Raises:
            ValueError: If the model has no such domain.
        """
        index, folder = self.domain_id(domain), Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        rows = {name: value.detach()[index].cpu().clone() for name, value in self.expert_parameters().items()}
        name = self.config.name_or_path
        description = {
            "domain": domain,
            "base": {
                "name": Path(name).name if os.path.isdir(name) else name,
                "revision": getattr(self.config, "_commit_hash", None),
                "sha256": self.base_digest(),
            },
        }
        save_file(rows, folder / WEIGHTS_NAME, metadata={"format": "pt"})
        (folder / DESCRIPTION_NAME).write_text(json.dumps(description, indent=2) + "\n")

    def load_expert(
        self, name_or_path: str | os.PathLike, revision: str | None = None, token: str | None = None
    ) -> int:
        """Add a domain with the expert that `save_expert` wrote.

        Args:
            name_or_path: Folder, or repository on the hub.
            revision: Branch, tag or commit of the repository.
            token: Token for a private repository.

        Returns:
            Index of the new domain.

        Raises:
            ValueError: If the expert belongs to another base, does not fit, or its domain is there already.
            OSError: If it cannot be found.
        """
        files = [Path(name_or_path) / name for name in (DESCRIPTION_NAME, WEIGHTS_NAME)]
        if not os.path.isdir(name_or_path):
            names = (DESCRIPTION_NAME, WEIGHTS_NAME)
            files = [hf_hub_download(str(name_or_path), name, revision=revision, token=token) for name in names]
        description = json.loads(Path(files[0]).read_text())
        domain, base = description["domain"], description["base"]
        digest = self.base_digest()
        if digest != base["sha256"]:
            raise ValueError(
                f"The expert {name_or_path} was trained on another base: expected {base['name']} at revision "
                f"{base['revision']} with SHA-256 {base['sha256']}, in the precision it was trained in, found {digest}."
            )
        rows = load_file(files[1])
        shapes = {name: tuple(value.shape[1:]) for name, value in self.expert_parameters().items()}
        found = {name: tuple(value.shape) for name, value in rows.items()}
        if found != shapes:
            wrong = sorted(name for name in shapes | found if shapes.get(name) != found.get(name))[0]
            raise ValueError(
                f"The expert {name_or_path} does not fit: expected {wrong} of shape {shapes.get(wrong)}, "
                f"found {found.get(wrong)}."
            )
        index = self.add_domain(domain)
        with torch.no_grad():
            for name, parameter in self.expert_parameters().items():
                parameter[index] = rows[name].to(parameter)
        return index
