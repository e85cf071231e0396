import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pandas as pd
import pytest
import torch

from gmdf_hf.common.errors import UserError
from gmdf_hf.data.frames import Skipped
from gmdf_hf.training.training_state import (
    History,
    Progress,
    Stopped,
    StopSignal,
    last_state,
    load_state,
    open_run,
    save_state,
)
from tests import processes
from tests.domains import write_domain

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("GMDF_KILLS", "6"))


def make(seed: int = 0):
    torch.manual_seed(seed)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    return model, optimizer, scheduler


def learn(model, optimizer, scheduler, steps: int, first: int = 0) -> None:
    for step in range(first, first + steps):
        optimizer.zero_grad()
        model(torch.full((4, 3), float(step))).square().sum().backward()
        optimizer.step()
        scheduler.step()


def save(folder: Path, step: int, parts, keep: int = 2, **fields) -> Path:
    model, optimizer, scheduler = parts
    return save_state(folder, Progress(step=step, **fields), model, optimizer, {"scheduler": scheduler}, {}, 8, keep)


def test_resumed_training_equals_uninterrupted_training(tmp_path):
    straight = make()
    learn(*straight, steps=7)
    first, second = make(), make(seed=1)
    learn(*first, steps=3)
    skipped = [Skipped("d", 3, "broken")]
    place = save(tmp_path, 3, first, epoch=1, iteration=2, best=0.5, threshold=0.25, history=99, skipped=skipped)
    progress = load_state(place, *second[:2], {"scheduler": second[2]}, {}, 8)
    assert progress == Progress(3, 1, 2, 0.5, 0.25, 99, 0.0, skipped=skipped)
    learn(*second, steps=4, first=3)
    for ours, theirs in zip(second[0].parameters(), straight[0].parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert second[2].get_last_lr() == straight[2].get_last_lr()


def test_a_checkpoint_holds_no_pickle(tmp_path):
    place = save(tmp_path, 1, make())
    assert {path.name for path in place.iterdir()} == {"state.safetensors", "state.json"}


def test_the_oldest_are_removed_and_half_written_ones_are_never_the_last(tmp_path):
    parts = make()
    for step in (5, 10, 100):
        save(tmp_path, step, parts)
    (tmp_path / "new-00000200").mkdir()
    (tmp_path / "new-00000200" / "state.json").write_text("{")
    assert last_state(tmp_path).name == "step-00000100"
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-00000010", "step-00000100"]
    save(tmp_path, 300, parts, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000300"]
    assert last_state(tmp_path / "none") is None


def test_a_full_disk_costs_nothing_but_the_new_checkpoint(tmp_path, monkeypatch):
    parts = make()
    before = save(tmp_path, 5, parts)
    content = (before / "state.safetensors").read_bytes()

    def full(tensors, path):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gmdf_hf.training.training_state.save_file", full)
    with pytest.raises(UserError, match=r"No space left on device.*last complete one is .*step-00000005"):
        save(tmp_path, 6, parts)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000005"]
    assert (before / "state.safetensors").read_bytes() == content


def test_a_full_disk_in_truth(tmp_path):
    """Use a file system of one megabyte, if the machine allows mounting one."""
    command = "mkdir -p $0 && mount -t tmpfs -o size=1m tmpfs $0"
    folder = tmp_path / "disk"
    if os.geteuid() != 0 or subprocess.run(["sh", "-c", command, folder], capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        model = torch.nn.Linear(300, 300)  # a third of the disk: space for only one checkpoint
        optimizer = torch.optim.Adam(model.parameters())
        before = save_state(folder, Progress(step=1), model, torch.optim.SGD(model.parameters()), {}, {}, 8, keep=2)
        model(torch.ones(1, 300)).sum().backward()
        optimizer.step()
        with pytest.raises(UserError, match="could not be written"):
            save_state(folder, Progress(step=2), model, optimizer, {}, {}, 8, keep=2)
        assert [path.name for path in folder.iterdir()] == [before.name]
        load_state(before, model, torch.optim.SGD(model.parameters()), {}, {}, 8)
    finally:
        subprocess.run(["umount", folder], check=True)


def test_another_run_is_refused(tmp_path):
    place = save(tmp_path, 1, make())
    other = torch.nn.Linear(4, 2)
    with pytest.raises(UserError, match=r"is of another model: .*size mismatch for weight"):
        load_state(place, other, torch.optim.Adam(other.parameters()), {}, {}, 8)
    model, optimizer, scheduler = make()
    with pytest.raises(UserError, match=r"started with 8 images .* found 16"):
        load_state(place, model, optimizer, {"scheduler": scheduler}, {}, 16)


def test_an_unfinished_run_is_not_overwritten(tmp_path):
    assert open_run(tmp_path, {"seed": 0}, resume=True) is None
    (tmp_path / "train_config.yaml").write_text("seed: 0\nnum_workers: 2\n")
    place = save(tmp_path / "checkpoints", 7, make())
    with pytest.raises(UserError, match="was not finished, at iteration 7: go on with --resume true"):
        open_run(tmp_path, {"seed": 0}, resume=False)
    assert open_run(tmp_path, {"seed": 0, "num_workers": 8}, resume=True) == place
    with pytest.raises(UserError, match="other settings: seed was 0, is 1"):
        open_run(tmp_path, {"seed": 1}, resume=True)
    (tmp_path / "results.json").write_text("{}")
    assert open_run(tmp_path, {"seed": 1}, resume=False) is None  # finished: a new run replaces it
    assert not place.exists() and not (tmp_path / "results.json").exists()


def test_history_can_be_cut(tmp_path):
    history = History(tmp_path / "history.jsonl", active=True)
    history.add({"step": 1})
    size = history.size()
    history.add({"step": 2})
    history.cut(size)
    History(tmp_path / "history.jsonl", active=False).add({"step": 3})
    assert history.path.read_text() == '{"step": 1}\n'


def test_sigterm_is_noted_and_stops_at_once_where_all_is_saved():
    before = signal.getsignal(signal.SIGTERM)
    with StopSignal() as stop:
        with stop.at_once():
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received
        with pytest.raises(Stopped), stop.at_once():
            pytest.fail("it came before")
    with StopSignal() as stop, pytest.raises(Stopped), stop.at_once():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def settings(tmp_path: Path, **fields) -> dict:
    sources = {name: write_domain(tmp_path / name, seed) for seed, name in enumerate("xy")}
    return {
        "source_domains": sources,
        "backbone": "tiny_clip",
        "model": {"codebook_size": 16, "expert_bottleneck_size": 4, "prompt_size": 4},
        "epochs": 4,
        "batch_size": 4,
        "learning_rate": 1e-4,
        "lr_scheduler": "cosine",
        "source_weight": 1.0,
        "image_tokenizer_steps": 2,
        "save_steps": 1,
    } | fields


# One process imports the modules and forks a child per attempt, which saves the start-up time of Python.
KILLER = """
import json, os, random, signal, sys, time
from pathlib import Path
from gmdf_hf.training.config import TrainConfig
from gmdf_hf.scripts import meta_train

meta_train.plot_history = lambda *_: None  # a quarter of the time of so short a run
folder, fields = Path(sys.argv[1]), json.loads(sys.argv[2])

def attempt(name, seconds=None):
    child = os.fork()
    if child == 0:
        log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1), os.dup2(log, 2)
        meta_train.main(TrainConfig(**fields, output_dir=folder / name, resume=True))
        os._exit(0)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]

started = time.time()
assert attempt("straight") == 0
length = time.time() - started
kills, runs = 0, 0
rng = random.Random(0)
wanted = int(sys.argv[3])
while kills < wanted:
    runs += 1
    while status := attempt(f"killed-{runs}", rng.uniform(0.1, 0.9) * length if kills < wanted else None):
        assert status == signal.SIGKILL, status
        kills += 1
print(json.dumps({"kills": kills, "runs": runs, "seconds": length}))
"""


@pytest.mark.slow
def test_a_run_killed_many_times_ends_as_one_that_was_not(tmp_path):
    code = tmp_path / "killer.py"
    code.write_text(KILLER)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path / "home")}
    fields = json.dumps(settings(tmp_path, epochs=2, batch_size=2, image_size=32))
    done = processes.run(code, tmp_path, fields, KILLS, env=environment, cwd=ROOT, warm=processes.LIBRARIES)
    log = tmp_path / "log.txt"
    assert done.returncode == 0, done.stderr[-2000:] + (log.read_text()[-2000:] if log.exists() else "")
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["kills"] == KILLS
    straight = tmp_path / "straight"
    for number in range(1, found["runs"] + 1):
        killed = tmp_path / f"killed-{number}"
        for name in ("history.jsonl", "model/model.safetensors"):
            assert (killed / name).read_bytes() == (straight / name).read_bytes(), name
        # The file also names the model's folder.
        assert pd.read_parquet(killed / "scores.parquet").equals(pd.read_parquet(straight / "scores.parquet"))
        last, expected = (last_state(run / "checkpoints") for run in (killed, straight))
        assert last.name == expected.name == "step-00000008"
        # Parameters and optimizer state are bit-identical.
        assert (last / "state.safetensors").read_bytes() == (expected / "state.safetensors").read_bytes()
        one, other = (json.loads((run / "results.json").read_text()) for run in (killed, straight))
        assert one["domains"] == other["domains"] and one["threshold"] == other["threshold"]


def test_sigterm_saves_and_exits_with_a_code_of_its_own(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(settings(tmp_path, epochs=500, output_dir=str(tmp_path / "run"), save_steps=None)))
    read, written = os.pipe()
    with open(read) as stderr, open(written, "w") as theirs:
        process = processes.start(ROOT / "scripts" / "meta_train.py", "--recipe", recipe, stderr=theirs, cwd=ROOT)
        theirs.close()
        step = re.compile(r"meta-training.*\| (\d+)/")
        for line in stderr:  # carriage returns of the progress bar end lines too; it is not drawn at every step
            if (shown := step.search(line)) and int(shown[1]) >= 3:
                break
        process.send_signal(signal.SIGTERM)
        rest = stderr.read()
    assert process.wait() == 75
    said, hint = rest.splitlines()[-2:]
    assert "meta_train.py: SIGTERM" in said and "--resume true" in hint
    done = last_state(tmp_path / "run" / "checkpoints")
    assert json.loads((done / "state.json").read_text())["progress"]["step"] >= 3
    shutil.rmtree(tmp_path / "run")
