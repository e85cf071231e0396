import csv
import hashlib
import io
import json
import shutil
import tarfile

import pytest
from datasets import load_dataset
from PIL import Image

import gmdf_hf.preparation.prepare
import gmdf_hf.preparation.workers
from gmdf_hf.common.columns import prepared_features
from gmdf_hf.common.errors import SourceError, UserError, WorkError
from gmdf_hf.common.locks import locked_folder
from gmdf_hf.preparation.crops import CropSettings
from gmdf_hf.preparation.prepare import prepare
from gmdf_hf.preparation.sources import folder, wilddeepfake
from gmdf_hf.preparation.workers import Job, make_units, run_unit
from tests.domains import build_folder, texture
from tests.media import fill

SETTINGS = CropSettings(frames=5, size=32)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return build_folder(tmp_path_factory.mktemp("data") / "mine", videos=3)


def run(data, output, **options):
    return prepare(folder.list_records(data), output, "mine", SETTINGS, "none", **options)


def digests(output):
    files = [path for path in sorted(output.rglob("*")) if path.is_file()]
    return {str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def rows_of(output):
    return sorted(
        (row["video_id"], row["frame"], row["label"], row["method"], row["group"], split)
        for split, table in load_dataset(str(output)).remove_columns("image").items()
        for row in table
    )


@pytest.fixture(scope="module")
def domain(data, tmp_path_factory):
    output = tmp_path_factory.mktemp("out") / "domain"
    summary = run(data, output)
    return output, summary


def test_domain_loads_as_folder_and_as_parquet(domain):
    output, summary = domain
    loaded = load_dataset(str(output))
    assert set(loaded) == {"train", "validation", "test"}
    for split, table in loaded.items():
        assert table.features == prepared_features(masks=False)
        assert len(table) == summary["splits"][split]["rows"] == 2 * (3 * 5 + 3)
    parquet = load_dataset("parquet", data_files={"test": str(output / "data/test-*.parquet")})["test"]
    assert parquet.features == prepared_features(masks=False) and parquet[0]["image"].size == (32, 32)
    streamed = load_dataset(str(output), split="test", streaming=True)
    assert streamed.features == prepared_features(masks=False)
    assert [row["video_id"] for row in streamed] == loaded["test"]["video_id"][:]


def test_rows_are_the_ones_of_the_source(domain):
    rows = rows_of(domain[0])
    videos = [
        (f"{split}/{kind}/v{n}", frame, label, ("real", "fake")[label], f"{split}/v{n}", split)
        for split in ("train", "validation", "test")
        for label, kind in enumerate(("real", "fake"))
        for n in range(3)
        for frame in (0, 3, 6, 8, 11)
    ]
    images = [
        (f"{split}/{kind}/i{n}", 0, label, ("real", "fake")[label], f"{split}/i{n}", split)
        for split in ("train", "validation", "test")
        for label, kind in enumerate(("real", "fake"))
        for n in range(3)
    ]
    assert rows == sorted(videos + images)


def test_processes_and_a_second_call_change_no_byte(domain, data, tmp_path):
    run(data, tmp_path / "two", processes=2)
    assert digests(tmp_path / "two") == digests(domain[0])
    assert run(data, tmp_path / "two") == domain[1]
    assert digests(tmp_path / "two") == digests(domain[0])


@pytest.mark.parametrize("stopped", ["in the middle", "while finishing", "while cleaning up"])
def test_resumed_work_ends_with_the_same_bytes(domain, data, tmp_path, monkeypatch, stopped):
    output = tmp_path / "domain"
    module, name = {
        "in the middle": (gmdf_hf.preparation.workers, "make_crops"),
        "while finishing": (gmdf_hf.preparation.prepare, "near_duplicates"),
        "while cleaning up": (shutil, "rmtree"),
    }[stopped]
    original, calls = getattr(module, name), []

    def stop(*args, **options):
        calls.append(args)
        if stopped != "in the middle" or len(calls) == 9:
            raise KeyboardInterrupt
        return original(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(module, name, stop)
        with pytest.raises(KeyboardInterrupt):
            run(data, output)
    assert (output / ".work").is_dir()
    done = []
    run(data, output, on_progress=done.append)
    if stopped == "in the middle":
        assert done[0].units == 1 and done[-1].units == done[-1].total
    assert digests(output) == digests(domain[0])


def test_results_of_other_settings_are_refused(domain, data, tmp_path):
    with pytest.raises(WorkError, match="it was begun with size 32, now 64"):
        prepare(folder.list_records(data), domain[0], "mine", CropSettings(frames=5, size=64), "none")
    (tmp_path / "x/data").mkdir(parents=True)
    (tmp_path / "x/data/train-0.parquet").touch()
    with pytest.raises(WorkError, match="choose another folder"):
        run(data, tmp_path / "x")


@pytest.mark.parametrize("of", [2, 3])
def test_shards_of_several_machines_make_one_domain(domain, data, tmp_path, of):
    for number in range(1, of + 1):
        run(data, tmp_path / "domain", shard=(number, of))
    assert rows_of(tmp_path / "domain") == rows_of(domain[0])
    with pytest.raises(ValueError, match="shard is 3/2, expected i/n"):
        run(data, tmp_path / "other", shard=(3, 2))


def test_large_splits_get_several_files(domain, data, tmp_path, monkeypatch):
    monkeypatch.setattr("gmdf_hf.preparation.shards.SHARD_BYTES", 30_000)
    monkeypatch.setattr("gmdf_hf.preparation.shards.ROW_GROUP", 7)
    run(data, tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out/data").glob("train-*"))
    assert len(names) > 1
    assert names == [f"train-{n:05}-of-{len(names):05}.parquet" for n in range(len(names))]
    assert rows_of(tmp_path / "out") == rows_of(domain[0])


def test_skipped_files_are_listed_and_bounded(data, tmp_path):
    broken = tmp_path / "mine"
    for path in sorted(data.rglob("*.*")):
        fill(broken / path.relative_to(data).parent, [path.name], path)
    for name, content in (("v0.mp4", b"no video"), ("i0.png", b"no image")):
        (broken / "train/real" / name).unlink()
        (broken / "train/real" / name).write_bytes(content)
    (broken / "train/real/notes.txt").touch()
    with pytest.raises(WorkError, match=r"2 of 36 videos or images gave no face, more than --max_skipped 0\.05"):
        run(broken, tmp_path / "out")
    summary = run(broken, tmp_path / "out", max_skipped=0.06)
    assert summary["skipped"] == 2 and summary["left_out"] == 1
    with (tmp_path / "out/skipped.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["video_id"], row["frames"]) for row in rows] == [
        ("train/real/i0", "all"),
        ("train/real/v0", "all"),
        ("", "all"),
    ]
    assert "not a readable image" in rows[0]["reason"] and "not a readable video" in rows[1]["reason"]
    assert rows[2]["file"] == "train/real/notes.txt"
    assert len(rows_of(tmp_path / "out")) == 3 * 36 - 6


def test_leaks_stop_the_work(data, tmp_path):
    listing = folder.list_records(data)
    listing.records.append(listing.records[0].__class__(**{**vars(listing.records[0]), "split": "test"}))
    with pytest.raises(SourceError, match="Leak: 1 of column group"):
        prepare(listing, tmp_path / "out", "mine", SETTINGS, "none")
    assert not (tmp_path / "out").exists()


def test_near_duplicates_between_splits_are_reported(data, tmp_path):
    mine = tmp_path / "mine"
    for path in sorted(data.rglob("*.*")):
        fill(mine / path.relative_to(data).parent, [path.name], path)
    Image.open(mine / "train/fake/i1.png").save(mine / "test/real/copy.jpg", quality=70)
    summary = run(mine, tmp_path / "out")
    assert summary["near_duplicate_videos"]["train and test"] == 1
    with (tmp_path / "out/duplicates.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {
        "split": "train",
        "video_id": "train/fake/i1",
        "other_split": "test",
        "other_video_id": "test/real/copy",
        "pairs": "1",
    } in rows


def test_tars_are_read_in_one_unit(tmp_path):
    for kind in ("real", "fake"):
        for split in ("train", "test"):
            (tmp_path / "wild" / f"{kind}_{split}").mkdir(parents=True)
            for number in range(8):
                with tarfile.open(tmp_path / "wild" / f"{kind}_{split}" / f"{number}.tar.gz", "w:gz") as archive:
                    for sequence in range(2):
                        for frame in range(7):
                            buffer = io.BytesIO()
                            Image.fromarray(texture(2 * number + sequence)).save(buffer, "PNG")
                            info = tarfile.TarInfo(f"./{number}/{kind}/{sequence}/{frame}.png")
                            info.size = buffer.tell()
                            archive.addfile(info, io.BytesIO(buffer.getvalue()))
    listing = wilddeepfake.list_records(tmp_path / "wild")
    assert len(make_units(listing.records)) == 32
    summary = prepare(listing, tmp_path / "out", "wilddeepfake", SETTINGS, "none")
    assert sum(counts["rows"] for counts in summary["splits"].values()) == 64 * 5


def test_units_hold_one_split_and_every_record_once(data):
    records = folder.list_records(data).records
    units = make_units(records)
    assert sorted(r.video_id for unit in units for r in unit.records) == sorted(r.video_id for r in records)
    assert all(len({record.split for record in unit.records}) == 1 for unit in units)
    assert make_units(list(records)) == units


def test_a_finished_part_is_not_repeated(data, tmp_path):
    unit = make_units(folder.list_records(data).records)[0]
    job = Job(tmp_path, SETTINGS, "none", None)
    first = run_unit(unit, job)
    before = first.path.stat().st_mtime_ns
    assert run_unit(unit, job) == first and first.path.stat().st_mtime_ns == before
    assert [path.name for path in tmp_path.iterdir()] == ["00000000.parquet"]


def test_arguments_are_checked(data, tmp_path):
    listing = folder.list_records(data)
    for options, message in (
        ({"engine": "spark"}, "engine is 'spark', expected one of processes, ray"),
        ({"processes": 0}, "processes is 0"),
        ({"max_skipped": 2.0}, r"max_skipped 2\.0"),
    ):
        with pytest.raises(ValueError, match=message):
            prepare(listing, tmp_path / "out", "mine", SETTINGS, "none", **options)
    with pytest.raises(ValueError, match="detector is 'dlib', expected one of yunet"):
        prepare(listing, tmp_path / "out", "mine", SETTINGS, "dlib")
    with pytest.raises(ValueError, match=r"Detector haar has no weights, found a\.xml"):
        prepare(listing, tmp_path / "out", "mine", SETTINGS, "haar", "a.xml")
    with pytest.raises(ValueError, match="Aligned crops need landmarks, which none has not"):
        prepare(listing, tmp_path / "out", "mine", CropSettings(crop="aligned"), "none")


def test_summary_says_everything(domain):
    output, summary = domain
    assert json.loads((output / "summary.json").read_text()) == summary
    assert summary["splits"]["train"] == {
        "rows": 36,
        "groups": 6,
        "real_videos": 6,
        "fake_videos": 6,
        "methods": {"fake": {"videos": 6, "rows": 18}, "real": {"videos": 6, "rows": 18}},
    }
    card = (output / "README.md").read_text()
    assert (
        "| train | 36 | 6 | 6 | 6 |" in card and "path: data/validation-*.parquet" in card and "To be filled in" in card
    )


def test_replaced_files_are_noticed(data, tmp_path):
    """The same names with other pictures: neither a mixed domain nor the old one."""
    mine = shutil.copytree(data, tmp_path / "mine")
    run(mine, tmp_path / "domain")
    run(mine, tmp_path / "domain")  # finished: nothing is done again
    picture = next(path for path in sorted(mine.rglob("*.png")))
    Image.fromarray(texture(99)).save(picture)
    with pytest.raises(WorkError, match=r"replaced since .*domain was begun: their sizes or times of change differ"):
        run(mine, tmp_path / "domain")


def test_a_folder_in_use_is_refused(data, tmp_path):
    with locked_folder(tmp_path / "domain"), pytest.raises(UserError, match="is in use by process"):
        run(data, tmp_path / "domain")
