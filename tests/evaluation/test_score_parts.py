"""Which batches are left to score, and what the parts of a domain are put together to."""

import json

import numpy as np
import pytest

from gmdf_hf.common.errors import DomainError, UserError
from gmdf_hf.data.frames import Frame
from gmdf_hf.evaluation.score_parts import BatchQueue, join_parts, write_parts
from gmdf_hf.evaluation.scoring import FrameBatches, ScoredBatch

SIZE = 3


def make_frames(count: int, **fields) -> list[Frame]:
    return [Frame("d", row, f"v{row % 4}", row // 4, None, row % 2)._replace(**fields) for row in range(count)]


def queue(folder, frames) -> BatchQueue:
    batches = (frames[start : start + SIZE] for start in range(0, len(frames), SIZE))
    return BatchQueue(FrameBatches("d", batches, None, False), folder, SIZE)


def score(batches) -> list[ScoredBatch]:
    """The score of a frame is its row; rows 5 and 6 cannot be read."""
    reasons = [["broken" if frame.row in (5, 6) else "" for frame in batch.frames] for batch in batches]
    return [
        ScoredBatch(batch.number, batch.frames, np.asarray([float(frame.row) for frame in batch.frames]), why)
        for batch, why in zip(batches, reasons, strict=True)
    ]


def test_queue_skips_scored_batches_and_parts_join_sorted(tmp_path):
    frames = make_frames(11)
    first = queue(tmp_path, frames)
    write_parts(tmp_path, score(list(first)[2:3]))  # killed after the third batch
    (tmp_path / "frames.json").unlink()
    rest = queue(tmp_path, frames)
    left = list(rest)
    assert [batch.number for batch in left] == [0, 1, 3]
    assert rest.frames == 11
    write_parts(tmp_path, score(left))
    table, skipped = join_parts(tmp_path, "d", 11)
    assert table[["video_id", "frame"]].values.tolist() == [
        [f"v{row % 4}", row // 4] for row in (0, 4, 8, 1, 9, 2, 10, 3, 7)
    ]
    assert table["score"].tolist() == [0, 4, 8, 1, 9, 2, 10, 3, 7]
    assert sorted((item.domain, item.row, item.reason) for item in skipped) == [
        ("d", 5, "broken"),
        ("d", 6, "broken"),
    ]


def test_tied_frames_keep_batch_order(tmp_path):
    frames = make_frames(8, video_id="v", number=0, label=1)
    batches = list(queue(tmp_path, frames))
    write_parts(tmp_path, score(batches[1:]))
    write_parts(tmp_path, score(batches[:1]))
    assert join_parts(tmp_path, "d", 8)[0]["score"].tolist() == [0, 1, 2, 3, 4, 7]


def test_finished_domain_is_not_read_again(tmp_path):
    frames = make_frames(7)
    write_parts(tmp_path, score(list(queue(tmp_path, frames))))

    def unreadable():
        raise AssertionError("the stream was read")
        yield

    again = BatchQueue(FrameBatches("d", unreadable(), None, False), tmp_path, SIZE)
    assert (list(again), again.frames) == ([], 7)


@pytest.mark.parametrize(
    ("now", "difference"),
    [
        (make_frames(12), "found 12 frames, expected 9"),
        (make_frames(6), "found 6 frames, expected 9"),
        (make_frames(9, label=0), "batch 0 holds other frames than those scored before"),
        (make_frames(9, method="swap"), "batch 0 holds other frames than those scored before"),
        (make_frames(10)[1:], "batch 0 holds other frames than those scored before"),
        (make_frames(1), "batch 0 holds other frames than those scored before"),
    ],
)
def test_changed_data_raise(tmp_path, now, difference):
    before = list(queue(tmp_path, make_frames(9)))
    write_parts(tmp_path, score(before[:1]))
    with pytest.raises(UserError, match=f"The data of domain 'd' changed since scores .*: {difference}"):
        list(queue(tmp_path, now))
    assert json.loads((tmp_path / "frames.json").read_text()) == 9


def test_empty_domain_raises(tmp_path):
    with pytest.raises(DomainError, match="Domain 'd' has no frames"):
        list(queue(tmp_path, []))
