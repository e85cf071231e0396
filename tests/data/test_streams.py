import io
import itertools
import os
from collections import Counter

import datasets
import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from gmdf_hf import GMDFImageProcessor
from gmdf_hf.common.errors import DomainError
from gmdf_hf.data import streams
from gmdf_hf.data.dataset import load_domain
from gmdf_hf.data.frames import Frame, Skipped, collate, frame_of
from gmdf_hf.data.loading import load_domains, make_loader
from gmdf_hf.data.streams import EpisodeStream, load_stream, stream_frames
from tests import processes
from tests.domains import png, write_domain, write_methods, write_parquet
from tests.hub_server import HubServer

pytestmark = pytest.mark.usefixtures("own_cache")

PROCESSOR = GMDFImageProcessor.of_size(8)


def write_shards(folder, name, shards=4, videos=6, frames=3, first=0):
    """Shards of real videos and of fake ones, one after the other, as an importer would write them."""
    folder.mkdir()
    for shard in range(shards):
        rows = [
            (label, f"{name}-{label}-{first + shard * videos + video}", frame)
            for label in (0, 1)
            for video in range(videos)
            for frame in range(frames)
        ]
        data = {
            "image": [{"bytes": png(50 * label + frame), "path": None} for label, _, frame in rows],
            "label": ["real" if label == 0 else "fake" for label, _, _ in rows],
            "video_id": [video for _, video, _ in rows],
            "frame": [frame for _, _, frame in rows],
        }
        datasets.Dataset.from_dict(data).to_parquet(folder / f"train-{shard:05d}-of-{shards:05d}.parquet")
    return str(folder)


@pytest.fixture
def three(tmp_path):
    return [
        load_stream(name, "train", write_shards(tmp_path / name, name, videos=4 + 2 * n))
        for n, name in enumerate("abc")
    ]


def episodes(three, length=12, **arguments):
    return EpisodeStream(three, PROCESSOR, 4, 0, length, **arguments)


def names(episode):
    return [frame["names"] for frame in episode]


def test_episodes_are_balanced_and_hold_out_each_domain_in_turn(three):
    found = list(episodes(three))
    assert len(found) == 12
    for episode in found:
        ids = [frame["domain_ids"] for frame in episode]
        assert Counter(ids) == {0: 4, 1: 4, 2: 4}
        assert [frame["labels"] for frame in episode] == [0, 0, 1, 1] * 3
        assert all(f"-{frame['labels']}-" in frame["names"] for frame in episode)
    held_out = [episode[-1]["domain_ids"] for episode in found]
    assert all(sorted(held_out[i : i + 3]) == [0, 1, 2] for i in range(0, 12, 3))


