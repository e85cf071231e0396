"""Start of Ray, for the commands with `--engine ray`."""

from __future__ import annotations

import os

from gmdf_hf.common.errors import WorkError


def start_ray(processes: int) -> None:
    """Connect to the cluster of `RAY_ADDRESS`, or start Ray on this machine.

    All machines of a cluster need the data, the model and the output folder under the same paths.

    Args:
        processes: Cores that Ray may use on this machine.

    Raises:
        WorkError: If Ray is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report to its makers
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise WorkError(f"--engine ray needs the package {error.name}.", "pip install 'gmdf-hf[ray]'.") from error
    if not ray.is_initialized():
        local = {} if "RAY_ADDRESS" in os.environ else {"num_cpus": processes, "include_dashboard": False}
        ray.init(**local, logging_level="warning", log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False  # the commands have one
