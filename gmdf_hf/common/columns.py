"""Columns of a domain. A module of its own because `datasets` takes a second to import."""

from datasets import ClassLabel, Features, Image, Value

# Every domain has these.
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
# Additional columns that `prepare` writes: the time of the frame since the video's first frame, null if unknown; and
# the crop of the forgery mask, for data sets with masks.
SECONDS = Features({"seconds": Value("float32")})
MASK = Features({"mask": Image()})


def prepared_features(masks: bool) -> Features:
    """Columns of a prepared domain, with or without `mask`."""
    return Features(FEATURES | SECONDS | (MASK if masks else {}))
