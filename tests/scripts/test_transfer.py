import io

import numpy as np
import pytest
from PIL import Image

from gmdf_hf.scripts import transfer
from gmdf_hf.scripts.transfer import LARGEST, layout, neighbours, sharpness, spectrum, texture
from tests.domains import write_parquet


def test_neighbours_are_those_of_a_slow_loop():
    channel = np.random.default_rng(0).integers(0, 30, (6, 9)).astype(float)
    counts = {}
    for row in channel:
        steps = []
        for x in range(1, len(row) - 1):
            residual = row[x] - (row[x - 1] + row[x + 1]) / 2
            steps.append(int(min(max(np.round(residual / 2), -LARGEST), LARGEST)) + LARGEST)
        for x in range(len(steps) - 2):
            triple = tuple(steps[x : x + 3])
            counts[triple] = counts.get(triple, 0) + 1
    found = neighbours(channel).reshape(5, 5, 5) ** 2
    assert found.sum() == pytest.approx(1)
    for triple in np.ndindex(5, 5, 5):
        assert found[triple] == pytest.approx(counts.get(triple, 0) / sum(counts.values()))


def test_a_wave_stands_in_the_ring_of_its_frequency():
    side = 96
    slow, fast = (100 * np.cos(2 * np.pi * waves * np.arange(side) / side)[None].repeat(side, 0) for waves in (12, 24))
    difference = spectrum(fast) - spectrum(slow)
    assert difference.argmax() in (24, 25)  # the peak lies slightly off the axis
    assert np.isfinite(spectrum(fast[:20, :20])).all()


def test_features_do_not_depend_on_the_picture_being_large():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 260, 3), dtype=np.uint8))
    middle = picture.crop((18, 38, 242, 262))
    assert np.array_equal(texture(picture), texture(middle))
    assert texture(picture.resize((40, 30))).shape == texture(picture).shape
    assert layout(picture).shape == (768,)


def test_sharpness_is_that_of_a_slow_loop_and_falls_with_blur():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (12, 9), dtype=np.uint8))
    light = np.asarray(picture, float)
    found = [
        light[y - 1, x] + light[y + 1, x] + light[y, x - 1] + light[y, x + 1] - 4 * light[y, x]
        for y in range(1, 11)
        for x in range(1, 8)
    ]
    assert sharpness(picture) == pytest.approx([np.log1p(np.var(found))])
    assert sharpness(picture.resize((4, 6)).resize((9, 12))) < sharpness(picture)
    assert sharpness(Image.new("L", (2, 2))) == [0]


def pictures(rng, seed, bright):
    """Fakes are brighter, or smoother."""
    images = []
    for row in range(24):
        noise = rng.integers(0, 120, (48, 48, 3), dtype=np.uint8)
        picture = Image.fromarray(noise + np.uint8(60 * (row % 2) * bright))
        if row % 2 and not bright:
            picture = picture.resize((24, 24)).resize((48, 48))
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        images.append({"bytes": buffer.getvalue(), "path": None})
    return images


def test_what_carries_over_is_told_from_what_does_not(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for name, bright in (("bright", True), ("smooth", False), ("smoother", False)):
        for split in ("train", "test"):
            images = pictures(rng, name, bright)
            if name == "smooth" and split == "train":
                images[3] = {"bytes": b"not a picture", "path": None}
            write_parquet(tmp_path / name, split, rows=24, image=images)
    sources = ", ".join(f"{name}: {tmp_path / name}" for name in ("bright", "smooth", "smoother"))
    (tmp_path / "recipe.yaml").write_text(f"source_domains: {{{sources}}}\n")
    arguments = ["--recipe", str(tmp_path / "recipe.yaml"), "--output", str(tmp_path / "tables.md")]
    tables = transfer.main(arguments)
    header, *rows = tables["texture"]
    assert header == ["trained on", "bright", "smooth", "smoother"]
    assert [row[0] for row in rows][:4] == ["bright", "smooth", "smoother", "bright + smooth + smoother"]
    assert rows[-1][0] == "bright + smooth"
    aucs = {row[0]: dict(zip(header[1:], map(float, row[1:]), strict=True)) for row in rows}
    assert aucs["smooth"]["smoother"] > 95  # the same kind of forgery
    assert aucs["smooth"]["bright"] < 80  # another kind
    thumbnails = {row[0]: float(row[1]) for row in tables["layout"][1:]}
    assert thumbnails["bright"] > 95
    cues = {kind: {row[0]: row[1:] for row in table[1:]} for kind, table in tables.items()}
    assert float(cues["sharpness"]["smooth"][1]) > 95 and float(cues["file size"]["smooth"][1]) > 95
    assert cues["size"]["bright"] == ["50.00", "50.00", "50.00"]  # all pictures have one size
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("left out: ")]
    assert len(said) == 1 and "smooth" in said[0]
    assert (tmp_path / "tables.md").read_text().count("| trained on |") == 5
