"""Names that every domain uses."""

SPLITS = ("train", "validation", "test")
REAL, FAKE = 0, 1
# The `method` of every real video in a prepared domain.
REAL_METHOD = "real"
