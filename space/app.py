"""The `gmdf demo` page as a Space: copy this folder and set the variable GMDF_MODEL to a detector on the hub."""

import os
import sys

from gmdf_hf.common.errors import exit_on_error
from gmdf_hf.serving.demo import launch
from gmdf_hf.serving.loading import load_pipeline

if __name__ == "__main__":
    if "GMDF_MODEL" not in os.environ:
        sys.exit("Set the variable GMDF_MODEL to the name of a detector on the hub.")
    with exit_on_error("app.py"):
        detect = load_pipeline(os.environ["GMDF_MODEL"], detector_weights=os.environ.get("GMDF_DETECTOR_WEIGHTS"))
    launch(detect, "0.0.0.0", int(os.environ.get("PORT", "7860")))
