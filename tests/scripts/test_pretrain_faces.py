import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.ndimage import correlate1d
from transformers import AutoImageProcessor, CLIPModel

from gmdf_hf.common.errors import DomainError, UserError
from gmdf_hf.modeling import GMDFModel
from gmdf_hf.scripts import pretrain_faces
from gmdf_hf.scripts.pretrain_faces import REACH, Pretraining, blur, draw_regions, move, paste, worsen
from gmdf_hf.training.config import load_recipe
from gmdf_hf.training.setup import backbone_path, start_model
from tests.domains import png, write_parquet

SIDE = 64


def images(count=6):
    return torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def generator():
    return torch.Generator().manual_seed(1)


def test_blur_is_a_gaussian_of_each_images_own_width():
    found = blur(images(2), torch.tensor([0.0, 1.2]))
    assert torch.allclose(found[0], images(2)[0], atol=1e-6)
    weights = np.exp(-0.5 * (np.arange(-REACH, REACH + 1) / 1.2) ** 2)
    weights /= weights.sum()
    expected = images(2)[1].numpy()
    for axis in (1, 2):
        expected = correlate1d(expected, weights, axis=axis, mode="mirror")
    assert torch.allclose(found[1], torch.tensor(expected), atol=1e-5)


def test_what_is_told_of_a_worsened_image_is_true():
    sharp = images(200)
    worse, strengths = worsen(sharp, generator())
    assert worse.shape == sharp.shape
    assert strengths.min() == 0 and strengths.max() <= 1
    assert 0.35 < (strengths == 0).float().mean() < 0.65
    detail = (worse[..., 1:] - worse[..., :-1]).std((1, 2, 3))
    blurred, clean = (strengths[:, 0] > 0.5), (strengths[:, 0] == 0)
    assert detail[blurred].mean() < 0.8 * detail[clean].mean()


def test_moving_by_nothing_changes_nothing_and_by_more_does():
    assert torch.allclose(move(images(), 0.0, generator()), images(), atol=1e-4)
    assert (move(images(), 0.2, generator()) - images()).abs().mean() > 0.1


def test_a_pasted_image_changes_where_the_region_is_and_nowhere_else():
    originals = images(100)
    found, share = paste(originals, generator())
    assert share.shape == (100, 1, SIDE, SIDE) and share.min() >= 0 and share.max() <= 1
    untouched = share.expand_as(originals) == 0
    assert torch.equal(found[untouched], originals[untouched])
    pasted = share.amax((1, 2, 3)) > 0
    assert 0.4 < pasted.float().mean() < 0.8
    assert all((found[n] - originals[n]).abs().max() > 0.1 for n in pasted.nonzero().flatten())
    regions = draw_regions(50, SIDE, generator())
    assert 0.02 < regions.mean() < 0.5 and regions.std((1, 2, 3)).min() > 0


def test_the_losses_learn_their_tasks():
    torch.manual_seed(0)
    model = start_model("tiny_clip", ["faces"], {"expert_bottleneck_size": 1, "codebook_size": 1})
    task = Pretraining(model).train()
    smooth = blur(images(16), torch.full((16,), 1.5))
    optimizer = torch.optim.Adam([p for p in task.parameters() if p.requires_grad], 1e-3)
    course = []
    for _ in range(12):
        losses = task(smooth, generator())  # the same task each time
        assert set(losses) == {"hidden_patches", "quality", "pasted_patch", "pasted_image"}
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        course.append({name: loss.item() for name, loss in losses.items()})
    assert all(course[-1][name] < course[0][name] for name in course[0])


@pytest.fixture
def recipe(tmp_path):
    for split in ("train", "validation", "test"):
        write_parquet(tmp_path / "data", split, rows=8, label=[0, 1] * 4)
    # Pre-training ignores labels: inverted labels do not change the result.
    write_parquet(tmp_path / "turned", "train", rows=8, label=[1, 0] * 4)
    text = "backbone: tiny_clip\nsource_domains: {{a: {0}/{1}}}\n"
    for name in ("data", "turned"):
        (tmp_path / f"{name}.yaml").write_text(text.format(tmp_path, name))
    return tmp_path / "data.yaml"


def test_the_written_folder_is_a_clip_with_another_vision_tower(recipe, tmp_path):
    output = tmp_path / "backbone"
    pretrain_faces.main(f"--recipe {recipe} --output {output} --steps 2 --batch_size 4".split())
    before = CLIPModel.from_pretrained(backbone_path("tiny_clip")).state_dict()
    after = CLIPModel.from_pretrained(output).state_dict()
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(name.startswith("vision_model.") for name in changed)
    detector = GMDFModel.from_clip(output, domains=["a", "b"])
    assert (
        detector.config.prompt_ids == GMDFModel.from_clip(backbone_path("tiny_clip"), domains=["a"]).config.prompt_ids
    )
    assert AutoImageProcessor.from_pretrained(output).crop_size["height"] == SIDE


def test_labels_play_no_part(recipe, tmp_path):
    weights = []
    for name in ("data", "turned"):
        config = load_recipe(tmp_path / f"{name}.yaml", {"method": "direct_merge"})
        pretrain_faces.pretrain(config, tmp_path / f"{name}_out", steps=2, batch_size=4)
        weights.append(load_file(tmp_path / f"{name}_out" / "model.safetensors"))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_held_out_domain_is_not_read(recipe, tmp_path):
    recipe.write_text(recipe.read_text().replace("}", f", b: {tmp_path}/missing}}"))
    options = f"--recipe {recipe} --output {tmp_path / 'out'} --steps 1 --batch_size 4".split()
    pretrain_faces.main([*options, "--hold_out", "b"])
    with pytest.raises(UserError, match="hold_out names 'c'"):
        pretrain_faces.main([*options, "--hold_out", "c"])


def test_unreadable_faces_are_listed_and_another_image_size_is_refused(recipe, tmp_path, capsys):
    images = [{"bytes": b"no picture" if row == 2 else png(row), "path": None} for row in range(8)]
    write_parquet(tmp_path / "data", "train", rows=8, label=[0, 1] * 4, image=images)
    options = f"--recipe {recipe} --output {tmp_path / 'out'} --steps 2 --batch_size 8".split()
    pretrain_faces.main(options)
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("left out: ")]
    assert len(said) == 1 and "a, video" in said[0]
    write_parquet(tmp_path / "data", "train", rows=4, label=[0, 1] * 2, image=[{"bytes": b"none", "path": None}] * 4)
    with pytest.raises(DomainError, match="None of the"):
        pretrain_faces.main(options)
    recipe.write_text(recipe.read_text() + "image_size: 32\n")
    with pytest.raises(UserError, match="keeps the backbone's image_size of 64, found 32"):
        pretrain_faces.main(options)


def test_a_killed_run_leaves_no_folder_that_looks_whole(recipe, tmp_path, monkeypatch):
    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("transformers.CLIPTokenizer.save_pretrained", killed)
    options = f"--recipe {recipe} --output {tmp_path / 'out'} --steps 1 --batch_size 4".split()
    with pytest.raises(KeyboardInterrupt):
        pretrain_faces.main(options)
    assert not list((tmp_path / "out").iterdir())


def test_what_else_is_in_the_folder_stays(recipe, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    pretrain_faces.main(f"--recipe {recipe} --output {tmp_path / 'out'} --steps 1 --batch_size 4".split())
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"
    assert CLIPModel.from_pretrained(tmp_path / "out").config.vision_config.image_size == SIDE
    assert all(path.is_file() for path in (tmp_path / "out").iterdir())
