"""The hub from a machine that cannot reach it."""

import os
import warnings

import pytest
from huggingface_hub import constants
from PIL import Image

from gmdf_hf import GMDFImageProcessor
from gmdf_hf.common.hub import hub_or_cache
from gmdf_hf.training.checkpoint import save_model
from tests import processes
from tests.conftest import tiny_model
from tests.hub_server import HubServer

PUSH = """
import sys
from huggingface_hub import HfApi
HfApi().create_repo("user/name")
HfApi().upload_folder(repo_id="user/name", folder_path=sys.argv[1])
"""


def test_a_hub_that_cannot_be_reached_is_not_asked_inside_the_block(monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    warning = "http://127.0.0.1:9 cannot be reached .*: only its cache is searched"
    with pytest.warns(UserWarning, match=warning), hub_or_cache("user/name"):
        assert constants.is_offline_mode()
    assert not constants.is_offline_mode()
    with pytest.warns(UserWarning, match="cannot be reached"), pytest.raises(KeyError), hub_or_cache("user/name"):
        raise KeyError
    assert not constants.is_offline_mode()


@pytest.mark.parametrize("name", ["{folder}", "runs/drawn/model", "../model"])
def test_a_folder_needs_no_hub(name, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with hub_or_cache(name.format(folder=tmp_path)):
            assert not constants.is_offline_mode()


def test_the_users_own_setting_stays(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with hub_or_cache("user/name"):
        pass
    assert constants.is_offline_mode()


def test_a_hub_that_answers_is_asked(monkeypatch):
    with HubServer() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.environment("")["HF_ENDPOINT"])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with hub_or_cache("user/name"):
                assert not constants.is_offline_mode()


def test_a_model_in_the_cache_is_used_at_once_without_the_hub(tmp_path):
    """A file that a model may leave out was asked for six times: two minutes."""
    save_model(tmp_path / "model", tiny_model(), GMDFImageProcessor.of_size(32), slim=True)
    Image.new("RGB", (32, 32)).save(tmp_path / "face.png")
    command = ("scripts/predict.py", tmp_path / "face.png", "--model", "user/name", "--detector", "none")
    with HubServer() as hub:
        environment = os.environ | hub.environment(tmp_path / "home")
        pushed = processes.run("-c", PUSH, tmp_path / "model", env=environment, warm=processes.LIBRARIES)
        assert pushed.returncode == 0, pushed.stderr
        online = processes.run(*command, env=environment, warm=processes.LIBRARIES)
        assert online.returncode == 0 and "cannot be reached" not in online.stderr, online.stderr
    offline = processes.run(*command, env=environment, warm=processes.LIBRARIES)
    assert (offline.returncode, offline.stdout) == (0, online.stdout), offline.stderr
    assert offline.stderr.count("cannot be reached") == 1 and "Retry" not in offline.stderr
    other = [word if word != "user/name" else "user/other" for word in command]
    missing = processes.run(*other, env=environment, warm=processes.LIBRARIES)
    assert missing.returncode == 1 and "Retry" not in missing.stderr
    assert "The model 'user/other' cannot be used: We couldn't connect" in missing.stderr
