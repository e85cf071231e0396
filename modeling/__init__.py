"""The model, its configuration and its image processing: the files that travel with every checkpoint."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .auto_gmdf import *  # noqa: F403


def __getattr__(name: str) -> object:
    # Imported on first use: torch and transformers take seconds to import, and the workers that crop faces need only
    # the geometry functions of this package.
    auto = import_module(f"{__name__}.auto_gmdf") if name.startswith("GMDF") else None
    if not hasattr(auto, name):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(auto, name)
