import datasets
import pytest
import torch
from transformers import AutoTokenizer

from gmdf_hf import TINY_CLIP, GMDFImageProcessor
from gmdf_hf.common.columns import FEATURES, MASK
from gmdf_hf.data.dataset import load_domain
from gmdf_hf.data.frames import Draw, FrameReader, Skipped, caption_encoder, collate
from gmdf_hf.data.loading import missing_masks
from gmdf_hf.data.streams import load_stream, stream_frames
from gmdf_hf.data.transforms import TRANSFORMS
from tests.domains import png, write_parquet

pytestmark = pytest.mark.usefixtures("own_cache")


def test_broken_images_are_skipped_and_listed_never_replaced(tmp_path):
    images = [png(0), png(1)[:40], b"no image", png(3)]
    write_parquet(tmp_path / "d", rows=4, image=[{"bytes": data, "path": None} for data in images])
    reader = FrameReader([load_domain("d", "train", str(tmp_path / "d"))], GMDFImageProcessor.of_size(8))
    items = [reader[0, row] for row in range(4)]
    assert [isinstance(item, Skipped) for item in items] == [False, True, True, False]
    assert "d, video d/train/1/fake, frame 0" in items[1].reason
    batch = collate(items)
    assert batch["rows"].tolist() == [0, 3]
    assert batch["labels"].tolist() == [0, 1]
    assert batch["pixel_values"].shape == (2, 3, 8, 8)
    assert [item.row for item in batch["skipped"]] == [1, 2]
    assert "pixel_values" not in collate(items[1:3])


def test_odd_random_numbers_mirror_the_picture(tmp_path):
    stripes = png([[0, 80, 160, 240]] * 4)
    write_parquet(tmp_path / "d", image=[{"bytes": stripes, "path": None}] * 8)
    reader = FrameReader([load_domain("d", "train", str(tmp_path / "d"))], GMDFImageProcessor.of_size(8))
    plain, even, odd = reader[0, 2], reader[Draw(0, 2, 10)], reader[Draw(0, 2, 11)]
    assert torch.equal(plain["pixel_values"], even["pixel_values"])
    assert torch.equal(plain["pixel_values"], odd["pixel_values"].flip(-1))
    assert not torch.equal(plain["pixel_values"], odd["pixel_values"])
    assert collate([even, odd])["chances"] == [10, 11]


def test_masks_are_read_where_a_model_needs_them(tmp_path):
    mask = {"bytes": png([[0, 0, 0, 255]] * 4), "path": None}
    masks = [None, mask, None, None, None, {"bytes": b"no image", "path": None}]
    features = FEATURES | MASK
    data = {"image": [{"bytes": png(9), "path": None}] * 6, "label": [0, 1] * 3, "mask": masks}
    (tmp_path / "d").mkdir()
    features = datasets.Features({name: features[name] for name in data})
    datasets.Dataset.from_dict(data, features=features).to_parquet(tmp_path / "d" / "train.parquet")
    domain, processor = load_domain("d", "train", str(tmp_path / "d")), GMDFImageProcessor.of_size(8)
    assert "forged" not in FrameReader([domain], processor)[0, 1]
    reader = FrameReader([domain], processor, masks=True)
    items = [reader[Draw(0, row, chance)] for row, chance in ((0, 0), (1, 0), (1, 1), (3, 0))]
    assert not items[0]["forged"].any()  # nothing is forged in a real image
    assert items[1]["forged"].max() == 1 and items[1]["forged"][:, :4].max() == 0
    assert torch.equal(items[2]["forged"], items[1]["forged"].flip(-1))
    assert (items[3]["forged"] == -1).all()
    assert collate(items)["forged"].shape == (4, 8, 8)
    assert "mask of d, video" in reader[0, 5].reason
    stream = load_stream("d", "train", str(tmp_path / "d"))
    assert [frame.mask is None for frame in stream_frames(stream)] == [True, False, True, True, True, False]
    write_parquet(tmp_path / "e")
    lacking = load_domain("e", "train", str(tmp_path / "e"))
    assert (FrameReader([lacking], processor, masks=True)[0, 1]["forged"] == -1).all()
    assert missing_masks([domain]) is missing_masks([stream]) is None
    assert missing_masks([domain, lacking]).startswith("no column `mask` in e:")


def test_real_faces_are_read(real_data):
    domain = load_domain("stylegan", "validation", str(real_data / "faces" / "stylegan"))
    frame = FrameReader([domain], GMDFImageProcessor.of_size(64))[0, 5]
    assert frame["pixel_values"].shape == (3, 64, 64)
    assert frame["names"] == f"stylegan, video {domain.video_ids[5]}, frame {domain.frame_numbers[5]}"


def test_captions_become_two_sentences_each():
    ids = caption_encoder(str(TINY_CLIP))(["a face", "a noisy photo of a face"])
    assert ids.shape[:2] == (2, 2)
    assert not torch.equal(ids[0, 0], ids[0, 1])


def test_a_frames_own_number_decides_how_it_is_changed(tmp_path):
    write_parquet(tmp_path / "d")
    domains, processor = [load_domain("d", "train", str(tmp_path / "d"))], GMDFImageProcessor.of_size(8)
    plain, changing = FrameReader(domains, processor), FrameReader(domains, processor, TRANSFORMS["standard"])
    images = [changing[0, 0, chance]["pixel_values"] for chance in range(0, 20, 2)]
    again = [changing[0, 0, chance]["pixel_values"] for chance in range(0, 20, 2)]
    assert torch.equal(torch.stack(images), torch.stack(again))
    assert sum(not torch.equal(image, plain[0, 0, 2]["pixel_values"]) for image in images) >= 5
    assert not all(torch.equal(image, images[0]) for image in images)


def test_a_long_caption_is_cut_and_not_the_sentence_behind_it():
    """Else real and fake become the same sentence, and every probability 0.5."""
    encode = caption_encoder(str(TINY_CLIP))
    long, short = encode(["a man with a hat " * 100, "a man"])
    assert not torch.equal(long[0], long[1])
    tokenizer = AutoTokenizer.from_pretrained(TINY_CLIP)
    texts = [tokenizer.decode(row, skip_special_tokens=True) for row in long]
    assert texts[0].strip().endswith("a photo of real face") and texts[1].strip().endswith("a photo of fake face")
    expected = tokenizer(["a man A photo of real face", "a man A photo of fake face"], padding=True)["input_ids"]
    assert short[:, : len(expected[0])].tolist() == expected
