"""Names shared by all domains, and the version of the output files."""

import re

# Written to score tables, results and result lines; increased with every change that affects readers.
SCHEMA_VERSION = 1

SPLITS = ("train", "validation", "test")
REAL, FAKE = 0, 1
# The `method` of every real video in a prepared domain.
REAL_METHOD = "real"
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")


def check_name(name: str, what: str = "domain") -> str:
    """Check and return a name that may become part of a file name, a table or an HTML page.

    Args:
        name: Name from a user, a recipe or a checkpoint.
        what: Kind of the name, for the message.

    Raises:
        ValueError: If it holds other characters than letters, digits, `.`, `_` and `-`, begins with `.` or `-`, or is
            longer than 100 characters.
    """
    if not NAME.fullmatch(name):
        raise ValueError(
            f"the {what} name {name[:100]!r} must begin with a letter, a digit or _ and hold only letters, digits, "
            "'.', '_' and '-', at most 100: rename it"
        )
    return name
