"""Loading of any image classifier with the classes real and fake: GM-DF, transformers, timm, PEFT adapters."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError
from torch import nn
from transformers import AutoImageProcessor, AutoModelForImageClassification, PreTrainedConfig, PreTrainedModel
from transformers.utils import cached_file
from transformers.utils.peft_utils import ADAPTER_SAFE_WEIGHTS_NAME, find_adapter_config_file

from gmdf_hf.common.errors import UserError, unusable
from gmdf_hf.common.files import printable
from gmdf_hf.common.hub import hub_or_cache
from gmdf_hf.common.labels import class_names, class_of, fake_class
from gmdf_hf.evaluation.operating_point import FILE_NAME, OperatingPoint, read_operating_point
from gmdf_hf.modeling.auto_gmdf import GMDFConfig, GMDFModel
from gmdf_hf.modeling.loading_gmdf import check_weights
from gmdf_hf.modeling.untrusted_gmdf import check_config, check_files, check_processor, refusing_damage

LOG_IN = (
    "Log in with a token that may read it (`hf auth login`, or set HF_TOKEN); accept the terms on the page of a gated "
    "model first."
)


@dataclass(frozen=True)
class Classifier:
    """A detector ready for use.

    Attributes:
        model: Classifier whose output has `logits` of shape `(B, 2)`, in evaluation mode.
        processor: Its image processor.
        fake: Index of its fake class.
    """

    model: PreTrainedModel
    processor: Any
    fake: int


def split_revision(model: str, revision: str | None = None) -> tuple[str, str | None]:
    """Split a model name into folder or hub name, and revision, as in `user/name@v1`.

    Raises:
        UserError: If name and argument both give a revision.
    """
    name, at, found = model.rpartition("@")
    if not at or os.path.exists(model):
        return model, revision
    if revision is not None and revision != found:
        raise UserError(
            f"The model {model!r} names the revision {found!r}, and --revision is {revision!r}: expected one."
        )
    return name, found


def is_gmdf(model: nn.Module) -> bool:
    """Whether a model is a GM-DF, which has experts and always gives the logits of real and fake in this order."""
    return cast(Any, model).config.model_type == GMDFConfig.model_type


def weights_digest(model: nn.Module) -> str:
    """First 16 hexadecimal digits of the SHA-256 over names and values of all weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def find_operating_point(model: PreTrainedModel, name: str, revision: str | None = None) -> OperatingPoint | None:
    """Operating point beside a model, in its folder or on the hub; None if there is none.

    Raises:
        UserError: See `read_operating_point`.
    """
    name, revision = split_revision(name, revision)
    with hub_or_cache(name):
        path = cached_file(
            name,
            FILE_NAME,
            revision=revision or "main",
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    return None if path is None else read_operating_point(Path(path), weights_digest(model))


def load_classifier(
    model: str,
    revision: str | None = None,
    trust_remote_code: bool = False,
    fake_label: str | None = None,
    with_processor: bool = True,
) -> Classifier:
    """Load a detector and its image processor, from safetensors only.

    A PEFT adapter is loaded onto its base; a `config.json` beside the adapter names the classes of a new head.

    Args:
        model: Folder, or name on the hub, which may end in `@revision`.
        revision: Commit, branch or tag of a model on the hub.
        trust_remote_code: Whether to run code of the model's repository.
        fake_label: Name of the fake class, if its name does not tell.
        with_processor: Whether the image processor is needed; otherwise it is None.

    Raises:
        UserError: If the model does not exist, cannot be read, is damaged, or is no detector.
    """
    name, revision = split_revision(model, revision)
    options: dict[str, Any] = {"revision": revision or "main", "trust_remote_code": trust_remote_code}
    try:
        with hub_or_cache(name):
            adapter = find_adapter_config_file(name, revision=options["revision"])
            if adapter is None:
                loaded = _load_model(name, options)
                places = [(name, options)]
            else:
                base, base_options = _base_of(Path(adapter), name, trust_remote_code)
                loaded = _load_adapter(Path(adapter), name, options, base, base_options)
                places = [(name, options), (base, base_options)]
            processor = _load_processor(places) if with_processor else None
        return Classifier(loaded.eval(), processor, _fake_class(loaded, fake_label))
    except (ImportError, OSError, ValueError) as error:
        _refuse(model, error)


def _load_model(name: str, options: dict[str, Any]) -> PreTrainedModel:
    with refusing_damage(name):
        fields, _ = PreTrainedConfig.get_config_dict(name, revision=options["revision"])
        if fields.get("model_type") == GMDFConfig.model_type:
            return GMDFModel.from_pretrained(name, revision=options["revision"])
        loaded, report = _load_other(name, options)
        check_weights(loaded, report, name)
    return loaded


def _load_other(name: str, options: dict[str, Any], **fields: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Load a classifier of transformers or timm, and the report on its weights."""
    check_config(PreTrainedConfig.get_config_dict(name, revision=options["revision"])[0], name)
    if os.path.isdir(name):
        check_files(name)
    return AutoModelForImageClassification.from_pretrained(
        name, output_loading_info=True, use_safetensors=True, **options, **fields
    )


def _base_of(adapter: Path, name: str, trust_remote_code: bool) -> tuple[str, dict[str, Any]]:
    """Name and loading options of an adapter's base."""
    try:
        settings = json.loads(adapter.read_text(encoding="utf-8"))
        base, revision = settings["base_model_name_or_path"], settings.get("revision")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the adapter {name} does not name its base in {adapter.name}") from error
    return str(base), {"revision": revision or "main", "trust_remote_code": trust_remote_code}


def _load_adapter(
    adapter: Path, name: str, options: dict[str, Any], base: str, base_options: dict[str, Any]
) -> PreTrainedModel:
    """Load a base and an adapter onto it; weights that do not fit must be replaced by the adapter."""
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise UserError(f"{name} is a PEFT adapter: pip install 'gmdf-hf[peft]'.") from error
    if os.path.isdir(name) and not Path(name, ADAPTER_SAFE_WEIGHTS_NAME).is_file():
        raise ValueError(f"the adapter has no {ADAPTER_SAFE_WEIGHTS_NAME}; pickled weights are not read")
    classes = _classes_beside(name, options["revision"])
    fields = {} if classes is None else {"id2label": classes, "ignore_mismatched_sizes": True}
    loaded, report = _load_other(base, base_options, **fields)
    own = class_names(loaded.config)
    if classes is None and len(own) != 2:
        raise ValueError(
            f"its base {base} has {len(own)} classes; an adapter with a head of its own needs a "
            "config.json beside it that names its two classes (model.config.save_pretrained)"
        )
    replaced = json.loads(adapter.read_text(encoding="utf-8")).get("modules_to_save") or []
    new = {str(key[0] if isinstance(key, tuple) else key) for key in report["mismatched_keys"]} | report["missing_keys"]
    check_weights(
        loaded,
        report
        | {"mismatched_keys": [], "missing_keys": [key for key in new if not set(key.split(".")) & set(replaced)]},
        base,
    )
    found = loaded.load_adapter(name, use_safetensors=True, adapter_kwargs={"revision": options["revision"]})
    if found.missing_keys or found.unexpected_keys:
        keys = ", ".join(sorted(map(str, {*found.missing_keys, *found.unexpected_keys}))[:3])
        raise ValueError(f"the adapter does not fit its base {base}: {keys}")
    return loaded


def _classes_beside(adapter: str, revision: str) -> dict[int, str] | None:
    """Class names of the configuration beside an adapter, if there is one."""
    path = cached_file(adapter, "config.json", revision=revision, _raise_exceptions_for_missing_entries=False)
    if path is None:
        return None
    names = json.loads(Path(path).read_text(encoding="utf-8"))["id2label"]
    return {int(number): str(name) for number, name in names.items()}


def _load_processor(places: list[tuple[str, dict[str, Any]]]) -> Any:
    """Image processor of the first place that has one: an adapter usually leaves it to its base."""
    for position, (name, options) in enumerate(places):
        try:
            with refusing_damage(name):
                processor = AutoImageProcessor.from_pretrained(name, **options)
        except (OSError, ValueError):
            if position == len(places) - 1:
                raise
            continue
        check_processor(processor, name)
        return processor
    raise AssertionError("no place to look")


def _fake_class(model: PreTrainedModel, fake_label: str | None) -> int:
    names = class_names(model.config)
    if is_gmdf(model) and [class_of(names[number]) for number in (0, 1)] != [0, 1]:
        raise ValueError(f"its classes are {printable(', '.join(names.values()))}, expected names of real and fake")
    return fake_class(names, fake_label)


def _refuse(model: str, error: Exception) -> NoReturn:
    """Raise the one-sentence error for an exception of the hub or of transformers."""
    if isinstance(error, UserError):
        raise error
    cause: BaseException | None = error
    while cause is not None:
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if isinstance(cause, GatedRepoError):
            raise UserError(f"The model {model!r} is gated: your token may not read it.", LOG_IN) from error
        if isinstance(cause, RepositoryNotFoundError) or (isinstance(cause, HfHubHTTPError) and status in (401, 403)):
            raise UserError(f"The model {model!r} does not exist on the hub, or is private.", LOG_IN) from error
        cause = cause.__cause__ or cause.__context__
    text = " ".join(str(error).split())
    if "trust_remote_code" in text:
        raise UserError(
            f"The model {model!r} needs code of its own repository, which is not run unasked.",
            "Read that code, then pass --trust_remote_code, or choose a model without code.",
        ) from error
    raise unusable("model", model, error) from error
