"""The `gmdf demo` page as a Space: copy this folder and set the variable GMDF_MODEL to a detector on the hub."""

import os
import sys

from gmdf_hf.scripts.gmdf import load_pipeline
from gmdf_hf.serving.demo import launch
from gmdf_hf.training.config import UserError

if __name__ == "__main__":
    if "GMDF_MODEL" not in os.environ:
        sys.exit("Set the variable GMDF_MODEL to the name of a detector on the hub.")
    try:
        detect = load_pipeline(os.environ["GMDF_MODEL"], "yunet", os.environ.get("GMDF_DETECTOR_WEIGHTS"), 16, None)
    except UserError as error:
        sys.exit(str(error))
    launch(detect, "0.0.0.0", int(os.environ.get("PORT", "7860")))
