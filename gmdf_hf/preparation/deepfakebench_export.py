"""Export of a prepared domain to DeepfakeBench's format: frames as files and a JSON index."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path, PurePosixPath

import pyarrow.parquet as pq
from PIL import Image

from gmdf_hf.common.errors import SourceError
from gmdf_hf.common.schema import REAL_METHOD, SPLITS
from gmdf_hf.preparation.sources.deepfakebench import write_index
from gmdf_hf.preparation.sources.record import Record

# DeepfakeBench's own label names, which determine real and fake.
LABEL_NAMES = {
    "Deepfakes": "FF-DF",
    "Face2Face": "FF-F2F",
    "FaceSwap": "FF-FS",
    "NeuralTextures": "FF-NT",
    "FaceShifter": "FF-SH",
    "DeepFakeDetection": "DFD_fake",
    "Celeb-DF": "CelebDFv2_fake",
    "DFDC": "DFDC_Fake",
    "DFDCP method_A": "DFDCP_FakeA",
    "DFDCP method_B": "DFDCP_FakeB",
}
REAL_NAMES = {
    "FF": "FF-real",
    "DFD": "DFD_real",
    "CelebDFv2": "CelebDFv2_real",
    "DFDC": "DFDC_Real",
    "DFDCP": "DFDCP_Real",
}


def export_deepfakebench(domain: str | Path, output: str | Path, dataset: str) -> Path:
    """Write every crop of a prepared domain, and its mask, as PNG, and the index that lists them.

    Methods unknown to DeepfakeBench get the label name `<method>_Fake`, and their real videos `DF_real`.

    Args:
        domain: Prepared domain.
        output: Folder of data sets, to which `<dataset>/…` and `<dataset>.json` are written.
        dataset: DeepfakeBench's name of the data set.

    Returns:
        Path of the index.

    Raises:
        FileNotFoundError: If the domain has no Parquet files.
        SourceError: If a video id is not a plain relative path.
    """
    files = [file for split in SPLITS for file in sorted(Path(domain, "data").glob(f"{split}-*.parquet"))]
    if not files:
        raise FileNotFoundError(f"{domain} is no prepared domain: expected data/*.parquet.")
    output = Path(output)
    methods = {method for file in files for method in pq.read_table(file, columns=["method"])["method"].to_pylist()}
    names = {method: LABEL_NAMES.get(method, f"{method}_Fake") for method in methods - {REAL_METHOD}}
    family = {name.split("_")[0].split("-")[0] for name in names.values()}
    names[REAL_METHOD] = REAL_NAMES.get(family.pop(), "DF_real") if len(family) == 1 else "DF_real"
    videos: dict[str, Record] = {}
    for file in files:
        split = file.name.split("-")[0]
        for batch in pq.ParquetFile(file).iter_batches(batch_size=100):
            for row in batch.to_pylist():
                video = PurePosixPath(row["video_id"])
                if video.is_absolute() or ".." in video.parts:
                    raise SourceError(f"{file}: video id {row['video_id']!r}, expected a plain relative path.")
                frame = f"{dataset}/{names[row['method']]}/frames/{video}/{row['frame']:03}.png"
                (output / frame).parent.mkdir(parents=True, exist_ok=True)
                Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB").save(output / frame)
                mask = ""
                if row.get("mask") is not None:
                    mask = frame.replace("/frames/", "/masks/", 1)
                    (output / mask).parent.mkdir(parents=True, exist_ok=True)
                    (output / mask).write_bytes(row["mask"]["bytes"])
                old = videos.get(str(video))
                members = (*old.members, frame) if old else (frame,)
                masks = (*old.mask_members, mask) if old else (mask,)
                videos[str(video)] = Record(
                    output, row["label"], row["method"], str(video), row["group"], split, members, mask_members=masks
                )
    videos = {name: r if r.has_mask else replace(r, mask_members=()) for name, r in videos.items()}
    write_index(output / f"{dataset}.json", dataset, videos.values(), names)
    return output / f"{dataset}.json"
