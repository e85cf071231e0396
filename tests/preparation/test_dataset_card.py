import json
import os

import pytest
from datasets import load_dataset

from gmdf_hf.preparation.crops import CropSettings
from gmdf_hf.preparation.dataset_card import push_domain
from gmdf_hf.preparation.prepare import prepare
from gmdf_hf.preparation.sources import folder
from tests import processes
from tests.domains import build_folder
from tests.hub_server import HubServer

LOAD = """
import hashlib, json
from datasets import load_dataset
found = {}
for split, streaming in (("train", False), ("train", True), ("test", True)):
    found[f"{split} {streaming}"] = rows = []
    for row in load_dataset("user/mine", split=split, streaming=streaming):
        pixels = hashlib.sha256(row["image"].tobytes()).hexdigest()
        rows.append([pixels, *(row[name] for name in ("label", "video_id", "frame", "method", "group"))])
print(json.dumps(found))
"""


def test_pushed_domain_loads_by_name_in_a_fresh_process(tmp_path):
    data, output = build_folder(tmp_path / "mine", videos=2), tmp_path / "domain"
    with HubServer() as hub:
        environment = os.environ | hub.environment(tmp_path / "home")
        command = "scripts/prepare.py --source folder --detector none --size 32 --frames 4 --processes 1"
        command = [*command.split(), "--root", str(data), "--output", str(output), "--push_to_hub", "user/mine"]
        environment["PYTHONPATH"] = os.getcwd()
        pushed = processes.run(*command, env=environment, warm=processes.LIBRARIES)
        assert pushed.returncode == 0, pushed.stderr
        repository = hub.repositories["datasets/user/mine"]
        assert repository.private
        files = repository.commits[repository.head]
        assert set(files) == {
            ".gitattributes",
            "README.md",
            "summary.json",
            *(f"data/{split}-00000-of-00001.parquet" for split in ("train", "validation", "test")),
        }
        loaded = processes.run("-c", LOAD, env=environment, warm=processes.LIBRARIES)
    assert loaded.returncode == 0, loaded.stderr
    found = json.loads(loaded.stdout)
    rows = found["train False"]
    assert rows == found["train True"]
    local = load_dataset(str(output), split="train")
    assert len(rows) == len(local) == 2 * (2 * 4 + 3)
    assert [row[1:] for row in rows] == [
        [row[name] for name in ("label", "video_id", "frame", "method", "group")]
        for row in local.remove_columns("image")
    ]
    assert {row[2].split("/")[0] for row in found["test True"]} == {"test"}


def test_two_domains_in_folders_of_one_name_stay_apart(tmp_path):
    """`datasets` keys its cache by the folder's last name and the card, so the card must tell contents apart."""
    lengths = []
    for number in (1, 2):
        data = build_folder(tmp_path / f"data{number}", videos=1, images=number)
        output = tmp_path / f"run{number}" / "domain"
        prepare(folder.list_records(data), output, "mine", CropSettings(frames=2, size=32), "none")
        lengths.append(len(load_dataset(str(output), split="train", cache_dir=str(tmp_path / "cache"))))
    assert lengths == [2 * (2 + 1), 2 * (2 + 2)]


def test_only_a_finished_domain_is_pushed(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no prepared domain"):
        push_domain(tmp_path, "user/mine")
