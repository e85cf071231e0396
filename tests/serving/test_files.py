"""Files of the command line."""

import time

from gmdf_hf.serving.files import announcing


def test_a_file_that_takes_long_is_announced_once():
    said = []
    for file in ("quick", "slow", "last"):
        with announcing(file, said.append, seconds=0.2):
            time.sleep(0.6 if file == "slow" else 0)
    time.sleep(0.3)
    assert said == ["slow"]
