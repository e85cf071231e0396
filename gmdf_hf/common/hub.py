"""Hugging Face's hub from a machine that cannot reach it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache


@contextmanager
def hub_or_cache(name: str) -> Iterator[None]:
    """Search only the hub's cache inside the block, with a warning, if the hub cannot be reached.

    Without it each file that is not in the cache is asked for six times, in 23 seconds, also those that a model may
    leave out: a model in the cache took two minutes to load.

    Args:
        name: What is loaded. The hub is asked for names that may be its own.
    """
    from huggingface_hub import constants

    if os.path.isdir(name) or not is_hub_name(name) or constants.is_offline_mode():
        yield
        return
    try:
        _reach(constants.ENDPOINT, constants.HF_HUB_ETAG_TIMEOUT)
    except Exception as error:  # the errors of its HTTP library, which differ between versions
        text = f"{constants.ENDPOINT} cannot be reached ({error}): only its cache is searched."
        warnings.warn(text, stacklevel=1)  # of this line, so that it is shown once
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = False


@cache  # of answers: a failure is not remembered
def _reach(endpoint: str, timeout: float) -> None:
    from huggingface_hub.utils import get_session

    get_session().head(endpoint, timeout=timeout)


def is_hub_name(name: str) -> bool:
    """Whether a text may be the name of a repository on the hub."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True
