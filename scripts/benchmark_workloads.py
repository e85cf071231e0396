"""Workloads that `benchmark.py` measures: iterations of GM-DF, of the literal Algorithm 1 and of plain fine-tuning."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from accelerate import Accelerator
from transformers import CLIPConfig, CLIPForImageClassification, CLIPTextConfig, CLIPVisionConfig

from gmdf_hf.data.episodes import Episode, hidden_patches
from gmdf_hf.modeling import GMDFConfig, GMDFModel
from gmdf_hf.scripts.benchmark_literal import literal_iteration
from gmdf_hf.training.image_tokenizer import GMDFImageTokenizer, GMDFImageTokenizerConfig
from gmdf_hf.training.inner_optimizer import ExpertAdam
from gmdf_hf.training.methods.gmdf import GMDF, MetaOptions

LEARNING_RATE, INNER_LEARNING_RATE, QUEUE = 3e-6, 3e-4, 512


class Workloads:
    """Models of random weights, and one step of each way to train them.

    Args:
        vision: Sizes of the vision tower.
        text: Sizes of the text tower.
        batch_size: Images of each domain.
        precision: Mixed precision of accelerate.
        num_domains: Number of domains.
    """

    def __init__(
        self, vision: CLIPVisionConfig, text: CLIPTextConfig, batch_size: int, precision: str, num_domains: int = 3
    ) -> None:
        self.domains = [f"d{number}" for number in range(num_domains)]
        self.accelerator = Accelerator(mixed_precision=precision)
        self.vision, self.text, self.batch_size, self.device = vision, text, batch_size, self.accelerator.device

    def detector(self) -> GMDFModel:
        """A detector of the paper's recipe, with non-zero experts."""
        torch.manual_seed(0)
        config = GMDFConfig(vision_config=self.vision, text_config=self.text, domains=self.domains, codebook_size=8192)
        model = GMDFModel(config).to(self.device).train()
        with torch.no_grad():
            for layer in model.vision_model.encoder.layers:
                layer.experts.alpha.fill_(0.1)
        return model

    def image_tokenizer(self) -> GMDFImageTokenizer:
        """Tokenizer for visual codes, as made by `image_tokenizer: train`."""
        sides: dict[str, Any] = {"image_size": self.vision.image_size, "patch_size": self.vision.patch_size}
        tokenizer = GMDFImageTokenizer(GMDFImageTokenizerConfig(codebook_size=8192, **sides))
        return tokenizer.to(self.device).requires_grad_(False).eval()

    def images(self, count: int) -> torch.Tensor:
        """Random images."""
        side = cast(int, self.vision.image_size)
        return torch.randn(count, 3, side, side, device=self.device)

    def meta_iteration(self) -> Callable[[], object]:
        """One iteration of `scripts/meta_train.py`: a batch of every domain, the last held out."""
        model = self.detector()
        tokenizer = self.image_tokenizer()
        method = GMDF(ExpertAdam(INNER_LEARNING_RATE), MetaOptions(alignment_queue=QUEUE), self.batch_size)
        shared = method.prepare(model)
        method.image_tokenizer = tokenizer
        self.fill_queue(method)
        optimizer = torch.optim.Adam(shared, lr=LEARNING_RATE)
        count, half = self.batch_size * len(self.domains), self.batch_size // 2
        pixel_values = self.images(count).cpu()
        labels = torch.tensor(([0] * half + [1] * half) * len(self.domains))
        domain_ids = torch.arange(len(self.domains)).repeat_interleave(self.batch_size)

        def iteration() -> None:
            mask = hidden_patches(range(self.batch_size), model.config)
            episode = Episode.of(pixel_values, labels, domain_ids, mask, device=self.device)
            losses = method.step(model, episode, self.accelerator)
            norm = torch.nn.utils.clip_grad_norm_(shared, torch.inf)
            torch.stack([*losses.values(), norm]).tolist()  # the training loop reads them before the optimizer step
            optimizer.step()
            optimizer.zero_grad()

        return iteration

    def fill_queue(self, method: GMDF) -> None:
        """Fill the queue of L_sis, as after the first iterations of a run."""
        for queue in (method.alignment and method.alignment.queues) or ():
            for domain in range(len(self.domains)):
                for _ in range(queue.batches):
                    features = torch.randn(self.batch_size, queue.features.shape[-1], device=self.device)
                    queue.push(domain, torch.nn.functional.normalize(features, dim=-1))

    def literal(self) -> Callable[[], object]:
        """One iteration of the literal Algorithm 1."""
        model, tokenizer = self.detector(), self.image_tokenizer()
        optimizer = torch.optim.Adam(model.shared_parameters().values(), lr=LEARNING_RATE)
        batches = [self.images(self.batch_size).cpu() for _ in self.domains]
        labels = torch.tensor([0, 1] * (self.batch_size // 2))
        return lambda: literal_iteration(
            model, tokenizer, optimizer, batches, labels, INNER_LEARNING_RATE, self.accelerator
        )

    def fine_tuning(self) -> Callable[[], object]:
        """One step of plain fine-tuning of transformers' classifier on the same number of images."""
        torch.manual_seed(0)
        clip = CLIPConfig(vision_config=self.vision, text_config=self.text)
        clip.num_labels = 2
        model = CLIPForImageClassification(clip).to(self.device).train()
        optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
        count = self.batch_size * len(self.domains)
        pixel_values, labels = self.images(count).cpu(), torch.arange(count) % 2

        def step() -> None:
            with self.accelerator.autocast():
                loss = model(pixel_values.to(self.device), labels=labels.to(self.device)).loss
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), torch.inf)
            torch.stack([loss.detach(), norm]).tolist()
            optimizer.step()
            optimizer.zero_grad()

        return step
