"""Publishing a run on the hub: model, processor, pipeline, code, card, recipe and results in one commit."""

from __future__ import annotations

import json
from pathlib import Path

import yaml
from huggingface_hub import CommitOperationAdd, HfApi, ModelCardData
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from gmdf_hf.common.errors import UserError
from gmdf_hf.evaluation.report import public_recipe
from gmdf_hf.modeling import GMDFConfig
from gmdf_hf.training.adapters import DESCRIPTION_NAME, WEIGHTS_NAME

MODEL_SUFFIXES = (".json", ".safetensors", ".py")
PLACEHOLDER = "<this repository>"
EXPERT_CARD = """\
---
{header}
---

# The domain `{domain}` for {base}

One domain's expert of a GM-DF deepfake detector: it plugs into the base it was trained beside, and into no other (the
SHA-256 of the base's weights is checked). The scores of the base's own domains do not change.

```python
from gmdf_hf import GMDFModel, load_expert

model = GMDFModel.from_pretrained("{base}"{revision})
load_expert(model, "{repo}")
```

The score is the model's opinion, not evidence; see the base's card for what it cannot know.
"""


def published_files(run: Path, repo: str) -> dict[str, Path | bytes]:
    """Map the published names of a run to files, or to modified content.

    Code, weights and settings of `model/` are published unchanged. Local paths are removed from the recipe, and the
    repository's name is inserted into the card.

    Args:
        run: Output folder of `meta_train.py`.
        repo: `user/name`.

    Raises:
        UserError: If the folder is not a finished run, or the repository name is invalid.
    """
    _check_name(repo)
    model = run / "model"
    needed = ["results.json", "train_config.yaml"]
    needed += [f"model/{name}" for name in ("config.json", "model.safetensors", "README.md", *_of_its_kind(model))]
    missing = [name for name in needed if not (run / name).is_file()]
    if missing:
        raise UserError(f"{run} is not the folder of a finished run: it lacks {', '.join(missing)}.")
    files: dict[str, Path | bytes] = {
        path.name: path for path in sorted(model.iterdir()) if path.is_file() and path.suffix in MODEL_SUFFIXES
    }
    files["README.md"] = (model / "README.md").read_text(encoding="utf-8").replace(PLACEHOLDER, repo).encode()
    files["results.json"] = run / "results.json"
    recipe = public_recipe(yaml.safe_load((run / "train_config.yaml").read_text(encoding="utf-8")))
    files["train_config.yaml"] = yaml.safe_dump(recipe, sort_keys=False).encode()
    if (run / "environment.json").is_file():
        environment = json.loads((run / "environment.json").read_text(encoding="utf-8"))
        environment.pop("command", None)  # contains local paths; the recipe has the same settings
        files["environment.json"] = _json(environment)
    return files


def _of_its_kind(model: Path) -> tuple[str, ...]:
    """Additional files of a complete folder of this model type; timm models need none besides their configuration."""
    config = (
        json.loads((model / "config.json").read_text(encoding="utf-8")) if (model / "config.json").is_file() else {}
    )
    kind = config.get("model_type")
    if kind == "timm_wrapper":
        return ()
    code = ("pipeline_gmdf.py",) if kind in (None, GMDFConfig.model_type) else ()
    return ("preprocessor_config.json", *code)


def expert_files(folder: Path, repo: str) -> dict[str, Path | bytes]:
    """Published files of one domain's expert: its two files and a card that explains how to load it.

    Args:
        folder: Folder that `save_expert` wrote.
        repo: `user/name`.

    Raises:
        UserError: If the folder holds no expert, or the repository name is invalid.
    """
    _check_name(repo)
    names = (DESCRIPTION_NAME, WEIGHTS_NAME)
    files: dict[str, Path | bytes] = {name: folder / name for name in names}
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise UserError(f"{folder} holds no expert: it lacks {', '.join(missing)}.")
    description = json.loads((folder / DESCRIPTION_NAME).read_text(encoding="utf-8"))
    base = description["base"]
    data = ModelCardData(
        library_name="transformers",
        license="apache-2.0",
        tags=["deepfake-detection", "gm-df"],
        base_model=base["name"] if "/" in base["name"] else None,
    )
    revision = f', revision="{base["revision"]}"' if base["revision"] else ""
    card = EXPERT_CARD.format(
        header=data.to_yaml(), repo=repo, domain=description["domain"], base=base["name"], revision=revision
    )
    return files | {"README.md": card.encode()}


