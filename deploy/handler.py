"""Handler for Hugging Face Inference Endpoints: copy this file and requirements.txt into the model's repository.

A request is `{"inputs": <bytes, base64 text or address>, "parameters": {"num_frames": 16}}`.
"""

import base64
import binascii
import io
import tempfile
from typing import Any

from PIL import Image

from gmdf_hf.common.images import ImageError
from gmdf_hf.evaluation.training_data import describe_training
from gmdf_hf.serving.download import DownloadError, downloaded
from gmdf_hf.serving.inputs import is_url
from gmdf_hf.serving.isolated import IsolatedReader
from gmdf_hf.serving.loading import load_pipeline

MAX_SECONDS = 20
PARAMETERS = ("num_frames", "threshold", "person_score")


class EndpointHandler:
    """Scores one picture or video per request; untrusted files are decoded in a child process.

    Args:
        path: Folder of the model.
    """

    def __init__(self, path: str = "") -> None:
        self.detect = load_pipeline(path)
        self.reader = IsolatedReader(MAX_SECONDS)

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        """Return the result of the pipeline, or `error`."""
        options = {name: value for name, value in (data.get("parameters") or {}).items() if name in PARAMETERS}
        try:
            result = self._score(data.get("inputs"), options)
        except (DownloadError, ImageError, ValueError, TypeError) as error:
            return {"error": str(error)}
        return result | {"training_data": describe_training(self.detect.model.config)}

    def _score(self, inputs: Any, options: dict[str, Any]) -> dict[str, Any]:
        if isinstance(inputs, str) and is_url(inputs):
            with downloaded(inputs) as path:
                return self._score_file(str(path), inputs, options)
        if isinstance(inputs, Image.Image):  # the endpoint has decoded it already
            return self.detect(inputs, on_error="return", **options)
        if isinstance(inputs, str):
            try:
                inputs = base64.b64decode(inputs, validate=True)
            except binascii.Error as error:
                raise ValueError("`inputs` must be bytes, base64 text or an address.") from error
        if not isinstance(inputs, bytes):
            raise ValueError(f"`inputs` must be bytes, base64 text or an address, found {type(inputs).__name__}.")
        with tempfile.NamedTemporaryFile() as file:
            file.write(io.BytesIO(inputs).getbuffer())
            file.flush()
            return self._score_file(file.name, "<upload>", options)

    def _score_file(self, path: str, name: str, options: dict[str, Any]) -> dict[str, Any]:
        result = self.detect(path, on_error="return", open_file=self.reader.open, **options)
        error = result["error"]
        return result | {"source": name, "error": None if error is None else error.replace(path, name)}
