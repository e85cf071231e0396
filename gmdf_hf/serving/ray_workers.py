"""Scoring files on the workers of Ray Data: on the cores of one machine, or on a cluster."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from gmdf_hf.common.errors import WorkError
from gmdf_hf.common.ray_cluster import start_ray
from gmdf_hf.serving.loading import load_pipeline

FILES_PER_BATCH = 16  # results of a batch are written together, so at most this many files a worker are done twice


class Worker:
    """A detector in a process of its own.

    Args:
        loading: Arguments of `load_pipeline`.
        call: Arguments of each call of the pipeline.
        folder: Working directory, as file names may be relative.
    """

    def __init__(self, loading: Mapping[str, Any], call: Mapping[str, Any], folder: str) -> None:
        os.chdir(folder)
        self.detect, self.call = load_pipeline(**loading), call

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Score a batch of files; the column `file` holds their names as bytes, `result` what the pipeline returns."""
        found = np.empty(len(batch["file"]), dtype=object)
        found[:] = self.detect([os.fsdecode(name) for name in batch["file"]], on_error="return", **self.call)
        return {"result": found}


def score_with_ray(
    files: Sequence[str], loading: Mapping[str, Any], call: Mapping[str, Any], processes: int
) -> Iterator[dict[str, Any]]:
    """Score files in parallel and yield the results of the pipeline as they are ready.

    With `RAY_ADDRESS` in the environment the workers run on that cluster, whose machines need the files, the model and
    the working directory under the same paths. A worker takes one core, and one GPU if the pipeline's device is one.

    Args:
        files: Files and URLs.
        loading: Arguments of `load_pipeline` in each worker.
        call: Arguments of the pipeline's calls.
        processes: Number of workers.

    Raises:
        WorkError: If Ray is not installed, or a worker ends.
    """
    start_ray(processes)
    import ray

    # As bytes, since a name may hold some that are no UTF-8.
    scored = ray.data.from_items([{"file": os.fsencode(file)} for file in files]).map_batches(
        Worker,
        fn_constructor_args=(dict(loading), dict(call), os.getcwd()),
        batch_size=FILES_PER_BATCH,
        concurrency=processes,
        num_cpus=1,
        num_gpus=1 if str(loading.get("device") or "").startswith("cuda") else 0,
    )
    try:
        for row in scored.iter_rows():
            yield row["result"]
    except ray.exceptions.RayError as error:
        raise WorkError(f"A worker of Ray died: {' '.join(str(error).split())[:500]}") from error