def size_of(content: Path | bytes) -> int:
    """Size in bytes of a file or content."""
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def publish(
    files: dict[str, Path | bytes],
    repo: str,
    message: str,
    private: bool = True,
    tag: str | None = None,
    api: HfApi | None = None,
) -> str:
    """Upload files to the hub in one commit, or leave the hub unchanged.

    Commits are atomic, so users load either the old or the new revision. A repository that was created for a failed
    commit is deleted again.

    Args:
        files: Result of `published_files` or `expert_files`.
        repo: `user/name`; created if it does not exist.
        message: Commit message.
        private: Whether a new repository is private; an existing one stays unchanged.
        tag: Tag of the new revision.
        api: Client to use; None for the default client, with the token of `hf auth login` or HF_TOKEN.

    Returns:
        URL of the commit.

    Raises:
        UserError: If the tag exists, or the hub rejects the commit; the message says what to do.
    """
    api = api or HfApi()
    try:
        api.whoami()
        is_new = not api.repo_exists(repo)
        if tag is not None and not is_new and tag in {ref.name for ref in api.list_repo_refs(repo).tags}:
            raise UserError(f"{repo} already has the tag {tag!r}: choose another one; existing tags are not moved.")
        if is_new:
            api.create_repo(repo, private=private)
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise UserError(f"Nothing was published to {repo}. {_advice(error, repo)}") from error
    operations = [CommitOperationAdd(name, content) for name, content in files.items()]
    try:
        commit = api.create_commit(repo, operations, commit_message=message)
    except BaseException as error:  # also after an interruption, no partial state may remain
        left = "the repository is unchanged"
        if is_new:
            left = "the new repository was taken away again" if _remove(api, repo) else "an empty repository is left"
        if not isinstance(error, Exception):
            raise
        raise UserError(f"Nothing was published to {repo}; {left}. {_advice(error, repo)}") from error
    if tag is not None:
        try:
            api.create_tag(repo, tag=tag, revision=commit.oid)
        except HfHubHTTPError as error:
            raise UserError(f"Published {commit.commit_url}, but not tagged {tag!r}. {_advice(error, repo)}") from error
    return commit.commit_url


def _check_name(repo: str) -> None:
    try:
        validate_repo_id(repo)
        if repo.count("/") != 1:
            raise HFValidationError(f"Expected user/name, found {repo!r}.")
    except HFValidationError as error:
        raise UserError(f"--repo: {' '.join(str(error).split())}") from error


def _remove(api: HfApi, repo: str) -> bool:
    """Delete an empty repository that this process created; return whether it succeeded."""
    try:
        api.delete_repo(repo)
    except (HfHubHTTPError, OSError):
        return False
    return True


def _advice(error: Exception, repo: str) -> str:
    """Return advice on an error of the hub."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    said = " ".join(str(error).split())[:300]
    if status == 401 or "token" in type(error).__name__.lower():
        return f"Log in with a token that may write: `hf auth login`, or set HF_TOKEN. ({said})"
    if status in (403, 404):
        return (
            f"Your token has no right to write to {repo}: check its scope, the name, and that you have access. ({said})"
        )
    if status is None and isinstance(error, ValueError):
        return f"The card is not valid. ({said})"
    return f"The same command tries again; nothing needs to be cleaned up. ({said})"


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()
