import math

import pytest
import torch
from torch.nn.functional import normalize

from gmdf_hf.data.episodes import Episode
from gmdf_hf.training.alignment import Alignment, FeatureQueue
from gmdf_hf.training.losses import alignment_loss


def episode_of(order: tuple[int, ...], batch: int) -> Episode:
    ids = torch.tensor(order).repeat_interleave(batch)
    return Episode.of(torch.zeros(len(ids), 3, 2, 2), ids % 2, ids)


def test_a_queue_forgets_the_oldest_batch_and_keeps_batches_of_any_size():
    queue = FeatureQueue(domains=2, batches=2, batch_size=3, width=1)
    for number, size in enumerate((3, 2, 1)):
        queue.push(1, torch.full((size, 1), float(number)))
    assert queue.of(0) == []
    assert sorted(torch.cat(queue.of(1)).flatten().tolist()) == [1, 1, 2]


def extrapolated(sources: list[list[torch.Tensor]], target: list[torch.Tensor]) -> torch.Tensor:
    """Twice the distance of all batches minus that of every second one, from the newest, if there are two."""

    def distance(first: int, step: int) -> torch.Tensor:
        *parts, last = (torch.cat(batches[::-1][first::step]) for batches in [*sources, target])
        return alignment_loss(parts, last)

    if min(map(len, [*sources, target])) < 2:
        return distance(0, 1)
    return 2 * distance(0, 1) - (distance(0, 2) + distance(1, 2)) / 2


def test_statistics_are_those_of_past_and_current_features_of_their_own_half_step():
    """Hold out each domain once: source statistics use source features, meta-test statistics meta-test features."""
    torch.manual_seed(0)
    alignment = Alignment(domains=3, batch_size=4, width=5, queue_size=12)
    seen = {"source": {n: [] for n in range(3)}, "target": {n: [] for n in range(3)}}
    for order in ((0, 1, 2), (2, 0, 1), (1, 2, 0), (0, 1, 2), (0, 1, 2)):
        embeds = torch.randn(12, 5)
        for part, domain in zip(embeds.split(4), order, strict=True):
            seen["target" if domain == order[-1] else "source"][domain].append(part)
        loss = alignment.loss(embeds, episode_of(order, 4))
        expected = extrapolated([seen["source"][n][-3:] for n in order[:2]], seen["target"][order[2]][-3:])
        assert float(loss) == pytest.approx(float(expected), rel=1e-4)
        alignment.push(embeds, episode_of(order, 4))


def test_the_gradient_stands_for_moving_all_images_alike():
    """If the past features equal the current ones, the gradient is that of the current batch counted twice, or once."""
    torch.manual_seed(0)
    embeds = torch.randn(12, 5, dtype=torch.double, requires_grad=True)
    alignment = Alignment(domains=3, batch_size=4, width=5, queue_size=8)
    episode = episode_of((0, 1, 2), 4)
    alignment.push(embeds.float(), episode)
    rounded = embeds.detach().float().double().requires_grad_()
    (found,) = torch.autograd.grad(alignment.loss(rounded, episode), rounded)
    *sources, target = rounded.split(4)
    twice = alignment_loss([torch.cat([source, source]) for source in sources], torch.cat([target, target]))
    expected = torch.autograd.grad(2 * twice - alignment_loss(sources, target), rounded)[0]
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_without_a_queue_the_batch_alone_counts():
    embeds, episode = torch.randn(12, 5), episode_of((0, 1, 2), 4)
    alignment = Alignment(domains=3, batch_size=4, width=5, queue_size=4)
    alignment.push(embeds, episode)
    assert alignment.state() == {} and alignment.floor() is None
    *sources, target = embeds.split(4)
    torch.testing.assert_close(alignment.loss(embeds, episode), alignment_loss(sources, target))


def features_of(domain: int, images: int, generator: torch.Generator, width: int = 512) -> torch.Tensor:
    """Unit features of a domain with its own centre and principal axes; the n-th variance is 1 / n."""
    own = torch.Generator().manual_seed(domain)
    axes = torch.linalg.qr(torch.randn(width, width, generator=own))[0]
    spread = torch.arange(1, width + 1) ** -0.5
    size = float(spread.norm()) / math.sqrt(width)
    centre = 3 * size + 0.5 * size * torch.randn(width, generator=own)
    return normalize((torch.randn(images, width, generator=generator) * spread) @ axes.T + centre, dim=-1)


def distances(queue_size: int) -> tuple[float, float]:
    """L_sis between two sets of one domain and between two domains, for 32 images per batch and the given queue."""
    generator = torch.Generator().manual_seed(99)
    found = []
    for domains in ((0, 0), (0, 1)):
        alignment = Alignment(domains=2, batch_size=32, width=512, queue_size=queue_size)
        for _ in range(max(queue_size // 32, 1)):
            embeds = torch.cat([features_of(domain, 32, generator) for domain in domains])
            loss, episode = alignment.loss(embeds, episode_of((0, 1), 32)), episode_of((0, 1), 32)
            alignment.push(embeds, episode)
        found.append(float(loss))
    return found[0], found[1]


def test_two_batches_of_one_domain_are_near_and_of_two_domains_far():
    """Decision D18: without the queue, sampling error dominates the distance."""
    same, different = distances(512)
    assert same <= 0.1 * different
    same, different = distances(32)
    assert same > 0.1 * different


def test_the_floor_is_the_distance_of_a_domains_halves():
    alignment = Alignment(domains=2, batch_size=4, width=5, queue_size=12)
    batches = torch.randn(2, 4, 5)
    for batch in batches:
        alignment.push(torch.cat([batch, torch.zeros(4, 5)]), episode_of((0, 1), 4))
    assert alignment.floor() == pytest.approx(float(alignment_loss([batches[0]], batches[1])), rel=1e-5)
