"""One meta-iteration, for tests of its parts."""

import torch
from accelerate import Accelerator

from gmdf_hf.training.inner_optimizer import ExpertSGD
from gmdf_hf.training.meta import inner_loss, update_experts
from gmdf_hf.training.methods.gmdf import GMDF, MetaOptions

BETA = 0.1


def step(model, episode, tokenizer, inner=None, **options) -> dict[str, torch.Tensor]:
    """One meta-iteration without the step of the outer optimizer."""
    method = GMDF(inner or ExpertSGD(BETA), MetaOptions(**options), batch_size=4)
    method.prepare(model)
    method.image_tokenizer = tokenizer
    return method.step(model, episode, Accelerator())


def updated(model, episode, inner=None, **options) -> dict[str, torch.Tensor]:
    """theta_E after an inner step."""
    loss, _ = inner_loss(model, episode)
    return update_experts(model, loss, inner or ExpertSGD(BETA), episode.source_domains, **options)[0]
