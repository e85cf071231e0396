"""Open a page to upload a picture or a video.

gmdf demo --model runs/drawn/model
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from gmdf_hf.common.errors import UserError, exit_on_error
from gmdf_hf.common.options import parse_options
from gmdf_hf.serving.loading import ScoringOptions, load_pipeline


class DemoOptions(ScoringOptions):
    """Which detector to show, and where."""

    detector_weights: str | None = Field(
        None, description="Local weights of the face detector (default: the pinned ones of the hub)."
    )
    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(7860, ge=0, le=65535, description="Port to listen on.")


def main(options: DemoOptions) -> None:
    """Serve the page until it is interrupted.

    Raises:
        UserError: If the model cannot be loaded or a package is missing.
    """
    try:
        from gmdf_hf.serving.demo import launch
    except ImportError as error:
        raise UserError(f"The demo needs the package {error.name}: pip install 'gmdf-hf[demo]'.") from error
    detect = load_pipeline(
        options.model,
        detector_weights=options.detector_weights,
        revision=options.revision,
        trust_remote_code=options.trust_remote_code,
        fake_label=options.fake_label,
        operating_point=options.operating_point,
        dtype=options.dtype,
    )
    launch(detect, options.host, options.port)


def run(arguments: Sequence[str] | None = None, program: str | None = None) -> None:
    """Serve the demo with the options of the command line."""
    options = parse_options(DemoOptions, arguments, __doc__, program)
    with exit_on_error(program or "demo.py"):
        main(options)


if __name__ == "__main__":
    run()
