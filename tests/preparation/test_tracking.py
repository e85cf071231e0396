import numpy as np
from PIL import Image

from gmdf_hf.preparation.faces import Face
from gmdf_hf.preparation.tracking import Candidate, follow, follow_all, is_cut, look, scene


def picture(seed, size=64, noise=0):
    """A smooth random picture: the same seed is the same person, noise another moment."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 255, (6, 6, 3), np.uint8))
    pixels = np.asarray(small.resize((size, size), Image.Resampling.BICUBIC), float)
    return Image.fromarray(
        (pixels + np.random.default_rng(noise).normal(0, 20, pixels.shape)).clip(0, 255).astype(np.uint8)
    )


def face(person, x, y=100, side=80, score=0.9, moment=0):
    box = (x - side / 2, y - side / 2, x + side / 2, y + side / 2)
    return Candidate(Face(box, None, score), look(picture(person, noise=moment)))


def people(chosen, frames):
    """Index of the chosen candidate in each frame, None where there is none."""
    return [
        None if c is None else next(i for i, other in enumerate(f) if other is c)
        for c, f in zip(chosen, frames, strict=True)
    ]


STUDIO = scene(picture(100))


def test_a_bystander_is_not_taken_for_the_person():
    # The bystander stands beside, and is alone in the picture for a while.
    frames = [[face(1, 100 + 5 * n, moment=n), face(2, 260, side=60, moment=n)] for n in range(20)]
    for n in (5, 6, 11):
        frames[n] = frames[n][1:]
    expected = [0] * 20
    for n in (5, 6, 11):
        expected[n] = None
    assert people(follow(frames, [STUDIO] * 20), frames) == expected


def test_false_detections_are_not_taken_for_the_person():
    frames = [[face(1, 100, moment=n)] for n in range(12)]
    frames[3] = [face(7, 130, side=85, score=0.65)]  # at the same place, but it looks like something else
    frames[8] = [face(1, 100, moment=8), face(8, 300, side=200, score=0.62)]  # larger, for one frame
    assert people(follow(frames, [STUDIO] * 12), frames) == [0, 0, 0, None] + [0] * 8


def test_another_person_at_the_same_place_after_a_cut_is_another_person():
    frames = [[face(1 if n < 12 else 2, 100, moment=n)] for n in range(20)]
    scenes = [scene(picture(100 if n < 12 else 101)) for n in range(20)]
    assert is_cut(scenes[11], scenes[12]) and not is_cut(scenes[0], scenes[1])
    assert people(follow(frames, scenes), frames) == [0] * 12 + [None] * 8


def test_person_is_taken_up_again_after_another_shot():
    frames = [[face(2 if 8 <= n < 12 else 1, 300 if 8 <= n < 12 else 100, moment=n)] for n in range(20)]
    scenes = [scene(picture(101 if 8 <= n < 12 else 100)) for n in range(20)]
    assert people(follow(frames, scenes), frames) == [0] * 8 + [None] * 4 + [0] * 8


def test_the_larger_and_longer_visible_person_is_chosen():
    frames = [[face(2, 300, side=40, moment=n), face(1, 100, side=80, moment=n)] for n in range(10)]
    assert people(follow(frames, [STUDIO] * 10), frames) == [1] * 10
    frames = [
        [face(2, 300, side=60, moment=n)] + ([face(1, 100, side=80, moment=n)] if n < 3 else []) for n in range(10)
    ]
    assert people(follow(frames, [STUDIO] * 10), frames) == [0] * 10


def test_tracking_does_not_switch_to_a_larger_neighbour():
    frames = [[face(1, 100, moment=n), face(1, 150, side=84, score=0.95, moment=n)] for n in range(10)]
    chosen = people(follow(frames, [STUDIO] * 10), frames)
    assert chosen == [1] * 10
    frames = [frame[::-1] if n % 2 else frame for n, frame in enumerate(frames)]
    chosen = follow(frames, [STUDIO] * 10)
    assert {candidate.face.center[0] for candidate in chosen} == {150}


def test_people_are_tracked_one_after_the_other():
    frames = [[face(2, 300, side=40, moment=n), face(1, 100, side=80, moment=n)] for n in range(10)]
    frames[4].append(face(3, 500, side=20, moment=4))
    found = follow_all(frames, [STUDIO] * 10)
    assert [people(chosen, frames) for chosen in found] == [[1] * 10, [0] * 10, [None] * 4 + [2] + [None] * 5]
    assert follow_all([], []) == [] and follow_all([[]], [STUDIO]) == []


def test_people_of_different_shots_are_different():
    """Behind a cut somebody sits in the same place, before a background of the same layout."""
    frames = [[face(n // 3, 100, moment=n)] for n in range(12)]
    bright = np.asarray(picture(100), int)
    tints = [Image.fromarray(np.clip(bright * scale, 0, 255).astype(np.uint8)) for scale in (1, 0.3, 0.8, 0.15)]
    scenes = [scene(tints[n // 3]) for n in range(12)]
    assert scenes[0].look @ scenes[3].look > 0.9 and len(follow_all(frames, scenes)) == 4


def test_following_is_that_of_a_plain_loop():
    """Against every pair of detections, one at a time."""
    rng = np.random.default_rng(3)
    frames = [
        [face(int(p), 100 + 60 * int(p) + rng.integers(-20, 20), side=60 + int(rng.integers(0, 30)), moment=n)
         for p in rng.permutation(3)[: rng.integers(0, 4)]]
        for n in range(14)
    ]  # fmt: skip
    nodes = [(time, candidate) for time, found in enumerate(frames) for candidate in found]
    totals, previous = [], []
    for time, candidate in nodes:
        best, source = 0.0, None
        for index, (earlier, other) in enumerate(nodes[: len(totals)]):
            shift = np.linalg.norm(other.face.center - candidate.face.center)
            shift /= 0.5 * (other.face.side + candidate.face.side)
            sides = sorted([other.face.side, candidate.face.side])
            if earlier < time and shift <= 0.8 and sides[1] <= 1.6 * sides[0] and other.look @ candidate.look >= 0.35:
                value = totals[index] - 0.5 * shift * candidate.face.side
                if value > best:
                    best, source = value, index
        totals.append(best + candidate.weight)
        previous.append(source)
    expected = [None] * len(frames)
    index = int(np.argmax(totals))
    while index is not None:
        expected[nodes[index][0]] = nodes[index][1]
        index = previous[index]
    assert follow(frames, [STUDIO] * 14) == expected


def test_single_pictures_and_no_frames():
    assert follow([], []) == []
    assert follow([[], []], [STUDIO] * 2) == [None, None]
    frames = [[face(2, 300, side=40), face(1, 100, side=80)]]
    assert people(follow(frames, [STUDIO]), frames) == [1]


def test_look_is_a_correlation():
    assert look(picture(1)) @ look(picture(1, noise=5)) > 0.95
    assert abs(look(picture(1)) @ look(picture(2))) < 0.5
    assert np.isfinite(look(Image.new("RGB", (5, 5)))).all()
