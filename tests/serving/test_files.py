"""Files of the command line."""

import time

from gmdf_hf.serving.files import announce_slow


def test_a_file_that_takes_long_is_announced_once():
    said = []
    for file in announce_slow(["quick", "slow", "last"], said.append, seconds=0.2):
        time.sleep(0.6 if file == "slow" else 0)
    time.sleep(0.3)
    assert said == ["slow"]


def test_nothing_is_announced_after_an_interruption():
    said = []
    for _ in announce_slow(["a", "b"], said.append, seconds=0.2):
        break
    time.sleep(0.4)
    assert said == []
