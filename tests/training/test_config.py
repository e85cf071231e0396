import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from gmdf_hf.common.errors import UserError
from gmdf_hf.training.config import TrainConfig, load_recipe, parse_command_line

RECIPES = sorted((Path(__file__).parents[2] / "scripts" / "recipes").glob("*.yaml"))
SOURCES = {"source_domains": {"a": "drawn:swap", "b": {"path": "user/name", "max_videos": 3}}}


def write(tmp_path, **fields) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(SOURCES | fields))
    return path


def test_the_papers_settings_are_the_defaults():
    config = TrainConfig(**SOURCES)
    assert config.backbone == "openai/clip-vit-base-patch16"
    assert (config.learning_rate, config.batch_size, config.epochs) == (3e-6, 32, 40)
    assert (config.alignment_weight, config.mim_weight) == (1, 1)


def test_a_shortened_option_is_refused(tmp_path, capsys):
    """Otherwise `--max_step` would set max_steps until an option of that name exists."""
    with pytest.raises(SystemExit):
        parse_command_line(["--recipe", str(write(tmp_path)), "--max_step", "3"], "", tmp_path)
    assert "--max_step" in capsys.readouterr().err


def test_the_command_line_wins_over_the_recipe(tmp_path):
    recipe = write(tmp_path, seed=3, epochs=7)
    arguments = ["--recipe", str(recipe), "--seed", "5", "--learning_rate", "1e-3", "--hold_out", "b"]
    with pytest.raises(UserError, match="at least two source domains, found 1: a"):
        parse_command_line(arguments, "", recipe)
    config = parse_command_line(arguments[:-2], "", recipe)
    assert (config.seed, config.epochs, config.learning_rate) == (5, 7, 1e-3)
    assert config.source_domains["a"].path == "drawn:swap"
    assert config.source_domains["b"].max_videos == 3


SECOND_ORDER = {"meta_gradient": "second_order", "inner_optimizer": "sgd"}


def test_a_bare_name_is_a_recipe_beside_the_default_one(tmp_path):
    recipe = write(tmp_path, seed=3)
    assert parse_command_line(["--recipe", "recipe"], "", tmp_path / "other.yaml").seed == 3
    with pytest.raises(UserError, match=r"none\.yaml cannot be read"):
        parse_command_line(["--recipe", "none"], "", recipe)


@pytest.mark.parametrize("word", ["no", "off", "'no'"])
def test_yaml_no_is_read_as_the_precision_no(tmp_path, word):
    recipe = write(tmp_path, mixed_precision="bf16")
    assert parse_command_line(["--recipe", str(recipe), "--mixed_precision", word], "", recipe).mixed_precision == "no"
    recipe.write_text(recipe.read_text().replace("bf16", word))
    assert load_recipe(recipe, {}).mixed_precision == "no"
    with pytest.raises(UserError, match="found True"):
        load_recipe(recipe, {"mixed_precision": True})


def test_held_out_domains_become_unseen(tmp_path):
    recipe = write(
        tmp_path, source_domains={name: f"drawn:{name}" for name in ("x", "y", "z")}, unseen_domains={"u": "p"}
    )
    config = load_recipe(recipe, {"hold_out": ["y"]})
    assert list(config.train_domains) == ["x", "z"]
    assert list(config.test_only_domains) == ["y", "u"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"warmup_steps": 5}, "warmup_steps needs another lr_scheduler than constant"),
        ({"push_to_hub": "name"}, "expected a repository user/name, found 'name'"),
        ({"streaming": True}, "streaming needs steps_per_epoch"),
        ({"train_tower": "none", "method": "linear_probe"}, "train_tower has no effect with linear_probe"),
        ({"train_tower": "some"}, "found 'some'"),
        ({"meta_gradient": "second_order"}, "needs inner_optimizer sgd, found 'adam'"),
        ({**SECOND_ORDER, "gradient_checkpointing": True}, "the gradient would be wrong"),
        ({**SECOND_ORDER, "torch_compile": True}, "has no double backward"),
        (
            {**SECOND_ORDER, "attn_implementation": "flash_attention_2"},
            "second_order needs attn_implementation sdpa or eager, found 'flash_attention_2'",
        ),
        ({"lr": 1}, "lr: unknown key; known are source_domains"),
        ({"source_domains": {"a": {"url": "x", "path": "y"}, "b": "z"}}, "url: unknown key; known are path"),
        ({"model": {"dil": "film"}}, "'dil' expected one of"),
        ({"model": {"width": 3}}, "unknown key 'width'"),
        ({"batch_size": 5}, "multiple of 2, found 5"),
        ({"learning_rate": "fast"}, "found 'fast'"),
        ({"method": "magic"}, "found 'magic'"),
        ({"hold_out": ["q"]}, "hold_out names 'q'; the source domains are a, b"),
        ({"unseen_domains": {"a": "x"}}, "'a' is both a source and an unseen domain"),
        ({"source_domains": {"a": "x"}}, "at least two source domains, found 1: a"),
        ({"source_domains": {"a": "$NO_SUCH_VARIABLE/x", "b": "y"}}, "NO_SUCH_VARIABLE, which is not set"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, fields, message):
    with pytest.raises(UserError, match=message) as caught:
        load_recipe(write(tmp_path, **fields), {})
    assert "\n" not in str(caught.value)


def test_unreadable_recipes_are_named(tmp_path):
    with pytest.raises(UserError, match="cannot be read: No such file"):
        load_recipe(tmp_path / "none.yaml", {})
    (tmp_path / "list.yaml").write_text("- a")
    with pytest.raises(UserError, match="must be a mapping of fields, found list"):
        load_recipe(tmp_path / "list.yaml", {})
    (tmp_path / "broken.yaml").write_text("a: [")
    with pytest.raises(UserError, match="is not YAML"):
        load_recipe(tmp_path / "broken.yaml", {})


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_valid_and_says_so_again(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("GMDF_REAL_DATA", "/data")
    monkeypatch.setenv("GMDF_DOMAINS", "/data")
    config = load_recipe(recipe, {})
    again = tmp_path / "again.yaml"
    again.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert load_recipe(again, {}) == config


def test_help_explains_every_field(capsys):
    with pytest.raises(SystemExit):
        parse_command_line(["--help"], "what it is", RECIPES[0])
    printed = " ".join(capsys.readouterr().out.split())
    assert "what it is" in printed
    assert "Step size delta of theta_O (Adam). (default: 3e-06)" in printed
    assert "Tracker of accelerate, such as `tensorboard`." in printed
    assert all(field.description for field in TrainConfig.model_fields.values())


def test_settings_are_declared_without_torch():
    code = (
        "import sys, gmdf_hf.training.config\n"
        "print([name for name in ('torch', 'transformers', 'datasets') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
