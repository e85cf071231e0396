"""Columns of a prepared domain. A module of its own because `datasets` takes a second to import."""

from datasets import ClassLabel, Features, Image, Value

FEATURES = Features(
    {
        "image": Image(),
        "label": ClassLabel(names=["real", "fake"]),
        "video_id": Value("string"),
        "frame": Value("int32"),
        "method": Value("string"),
        "group": Value("string"),
    }
)
