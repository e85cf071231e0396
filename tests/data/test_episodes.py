from collections import Counter
from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gmdf_hf.data.episodes import EpisodeSampler, balanced_batches


@st.composite
def frames(draw):
    """Videos of both classes with one to four frames each, in random order."""
    counts = draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
    rows = []
    for label, videos in enumerate(counts):
        for video in range(videos):
            rows += [(label, f"{label}-{video}")] * draw(st.integers(1, 4))
    rows = draw(st.permutations(rows))
    return np.array([label for label, _ in rows]), [video for _, video in rows]


@given(frames(), st.sampled_from([2, 4, 8]), st.integers(0, 99))
def test_batches_are_balanced_and_visit_every_video(setting, batch_size, seed):
    labels, videos = setting
    batches = balanced_batches(labels, videos, batch_size, (seed,))
    assert all(len(batch) == batch_size and labels[batch].sum() == batch_size // 2 for batch in batches)
    visits = Counter(videos[row] for batch in batches for row in batch)
    assert set(visits) == set(videos)
    for label in (0, 1):  # no video of a class is visited twice more often than another
        counts = [visits[video] for video in set(videos) if video.startswith(str(label))]
        assert max(counts) - min(counts) <= 1
    assert batches == balanced_batches(labels, videos, batch_size, (seed,))


def test_an_epoch_takes_one_frame_of_each_video_and_other_frames_later():
    labels, videos = np.repeat([0, 1], 40), [f"v{row // 4}" for row in range(80)]
    epochs = [sorted(chain(*balanced_batches(labels, videos, 4, (0, epoch)))) for epoch in range(2)]
    assert [len(epoch) for epoch in epochs] == [20, 20]
    assert epochs[0] != epochs[1]


def test_odd_batches_and_single_classes_are_refused():
    with pytest.raises(ValueError, match="must be even and at least 2, found 3"):
        balanced_batches(np.array([0, 1]), ["a", "b"], 3, (0,))
    with pytest.raises(ValueError, match="one class alone"):
        balanced_batches(np.array([0, 0]), ["a", "b"], 2, (0,))


def make_sampler(seed=0, batch_size=4, place=(0, 1)):
    sizes = [6, 20, 10]  # videos of each class
    labels = [np.repeat([0, 1], size) for size in sizes]
    videos = [[f"{row}" for row in range(2 * size)] for size in sizes]
    return EpisodeSampler(labels, videos, batch_size, seed, *place)


def test_episodes_hold_out_each_domain_in_turn():
    sampler = make_sampler()
    episodes = list(sampler)
    assert len(episodes) == len(sampler) == 10  # the largest domain: 20 videos of a class, 2 a batch
    for episode in episodes:
        domains = [draw.domain for draw in episode]
        assert Counter(domains) == {0: 4, 1: 4, 2: 4}
        held_out = domains[-1]
        assert domains[-4:] == [held_out] * 4
        assert domains[:-4] == sorted(domains[:-4])
    held_out = [episode[-1].domain for episode in episodes]
    for i in range(0, 9, 3):
        assert sorted(held_out[i : i + 3]) == [0, 1, 2]


def test_order_is_a_function_of_seed_and_epoch():
    first, again, other = make_sampler(), make_sampler(), make_sampler(seed=1)
    assert list(first) == list(again) == list(first)
    assert list(first) != list(other)
    again.set_epoch(1)
    assert list(first) != list(again)
    first.set_epoch(1)
    assert list(first) == list(again)


def test_small_domains_are_repeated_in_a_new_order():
    small = [[draw.row for draw in episode if draw.domain == 0] for episode in make_sampler()]
    assert Counter(chain(*small)).most_common()[-1][1] >= 3  # 12 rows, 40 places
    assert small[:3] != small[3:6]


def test_one_domain_gives_plain_batches_and_none_is_refused():
    batches = list(EpisodeSampler([np.array([0, 1, 0, 1])], [["a", "b", "c", "d"]], 2, 0))
    assert sorted(draw.row for batch in batches for draw in batch) == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="needs a domain, found none"):
        EpisodeSampler([], [], 2, 0)


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_draw_together_what_one_draws_with_larger_batches(processes):
    """Decision D15: the joined batch is the same, frames and random numbers, and each part has both classes."""
    alone = make_sampler(batch_size=4 * processes)
    parts = [make_sampler(place=(index, processes)) for index in range(processes)]
    assert {len(part) for part in parts} == {len(alone)}  # no process waits for another at the end
    for joined, *episodes in zip(alone, *parts, strict=True):
        assert sorted(chain(*episodes)) == sorted(joined)
        for episode in episodes:
            assert [draw.domain for draw in episode[::4]] == [draw.domain for draw in joined[:: 4 * processes]]
            for start in range(0, 12, 4):
                sizes = [6, 20, 10]
                fakes = [draw.row >= sizes[draw.domain] for draw in episode[start : start + 4]]
                assert sum(fakes) == 2


def test_an_epoch_can_be_entered_in_the_middle():
    sampler = make_sampler()
    sampler.set_epoch(3)
    whole = list(sampler)
    sampler.set_epoch(3, start=4)
    assert list(sampler) == whole[4:]


def test_every_use_of_a_frame_has_a_random_number_of_its_own():
    chances = [draw.chance for episode in make_sampler() for draw in episode]
    assert len(set(chances)) == len(chances)
    assert 0.3 < sum(chance % 2 for chance in chances) / len(chances) < 0.7


def test_no_two_streams_of_random_numbers_of_an_epoch_are_one(monkeypatch):
    """`default_rng((1, 2, 3))` is `default_rng((1, 2, 3, 0))`: mirroring and held-out order once shared a stream."""
    states, default_rng = [], np.random.default_rng

    def record(seed):
        states.append(tuple(np.random.SeedSequence(seed).generate_state(4)))
        return default_rng(seed)

    sampler = make_sampler(seed=1)
    monkeypatch.setattr(np.random, "default_rng", record)
    list(sampler)
    assert len(states) > 3 and len(set(states)) == len(states)


def test_pairs_have_a_real_and_a_fake_of_one_group():
    """Group g3 has no fake, g4 no real: the real of g3 keeps a fake of the usual order."""
    groups = ["g0", "g1", "g2", "g3", "g0", "g0", "g1", "g2", "g4"]
    labels, videos = np.array([0] * 4 + [1] * 5), [f"v{row}" for row in range(9)]
    usual = balanced_batches(labels, videos, 4, (1,))
    batches = balanced_batches(labels, videos, 4, (1,), groups)
    assert batches == balanced_batches(labels, videos, 4, (1,), groups)
    assert [batch[:2] for batch in batches] == [batch[:2] for batch in usual]
    for batch, before in zip(batches, usual, strict=True):
        for place in (0, 1):
            real, fake = batch[place], batch[2 + place]
            assert labels[fake] == 1
            assert fake == before[2 + place] if groups[real] == "g3" else groups[fake] == groups[real]
    sampler = EpisodeSampler([labels], [videos], 4, 0, groups=[groups])
    pairs = [(groups[draws[0].row], groups[draws[2].row]) for draws in sampler]
    assert all(real == fake for real, fake in pairs if real != "g3") and len({real for real, _ in pairs}) > 1
