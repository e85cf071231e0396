"""Commands of `gmdf`, run in the process of the tests."""

import io
from contextlib import redirect_stderr, redirect_stdout
from typing import NamedTuple

from gmdf_hf.scripts import gmdf as command


class Result(NamedTuple):
    exit_code: int
    stdout: str
    stderr: str


def gmdf(*arguments: object) -> Result:
    """Output and exit status of a command, run in this process."""
    status = 0
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        try:
            command.main([str(argument) for argument in arguments])
        except SystemExit as end:
            status = int(end.code or 0)
    return Result(status, out.getvalue(), err.getvalue())
