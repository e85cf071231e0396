"""The metric that `evaluate.load` takes, in a process of its own: offline is decided when the library is imported."""

import json
import os
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest

from gmdf_hf.evaluation.intervals import point_figures
from gmdf_hf.evaluation.metrics import EVALUATE_MODULE, binary_metrics
from tests import processes

CODE = """
import json, sys
import evaluate
table = json.load(sys.stdin)
samples = evaluate.load({path!r})
figures = samples.compute(predictions=table["score"], references=table["label"], threshold=0.4, real_share=0.7)
domains = evaluate.load({path!r}, "domains")
for row in range(len(table["score"])):
    domains.add(
        prediction=table["score"][row],
        reference=table["label"][row],
        domains=table["domain"][row],
        video_ids=table["video_id"][row],
    )
try:
    evaluate.load({path!r}, "videos")
except ValueError as error:
    message = str(error)
print(json.dumps([figures, domains.compute(threshold=0.4), message]))
"""


@pytest.fixture
def offline(tmp_path):
    return os.environ | {
        "HF_HOME": str(tmp_path),
        "HF_HUB_OFFLINE": "1",
        "HF_EVALUATE_OFFLINE": "1",
        "HF_ENDPOINT": "http://127.0.0.1:9",
    }


def test_evaluate_module_loads_offline_and_matches_functions(offline):
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "domain": np.repeat(["x", "y"], 20),
            "video_id": np.tile(np.repeat(list("abcd"), 5), 2),
            "label": np.tile(np.repeat([0, 1], 10), 2),
            "score": rng.random(40).round(1),
        }
    )
    rows, code = json.dumps(table.to_dict(orient="list")), CODE.format(path=EVALUATE_MODULE)
    result = processes.run("-c", code, input=rows, env=offline, warm=processes.LIBRARIES)
    assert result.returncode == 0, result.stderr[-2000:]
    samples, domains, message = json.loads(result.stdout.splitlines()[-1])
    assert samples == asdict(binary_metrics(table["label"], table["score"], 0.4, 0.7))
    assert domains == point_figures(table, 0.4)
    assert message == "The configurations are samples, domains, found 'videos'."
