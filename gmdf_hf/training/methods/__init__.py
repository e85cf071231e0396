"""Training methods, one file each; all train in the same loop on the same images, steps and schedule."""

from collections.abc import Sequence

from gmdf_hf.training.config import TrainConfig
from gmdf_hf.training.inner_optimizer import ExpertAdam, ExpertSGD
from gmdf_hf.training.methods.add_domain import AddDomain
from gmdf_hf.training.methods.dcl import DCL
from gmdf_hf.training.methods.effort import Effort
from gmdf_hf.training.methods.gend import GenD
from gmdf_hf.training.methods.gmdf import GMDF, MetaOptions
from gmdf_hf.training.methods.lora import LoRA
from gmdf_hf.training.methods.ltw import LTW
from gmdf_hf.training.methods.merged import LinearProbe, Merged, equal_shares, size_shares
from gmdf_hf.training.methods.merged_losses import MergedLosses
from gmdf_hf.training.methods.method import Method
from gmdf_hf.training.methods.mldg import MLDG
from gmdf_hf.training.methods.rfm import RFM


def make_method(
    config: TrainConfig, domains: Sequence[str], images: Sequence[int] | None, num_processes: int
) -> Method:
    """Make the training method of a run.

    Args:
        config: The run's settings.
        domains: Names of the training domains.
        images: Number of images per domain; None for streams, whose domains then have equal weights.
        num_processes: Number of processes of the run.
    """
    batch_size = config.batch_size * num_processes
    tower = config.train_tower
    equal = equal_shares(len(domains))
    match config.method:
        case "direct_merge":
            return Merged(equal if images is None else size_shares(images), tower)
        case "balanced_erm":
            return Merged(equal, tower)
        case "linear_probe":
            return LinearProbe(equal)
        case "gend":
            return GenD(equal)
        case "effort":
            return Effort(equal)
        case "lora":
            return LoRA(equal, config.lora)
        case "ltw":
            return LTW(config.mldg_learning_rate, tower)
        case "dcl":
            return DCL(equal, tower)
        case "rfm":
            return RFM(equal, tower)
        case "merged_losses":
            weights = config.alignment_weight, config.mim_weight
            return MergedLosses(*weights, config.alignment_queue, batch_size, tower)
        case "mldg":
            return MLDG(config.mldg_learning_rate, tower)
        case "add_domain":
            return AddDomain(domains[0])
        case "gmdf":
            return make_gmdf(config, batch_size)


def make_gmdf(config: TrainConfig, batch_size: int) -> GMDF:
    """Make the paper's method from a run's settings."""
    optimizer = ExpertSGD if config.inner_optimizer == "sgd" else ExpertAdam
    options = MetaOptions(
        source_weight=config.source_weight,
        alignment_weight=config.alignment_weight,
        mim_weight=config.mim_weight,
        alignment_queue=config.alignment_queue,
        second_order=config.meta_gradient == "second_order",
        align_both=config.align_gradient == "both",
        all_experts=config.outer_experts == "all",
    )
    inner = optimizer(config.inner_learning_rate, config.inner_max_grad_norm)
    return GMDF(inner, options, batch_size, config.train_tower)