def test_a_pass_visits_every_video(three, monkeypatch):
    monkeypatch.setattr(streams, "FRAMES_OF_A_VIDEO", 1)
    videos = 4 * 4  # shards times videos of a class in the first domain
    found = list(itertools.chain(*map(names, episodes(three, length=videos // 2))))
    visits = Counter(name.split(", frame")[0] for name in found if name.startswith("a, "))
    assert len(visits) == 2 * videos and set(visits.values()) == {1}


def test_no_video_counts_more_than_eight_frames(tmp_path):
    videos = [("real", "long", 100), ("swap", "long", 9), ("swap", "short", 3)]
    frames = [Frame("d", n, video, n, method, 1) for method, video, count in videos for n in range(count)]
    found = streams._some_of_each_video(frames, np.random.default_rng(0))
    counts = Counter((frame.method, frame.video_id) for frame in found)
    assert counts == {("real", "long"): 8, ("swap", "long"): 8, ("swap", "short"): 3}


def test_order_is_a_function_of_seed_and_epoch_and_can_be_entered_in_the_middle(three):
    stream = episodes(three)
    first = [names(episode) for episode in stream]
    assert [names(episode) for episode in episodes(three)] == first
    stream.set_epoch(0, start=5)
    assert [names(episode) for episode in stream] == first[5:]
    stream.set_epoch(1)
    assert [names(episode) for episode in stream] != first


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_the_videos_and_agree_on_the_held_out_domain(three, processes):
    """Four shards go evenly to two processes; three of them take every third row instead."""
    parts = [list(episodes(three, process_index=index, num_processes=processes)) for index in range(processes)]
    for together in zip(*parts, strict=True):
        assert len({episode[-1]["domain_ids"] for episode in together}) == 1
    frames = [set(itertools.chain(*map(names, part))) for part in parts]
    for one, other in itertools.combinations(frames, 2):
        assert not one & other


def test_workers_share_the_shards_and_keep_the_order(three):
    stream = episodes(three)
    assert stream.useful_workers(8) == 4
    loader = DataLoader(stream, batch_size=None, num_workers=2, collate_fn=collate, persistent_workers=True)
    first = [batch["names"] for batch in loader]
    assert len(first) == 12
    assert [batch["names"] for batch in loader] == first
    stream.set_epoch(1)
    assert [batch["names"] for batch in loader] != first
    held_out = [episode[-1]["domain_ids"] for episode in episodes(three)]
    stream.set_epoch(0)
    assert [int(batch["domain_ids"][-1]) for batch in loader] == held_out


def test_a_stream_without_a_class_is_an_error_and_no_endless_loop(tmp_path):
    alone = load_stream("d", "train", str(write_parquet(tmp_path / "d", label=["real"] * 8)))
    with pytest.raises(DomainError, match="found no fake frame in its share"):
        next(iter(EpisodeStream([alone, alone], PROCESSOR, 2, 0, 3)))


def test_a_leak_is_found_when_it_comes_by(tmp_path):
    folder = tmp_path / "d"
    for split in ("train", "test"):
        write_parquet(folder, split, video_id=[f"{split}-{row}" for row in range(7)] + ["both"])
    path = str(folder)
    stream = load_stream("d", "train", path, others=[load_domain("d", "test", path)])
    with pytest.raises(DomainError, match="video 'both' stands in the train split and in another"):
        list(EpisodeStream([stream, stream], PROCESSOR, 2, 0, 9))


def test_columns_are_renamed_and_broken_images_listed(tmp_path):
    images = [{"bytes": b"no image" if row == 3 else png(row), "path": None} for row in range(8)]
    write_parquet(tmp_path / "d", picture=images)
    stream = load_stream("d", "train", str(tmp_path / "d"), columns={"image": "picture"})
    items = list(itertools.chain(*EpisodeStream([stream, stream], PROCESSOR, 2, 0, 12)))
    skipped = {item for item in items if isinstance(item, Skipped)}
    assert {item.domain for item in skipped} == {"d"}
    assert all("d, video" in item.reason for item in skipped)
    with pytest.raises(DomainError, match="no column 'nothing' for 'image'"):
        load_stream("d", "train", str(tmp_path / "d"), columns={"image": "nothing"})
    with pytest.raises(DomainError, match="`max_videos` needs the whole domain"):
        load_stream("d", "train", str(tmp_path / "d"), max_videos=3)


@pytest.mark.parametrize("columns", [{}, {"group": None}, {"label": "kind"}, {"image": "face"}])
def test_images_come_through_a_stream_as_they_are_stored(tmp_path, columns):
    """Also where columns have other names, and not even decoded: one of these is broken."""
    images = []
    for row in range(8):
        buffer = io.BytesIO()
        Image.open(io.BytesIO(png(np.arange(256).reshape(16, 16) // (row + 1)))).save(buffer, "JPEG", quality=40)
        images.append({"bytes": b"no image" if row == 5 else buffer.getvalue(), "path": None})
    labels = ["real", "fake"] * 4
    data = {"image": images, "face": images, "label": labels, "kind": labels, "group": ["g"] * 8}
    frames = datasets.Dataset.from_dict(data)
    for column in ("image", "face"):
        frames = frames.cast_column(column, datasets.Image())
    (tmp_path / "d").mkdir()
    frames.to_parquet(tmp_path / "d" / "test.parquet")
    stream = load_stream("d", "test", str(tmp_path / "d"), columns=columns)
    assert [frame.image["bytes"] for frame in stream_frames(stream)] == [image["bytes"] for image in images]


def test_a_runs_loader_reads_streams_and_drawings(tmp_path):
    sources = {"x": {"path": write_domain(tmp_path / "x", 0)}, "y": {"path": "drawn:swap", "max_videos": 4}}
    train, validation, test = load_domains(sources, {}, streaming=True)
    assert [domain.name for domain in validation] == [domain.name for domain in test] == ["x", "y"]
    sampler, loader = make_loader(train, PROCESSOR, 4, seed=0, length=3)
    batches = list(loader)
    assert len(sampler) == len(batches) == 3
    assert {len(batch["labels"]) for batch in batches} == {8}
    assert any(batch["captions"][0] for batch in batches)


@pytest.mark.parametrize("missing", [(), ("frame",), ("method", "video_id"), ("frame", "video_id"), ("caption",)])
def test_a_stream_says_of_a_frame_what_the_whole_domain_says(tmp_path, missing):
    order = np.random.default_rng(1).permutation(18)
    columns = {"group": [f"g{row % 3}" for row in range(18)], "caption": [f"face {row}" for row in range(18)]}
    path = write_methods(tmp_path / "d", order, **columns | dict.fromkeys(missing))
    domain, stream = load_domain("d", "test", path), load_stream("d", "test", path)
    found = list(stream_frames(stream))
    assert [frame._replace(image=None) for frame in found] == [frame_of(domain, row) for row in range(18)]
    assert [frame.image for frame in found] == domain.frames["image"][:]


def test_frames_that_stand_for_themselves_and_drawings_are_streamed_alike(tmp_path):
    for arguments in ({"path": str(write_parquet(tmp_path / "d", "test"))}, {"path": "drawn:swap", "max_videos": 2}):
        domain, stream = load_domain("d", "test", **arguments), load_stream("d", "test", **arguments)
        found = [frame._replace(image=None) for frame in stream_frames(stream)]
        assert found == [frame_of(domain, row) for row in range(len(domain))]


def test_an_epoch_visits_videos_of_one_name_in_every_method(tmp_path):
    for split in ("train", "validation", "test"):
        names = [f"{split}{number}" for number in range(6)]
        write_methods(tmp_path / "d", split=split, video_id=[names[row // 9] for row in range(18)])
    train, _, _ = load_domains({"d": {"path": str(tmp_path / "d")}}, {}, streaming=False)
    sampler, _ = make_loader(train, PROCESSOR, 2, seed=0, length=None)
    assert len(sampler) == 4  # two videos in two forgeries, a fake one in each batch
    rows = [draw.row for batch in sampler for draw in batch if train[0].labels[draw.row] == 1]
    assert len({train[0].videos[row] for row in rows}) == 4


HUB = """
import sys
from huggingface_hub import HfApi
from gmdf_hf.data.streams import load_stream, stream_frames

HfApi().create_repo("user/ff", repo_type="dataset", private=True)
HfApi().upload_folder(repo_id="user/ff", repo_type="dataset", folder_path=sys.argv[1])
frames = list(stream_frames(load_stream("ff", "test", "user/ff")))
print(len(frames), frames[4], frames[4].method, frames[4].image["bytes"][:4])
"""


def test_a_private_data_set_on_the_hub_is_read_and_not_downloaded(tmp_path):
    write_methods(tmp_path / "ff")
    with HubServer() as hub:
        environment = os.environ | hub.environment(tmp_path / "home")
        result = processes.run("-c", HUB, tmp_path / "ff", env=environment, warm=processes.LIBRARIES)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout == "18 ff, video 033, frame 1 FaceSwap b'\\x89PNG'\n"
    assert [*(tmp_path / "ff").rglob("*.parquet")]
    assert not [*(tmp_path / "home").rglob("*.parquet"), *(tmp_path / "home").rglob("*.arrow")]
