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
# What `prepare` writes besides: the time of the frame after the video's first one, null where it is not known; and,
# for data sets that come with masks of what was forged, the crop of the mask.
SECONDS = Features({"seconds": Value("float32")})
MASK = Features({"mask": Image()})


def prepared_features(masks: bool) -> Features:
    """Columns of a prepared domain, with or without `mask`."""
    return Features(FEATURES | SECONDS | (MASK if masks else {}))
