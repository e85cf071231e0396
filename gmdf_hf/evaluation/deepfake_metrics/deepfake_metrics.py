"""Metrics of `gmdf_hf.evaluation.metrics` as an `evaluate` module; loads offline."""

import datasets
import evaluate
import pandas as pd

from gmdf_hf.evaluation.intervals import point_figures
from gmdf_hf.evaluation.metrics import binary_metrics

DESCRIPTION = """
Metrics of a real / fake detector. `predictions` are probabilities of fake, `references` 0 for real and 1 for fake.
The configuration `samples`, the default, takes those two and returns accuracy, AUC, average precision, equal error
rate, M of Eq. 13 of GM-DF, both error rates at the threshold, expected calibration error and Brier score. The
configuration `domains` also takes `domains` and `video_ids` and returns the same per domain at frame and video
level, and M_EER, the pooled AUC and the Cross-AUC over domains.
"""

CITATION = """
@article{lai2024gmdf,
  title={{GM-DF}: Generalized Multi-Scenario Deepfake Detection},
  author={Lai, Yingxin and Yu, Zitong and Yang, Jing and Li, Bin and Kang, Xiangui and Shen, Linlin},
  journal={arXiv preprint arXiv:2406.20078},
  year={2024}
}
"""

KWARGS = """
Args:
    predictions: Probability of fake of each frame.
    references: 0 real, 1 fake.
    domains: Domain of each frame (configuration `domains`).
    video_ids: Video of each frame (configuration `domains`).
    threshold: Scores at or above it are classified as fake; default 0.5.
    real_share: Prior P_real of Eq. 13; default the fraction of reals in `references`.
"""


class DeepfakeMetrics(evaluate.Metric):
    """See `DESCRIPTION`."""

    CONFIGS = ("samples", "domains")
    config_name: str  # set by evaluate.load

    def _info(self) -> evaluate.MetricInfo:
        if self.config_name == "default":
            self.config_name = "samples"
        if self.config_name not in self.CONFIGS:
            raise ValueError(f"The configurations are {', '.join(self.CONFIGS)}, found {self.config_name!r}.")
        features = {"predictions": datasets.Value("float64"), "references": datasets.Value("int8")}
        if self.config_name == "domains":
            features |= {"domains": datasets.Value("string"), "video_ids": datasets.Value("string")}
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=KWARGS,
            features=datasets.Features(features),
        )

    def _compute(self, predictions, references, domains=None, video_ids=None, threshold=0.5, real_share=None) -> dict:
        if self.config_name == "samples":
            return vars(binary_metrics(references, predictions, threshold, real_share))
        table = pd.DataFrame(
            {"domain": domains, "video_id": video_ids, "label": references, "score": predictions},
        )
        return point_figures(table, threshold, real_share)
