"""Speed and memory of training and inference, as ratios measured in one run: one line of JSON per metric.

python scripts/benchmark.py --figure iteration inference --batch_size 8 --precision bf16

The two sides of a ratio run alternately, and the median of each counts.
"""

from __future__ import annotations

import io
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any, Literal, cast, get_args

import datasets
import numpy as np
import torch
import transformers
from PIL import Image
from pydantic import Field
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPVisionConfig, CLIPVisionModelWithProjection

from gmdf_hf.common.memory import keep_freed_memory
from gmdf_hf.common.options import Options, parse_options
from gmdf_hf.data.dataset import Domain
from gmdf_hf.data.frames import FrameReader
from gmdf_hf.modeling import GMDFConfig, GMDFImageProcessor, GMDFModel
from gmdf_hf.scripts import benchmark_serving as serving
from gmdf_hf.scripts.benchmark_workloads import Workloads

BACKBONES: dict[str, dict[str, Any]] = {
    "vit_b16": {"patch_size": 16},
    "tiny": {"image_size": 64, "patch_size": 16, "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
}
TEXT_TOWERS: dict[str, dict[str, Any]] = {
    "vit_b16": {},
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
}
DOMAIN_GOALS = {3: 1.12, 12: 1.15}  # domains and the largest accepted ratio
EXPERT_GOALS = {4: 1.08, 16: 1.25, 64: 1.9}  # experts and the largest accepted ratio
Figure = Literal["iteration", "literal", "inference", "memory", "loader", "utilisation", "scoring"]
Prediction = Literal["predict", "predict_memory", "faces"]
NEEDED = {"predict": "files", "predict_memory": "files", "faces": "clip"}  # options with the user's files


class Bench(Workloads):
    """Ratios on one device, in one precision."""

    def __init__(self, backbone: str, batch_size: int, precision: str, repeats: int):
        towers = CLIPVisionConfig(**BACKBONES[backbone]), CLIPTextConfig(**TEXT_TOWERS[backbone])
        super().__init__(*towers, batch_size, precision)
        self.repeats = repeats
        self.about = {
            "backbone": backbone,
            "batch_size": batch_size,
            "precision": precision,
            "device": torch.cuda.get_device_name() if self.device.type == "cuda" else platform.processor() or "cpu",
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }

    def emit(self, figure: str, value: float, goal: str, **details: Any) -> None:
        """Print one figure."""
        load = {"load": round(os.getloadavg()[0], 1)} if hasattr(os, "getloadavg") else {}
        figures = {"figure": figure, "value": round(value, 3), "goal": goal, **details, **load, **self.about}
        print(json.dumps(figures), flush=True)

    def seconds(self, *work: Callable[[], object]) -> list[float]:
        """Median time of each function in seconds; they run alternately, after an untimed warm-up round."""
        times: list[list[float]] = [[] for _ in work]
        for _ in range(self.repeats + 1):
            for function, found in zip(work, times, strict=True):
                self._wait()
                started = time.perf_counter()
                function()
                self._wait()
                found.append(time.perf_counter() - started)
        return [median(found[1:]) for found in times]

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def iteration(self) -> None:
        """Time of a meta-iteration with 3 and 12 domains divided by that of a fine-tuning step on as many images."""
        for domains, goal in DOMAIN_GOALS.items():
            # About as many images for every number of domains; a domain's batch has both classes.
            size = max(self.batch_size * len(self.domains) // domains // 2 * 2, 2)
            load = Workloads(self.vision, self.text, size, self.accelerator.mixed_precision, domains)
            ours, plain = self.seconds(load.meta_iteration(), load.fine_tuning())
            details = {"images": size * domains, "ours_s": ours, "peer_s": plain}
            name = f"meta-iteration with {domains} domains / fine-tuning step"
            self.emit(name, ours / plain, f"<= {goal}", **details)

    def against_literal(self) -> None:
        """Time of a meta-iteration divided by that of the literal Algorithm 1."""
        ours, literal = self.seconds(self.meta_iteration(), self.literal())
        self.emit("meta-iteration / literal Algorithm 1", ours / literal, "<= 0.5", ours_s=ours, peer_s=literal)

    @torch.no_grad()
    def inference(self) -> None:
        """Time of the aggregated route with 4, 16 and 64 experts divided by that of CLIP's vision tower."""
        clip = CLIPVisionModelWithProjection(self.vision).to(self.device).eval()
        images = self.images(4 * self.batch_size)

        def run(model: torch.nn.Module) -> Callable[[], object]:
            def forward() -> None:
                with self.accelerator.autocast():
                    model(pixel_values=images)

            return forward

        for experts, goal in EXPERT_GOALS.items():
            domains = [f"d{number}" for number in range(experts)]
            config = GMDFConfig(vision_config=self.vision, text_config=self.text, domains=domains)
            ours = GMDFModel(config).to(self.device).eval()
            for layer in ours.vision_model.encoder.layers:
                layer.experts.alpha.fill_(0.1)
            seconds, bare = self.seconds(run(ours), run(clip))
            name = f"inference with {experts} experts / bare CLIP vision tower"
            self.emit(name, seconds / bare, f"<= {goal}", ours_s=seconds, peer_s=bare)

    def memory(self, arguments: list[str]) -> None:
        """Peak memory of a meta-iteration divided by that of a plain fine-tuning step, each in its own process."""
        peaks = []
        for side in ("meta_iteration", "fine_tuning"):
            command = [sys.executable, __file__, *arguments, "--peak_of", side]
            peaks.append(float(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
        self.emit("memory", peaks[0] / peaks[1], "<= 1.1", ours_mib=peaks[0], peer_mib=peaks[1])

    def peak_of(self, side: str) -> float:
        """Peak memory in MiB of this process, or on its GPU, after two steps of one side."""
        step = getattr(self, side)()
        step(), step()
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated() / 2**20
        return serving.peak_mib()

    def scoring(self) -> None:
        """Time of scoring in bfloat16 divided by that in single precision."""
        serving.measure_precision(self.detector().eval(), self.images(4 * self.batch_size), self.repeats, self.emit)

    def prediction(self, figures: Sequence[str], options: BenchmarkOptions) -> None:
        """Figures of `gmdf predict` on files of the user."""
        weights = ["--detector_weights", options.detector_weights] if options.detector_weights else []
        if "faces" in figures and options.clip is not None:
            serving.measure_faces(options.clip, options.detector_weights, self.repeats, self.emit)
        if options.files is not None and {"predict", "predict_memory"} & set(figures):
            given = nullcontext(options.model) if options.model else serving.exported(self.detector().eval())
            with given as model:
                if "predict" in figures:
                    serving.measure_runtimes(model, options.files, weights, self.repeats, self.emit)
                if "predict_memory" in figures:
                    serving.measure_memory(model, options.files, weights, self.emit)

    def loader(self) -> None:
        """Frames per second that eight cores decode and process, divided by those that training needs."""
        size = cast(int, self.vision.image_size)
        buffer = io.BytesIO()
        noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
        Image.fromarray(noise).resize((317, 317), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=95)
        count = 256
        frames = datasets.Dataset.from_dict({"image": [{"bytes": buffer.getvalue(), "path": None}] * count})
        numbers = np.arange(count)
        names = [str(number) for number in numbers]
        reader = FrameReader(
            [Domain("d", "train", frames, numbers % 2, names, numbers, names, None)], GMDFImageProcessor.of_size(size)
        )
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        (seconds,) = self.seconds(lambda: [reader[0, row] for row in range(count)])
        torch.set_num_threads(threads)
        rate = count / seconds
        (step,) = self.seconds(self.meta_iteration())
        need = self.batch_size * len(self.domains) / step
        self.emit("loader on 8 cores / need of training", 8 * rate / need, ">= 2", frames_s_core=rate, need_s=need)

    def utilisation(self) -> None:
        """FLOP/s of a meta-iteration divided by FLOP/s of a large matrix product."""
        iteration = self.meta_iteration()
        counter = FlopCounterMode(display=False)
        # The module tracker does not support `autograd.grad`; only the total is needed.
        counter.mod_tracker = SimpleNamespace(  # type: ignore[assignment]
            parents={"Global"}, __enter__=lambda: None, __exit__=lambda: None
        )
        with counter:
            iteration()
        size = 8192 if self.device.type == "cuda" else 2048
        low = self.accelerator.mixed_precision == "bf16"
        a, b = (torch.randn(size, size, device=self.device, dtype=torch.bfloat16 if low else None) for _ in range(2))
        seconds, product = self.seconds(iteration, lambda: a @ b)
        ours, ceiling = counter.get_total_flops() / seconds, 2 * size**3 / product
        images = self.batch_size * len(self.domains) / seconds
        details = {
            "images_s": images,
            "tflop_iteration": counter.get_total_flops() / 1e12,
            "tflops": ours / 1e12,
            "ceiling_tflops": ceiling / 1e12,
        }
        self.emit("utilisation of the measured ceiling", ours / ceiling, ">= 0.45 on a GPU", **details)


class BenchmarkOptions(Options):
    """What to measure."""

    figure: tuple[Literal[Figure, Prediction], ...] = Field(
        get_args(Figure), description="What to measure; predict and predict_memory need --files, faces needs --clip."
    )
    all_figures: bool = Field(False, alias="all", description="Measure every figure.")
    model: Path | None = Field(
        None, description="Detector with its exports beside it, for predict (default: random weights of --backbone)."
    )
    files: Path | None = Field(None, description="Folder of photographs, for predict and predict_memory.")
    clip: Path | None = Field(None, description="10 s of 1080p video with a face, for faces.")
    detector_weights: str | None = Field(None, description="Local weights of the face detector.")
    backbone: str = Field("vit_b16", description=f"Sizes of the model, of {', '.join(BACKBONES)}; weights are random.")
    batch_size: int = Field(4, ge=2, description="Images of each domain.")
    precision: Literal["no", "bf16", "fp16"] = Field("no", description="Mixed precision.")
    repeats: int = Field(5, ge=1, description="Repetitions.")
    peak_of: Literal["meta_iteration", "fine_tuning"] | None = Field(
        None, description="Print the peak memory of one of them alone; used by this script."
    )


def main() -> None:
    """Measure the selected figures."""
    arguments = parse_options(BenchmarkOptions, None, __doc__)
    keep_freed_memory()
    bench = Bench(arguments.backbone, arguments.batch_size, arguments.precision, arguments.repeats)
    if arguments.peak_of:
        print(bench.peak_of(arguments.peak_of))
        return
    same = ["--backbone", arguments.backbone, "--batch_size", str(arguments.batch_size)]
    figures = get_args(Figure) + get_args(Prediction) if arguments.all_figures else arguments.figure
    for figure in figures:
        if figure in NEEDED and getattr(arguments, NEEDED[figure]) is None:
            sys.exit(f"benchmark.py: the figure {figure} needs --{NEEDED[figure]}")
    for figure in figures:
        if figure in NEEDED:
            continue
        if figure == "memory":
            bench.memory([*same, "--precision", arguments.precision])
        else:
            {"literal": bench.against_literal}.get(figure, getattr(bench, figure))()
    bench.prediction([figure for figure in figures if figure in NEEDED], arguments)


if __name__ == "__main__":
    main()
