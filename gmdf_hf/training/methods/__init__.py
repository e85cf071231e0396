"""Training methods, one file each; all train in the same loop on the same images, steps and schedule."""

from collections.abc import Sequence

from gmdf_hf.training.config import TrainConfig
from gmdf_hf.training.meta import MetaOptions
from gmdf_hf.training.methods.add_domain import AddDomain
from gmdf_hf.training.methods.gmdf import GMDF
from gmdf_hf.training.methods.merged import LinearProbe, Merged, equal_shares, size_shares
from gmdf_hf.training.methods.merged_losses import MergedLosses
from gmdf_hf.training.methods.method import Method
from gmdf_hf.training.methods.mldg import MLDG


def make_method(config: TrainConfig, domains: Sequence[str], images: Sequence[int] | None) -> Method:
    """The method that a run's settings name.

    Args:
        config: The run's settings.
        domains: Names of the domains it trains on.
        images: Images of each; None for streams, whose domains then count the same.
    """
    tower = config.train_tower
    equal = equal_shares(len(domains))
    match config.method:
        case "direct_merge":
            return Merged(equal if images is None else size_shares(images), tower)
        case "balanced_erm":
            return Merged(equal, tower)
        case "linear_probe":
            return LinearProbe(equal)
        case "merged_losses":
            return MergedLosses(config.alignment_weight, config.mim_weight, tower)
        case "mldg":
            return MLDG(config.mldg_learning_rate, tower)
        case "add_domain":
            return AddDomain(domains[0])
        case "gmdf":
            return GMDF(meta_options(config), tower)


def meta_options(config: TrainConfig) -> MetaOptions:
    """Settings of the two half steps."""
    return MetaOptions(
        inner_learning_rate=config.inner_learning_rate,
        source_weight=config.source_weight,
        alignment_weight=config.alignment_weight,
        mim_weight=config.mim_weight,
        second_order=config.meta_gradient == "second_order",
        align_both=config.align_gradient == "both",
        all_experts=config.outer_experts == "all",
    )
