"""Conventions of transformers, accelerate and PyTorch for a model class.

The `ModelTesterMixin` of transformers is only in its source distribution, which CI does not download. The tests here
check the behaviour that it and other libraries rely on.
"""

import copy
import pickle

import pytest
import torch
from accelerate import cpu_offload
from torch import nn
from transformers import AutoModel, AutoModelForImageClassification, Trainer, TrainingArguments

import gmdf_hf.modeling.auto_gmdf  # noqa: F401  registers the model with the auto classes
from gmdf_hf import GMDFConfig, GMDFModel
from tests.conftest import PROMPT_IDS, tiny_config, tiny_model

LABELS = torch.tensor([0, 1, 1, 0])


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def folder(tmp_path):
    tiny_model().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_arguments_of_from_pretrained_have_the_names_of_transformers(folder):
    GMDFModel.from_pretrained(pretrained_model_name_or_path=folder)
    for auto in (AutoModel, AutoModelForImageClassification):
        auto.from_pretrained(folder, use_safetensors=True, trust_remote_code=False)
    with pytest.raises(ValueError, match="safetensors only"):
        GMDFModel.from_pretrained(folder, use_safetensors=False)


def test_a_misspelt_keyword_is_refused(images):
    """Earlier versions ignored it silently and used another route."""
    with pytest.raises(TypeError, match="'domain_id'"):
        tiny_model()(images, domain_id=torch.zeros(4, dtype=torch.long))


def test_equal_class_sentences_are_refused():
    with pytest.raises(Exception, match="two different sentences"):
        tiny_config(prompt_ids=[PROMPT_IDS[0], PROMPT_IDS[0]])


def test_pickle_and_torch_save(tmp_path, images):
    model = tiny_model()
    expected = model(images).logits
    torch.testing.assert_close(pickle.loads(pickle.dumps(model))(images).logits, expected)
    torch.testing.assert_close(copy.deepcopy(model)(images).logits, expected)
    torch.save(model, tmp_path / "model.pt")
    torch.testing.assert_close(torch.load(tmp_path / "model.pt", weights_only=False)(images).logits, expected)


@pytest.mark.parametrize("dil", ["affine", "cross_attention"])
@pytest.mark.parametrize("domain_ids", [None, torch.tensor([0, 1, 2, 0])])
def test_a_model_on_the_cpu_runs_with_its_weights_offloaded(images, dil, domain_ids):
    """Every weight is read inside the forward of its own module: an offloaded weight is available only there."""
    expected = tiny_model(dil=dil)(images, domain_ids).logits
    model = cpu_offload(tiny_model(dil=dil), execution_device=torch.device("cpu"))
    torch.testing.assert_close(model(images, domain_ids).logits, expected)


def test_a_partly_thawed_or_adapted_text_tower_gets_a_gradient(images):
    class Adapted(nn.Module):
        """A linear map with a trainable addition, as in LoRA."""

        def __init__(self, linear: nn.Module):
            super().__init__()
            self.linear, self.added = linear, nn.Linear(linear.in_features, linear.out_features)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x) + self.added(x)

    model = tiny_model().train()
    mlp = model.text_model.encoder.layers[0].mlp
    mlp.fc1 = Adapted(mlp.fc1)
    model(images, labels=LABELS).loss.backward()
    assert mlp.fc1.added.weight.grad.any()
    assert model.text_projection.weight.grad is None


def test_quantisation_finds_the_input_embeddings():
    model = tiny_model()
    assert model.get_input_embeddings() is model.vision_model.embeddings.patch_embedding


class Pictures(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict:
        generator = torch.Generator().manual_seed(index)
        return {"pixel_values": torch.randn(3, 32, 32, generator=generator), "labels": index % 2}


def trained(tmp_path, batch_size: int, steps: int) -> GMDFModel:
    arguments = TrainingArguments(
        tmp_path,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=steps,
        max_steps=1,
        learning_rate=1e-2,
        optim="sgd",
        max_grad_norm=0.0,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    model = tiny_model()
    Trainer(model, arguments, train_dataset=Pictures()).train()
    return model


def test_trainer_accumulates_a_mean_of_gradients(tmp_path):
    """Four batches of two give the gradient of one batch of eight; earlier versions gave four times the gradient."""
    whole, parts = trained(tmp_path, 8, 1), trained(tmp_path, 2, 4)
    for (name, one), other in zip(whole.named_parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4, msg=name)


def test_compute_metrics_gets_logits_alone(tmp_path):
    seen = {}

    def metrics(prediction) -> dict[str, float]:
        seen["shape"] = getattr(prediction.predictions, "shape", None)
        return {}

    arguments = TrainingArguments(tmp_path, report_to=[], use_cpu=True, disable_tqdm=True)
    Trainer(tiny_model(), arguments, eval_dataset=Pictures(), compute_metrics=metrics).evaluate()
    assert seen["shape"] == (8, 2)
    assert "logits" not in GMDFConfig.keys_to_ignore_at_inference


def test_scores_of_a_model_in_half_precision_have_no_ties(images):
    """Decision D19: in bfloat16, the margins of 200 images had only 106 distinct values."""
    model = tiny_model().to(torch.bfloat16)
    many = torch.randn(200, 3, 32, 32, generator=torch.Generator().manual_seed(2)).bfloat16()
    with torch.no_grad():
        logits = model(many).logits
    assert logits.dtype == torch.float32
    assert len((logits[:, 1] - logits[:, 0]).unique()) >= 195
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        logits = tiny_model()(many.float()).logits
    assert logits.dtype == torch.float32
    assert len((logits[:, 1] - logits[:, 0]).unique()) >= 195
