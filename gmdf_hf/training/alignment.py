"""L_sis with queues of past features (decision D18)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gmdf_hf.common.processes import gather_features
from gmdf_hf.data.episodes import Episode
from gmdf_hf.training.losses import alignment_loss


class FeatureQueue:
    """The last feature batches of each domain, first in, first out; independent of the order of the processes.

    Args:
        domains: Number of domains E.
        batches: Batches to keep for each domain.
        batch_size: Images per domain and iteration, summed over processes.
        width: Width P of the features.
        device: Device of the features.
    """

    def __init__(
        self, domains: int, batches: int, batch_size: int, width: int, device: torch.device | str = "cpu"
    ) -> None:
        self.batches = batches
        self.features = torch.zeros(domains, batches, batch_size, width, device=device)
        self.counts = torch.zeros(domains, batches, dtype=torch.long)  # images of each batch; on the CPU, like `seen`
        self.seen = torch.zeros(domains, dtype=torch.long)

    def state(self) -> dict[str, torch.Tensor]:
        """Tensors that a resumed run needs; updated in place."""
        return {"features": self.features, "counts": self.counts, "seen": self.seen}

    def of(self, domain: int) -> list[torch.Tensor]:
        """The batches of a domain, each of shape `(n, P)`, oldest first."""
        counts, start = self.counts[domain].tolist(), int(self.seen[domain]) % self.batches
        places = [*range(start, self.batches), *range(start)]
        return [self.features[domain, place, : counts[place]] for place in places if counts[place]]

    @torch.no_grad()
    def push(self, domain: int, features: torch.Tensor) -> None:
        """Add a batch of shape `(n, P)` in place of the oldest."""
        place = int(self.seen[domain]) % self.batches
        self.features[domain, place, : len(features)] = features
        self.counts[domain, place] = len(features)
        self.seen[domain] += 1


class Alignment:
    """L_sis of an episode, with statistics over the current batch and the queued batches.

    With 32 images and hundreds of feature dimensions, sampling error dominates the distance of Eq. 8. Each domain has
    two queues: source features come from the inner step, meta-test features from the outer step. The error that remains
    is inversely proportional to the number of images n, so it is extrapolated to 0: ``2 L(n) - L(n / 2)``, as
    FID-infinity does (Chong and Forsyth 2020). The estimate can be slightly below 0.

    The gradient reaches only the current batch, which is a small part of the statistics. It is multiplied by (images in
    the statistics) / (images in the batch), which gives the gradient of shifting all images equally.

    Args:
        domains: Number of domains E.
        batch_size: Images per domain and iteration, summed over processes.
        width: Width P of the features.
        queue_size: Images in the statistics, including the current batch; up to `batch_size` means no queue.
        device: Device of the features.
    """

    def __init__(
        self, domains: int, batch_size: int, width: int, queue_size: int, device: torch.device | str = "cpu"
    ) -> None:
        batches = queue_size // batch_size - 1
        sizes = (domains, batches, batch_size, width, device)
        self.queues = None if batches < 1 else (FeatureQueue(*sizes), FeatureQueue(*sizes))

    def state(self) -> dict[str, torch.Tensor]:
        """Tensors that a resumed run needs; updated in place."""
        names = zip(("source", "target"), self.queues or (), strict=False)
        return {f"{name}.{key}": value for name, queue in names for key, value in queue.state().items()}

    def loss(self, embeds: torch.Tensor, episode: Episode) -> torch.Tensor:
        """L_sis over the features of all processes; every process gets the same value.

        Args:
            embeds: This process's features of an episode's images, shape `(B, P)`.
            episode: The images.
        """
        *sources, target = gather_features(embeds, episode.counts)
        if self.queues is None:
            return alignment_loss(sources, target)
        of_source, of_target = self.queues
        pairs = zip(episode.source_domains, sources, strict=True)
        batches = [[*of_source.of(domain), features] for domain, features in pairs]
        return _extrapolated(batches, [*of_target.of(episode.domains[-1]), target])

    @torch.no_grad()
    def push(self, embeds: torch.Tensor, episode: Episode) -> None:
        """Queue the features of an episode."""
        if self.queues is not None:
            *sources, target = gather_features(embeds.detach(), episode.counts)
            for domain, features in zip(episode.source_domains, sources, strict=True):
                self.queues[0].push(domain, features)
            self.queues[1].push(episode.domains[-1], target)

    @torch.no_grad()
    def floor(self) -> float | None:
        """Sampling error of L_sis: its value between the odd and even batches of a domain, averaged over domains.

        Each half has half the images, so this exceeds the sampling error of the loss. None with fewer than two batches.
        """
        if self.queues is None:
            return None
        kept = [self.queues[0].of(domain) for domain in range(len(self.queues[0].seen))]
        halves = [(batches[::2], batches[1::2]) for batches in kept if len(batches) > 1]
        values = [float(_extrapolated([half], other)) for half, other in halves]
        return sum(values) / len(values) if values else None


def _extrapolated(sources: Sequence[Sequence[torch.Tensor]], target: Sequence[torch.Tensor]) -> torch.Tensor:
    """L_sis of infinitely many images, from that of all and of half of the batches; the last batch is the current one.

    The current batch is in one half only: its gradient stands for both.
    """
    whole = alignment_loss([_joined(batches) for batches in sources], _joined(target))
    if min(map(len, (*sources, target))) < 2:
        return whole
    half, other = (
        alignment_loss([_joined(batches[end::-2]) for batches in sources], _joined(target[end::-2])) for end in (-1, -2)
    )
    return 2 * whole - half - (other - half).detach() / 2


def _joined(batches: Sequence[torch.Tensor]) -> torch.Tensor:
    """Features of all batches; the gradient of the current ones is scaled to represent all (see `Alignment`)."""
    images, current = sum(map(len, batches)), next((one for one in batches if one.requires_grad), None)
    if current is None:
        return torch.cat(list(batches))
    scaled = current.detach() + images / len(current) * (current - current.detach())
    return torch.cat([scaled if one is current else one.to(current) for one in batches])
