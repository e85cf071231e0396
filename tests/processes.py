"""Python processes for tests, forked from one that has the modules imported: a fresh start costs ten seconds each.

    done = processes.run("scripts/predict.py", "a.png", cwd=ROOT)  # as `python scripts/predict.py a.png`
    process = processes.start("-c", code, env=os.environ | hub.environment(tmp_path), warm=LIBRARIES)

The child has its own session, arguments, folder, environment and output. What a module reads when it is imported it
has read before: for the settings of Hugging Face's libraries use `LIBRARIES`, and `subprocess` for those of Python
itself, for peak memory, and where it matters what is imported at all.
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import types
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).parents[1]
#: None of them imports `huggingface_hub` or `gmdf_hf`.
LIBRARIES = (
    *("torch._dynamo", "torch.distributed.tensor", "torch.export", "sklearn.metrics", "scipy.optimize", "scipy.stats"),
    *("matplotlib.pyplot", "pandas", "pyarrow.dataset", "pyarrow.parquet", "PIL.Image", "av", "cv2", "pydantic"),
    *("rich.console", "rich.progress", "multiprocessing.pool", "concurrent.futures.process"),
)
SCRIPTS = (
    *LIBRARIES,
    *("transformers.models.clip.modeling_clip", "transformers.pipelines", "accelerate", "datasets", "evaluate"),
    *(f"gmdf_hf.scripts.{path.stem}" for path in sorted((ROOT / "scripts").glob("*.py"))),
    *("gmdf_hf.serving.pipeline", "gmdf_hf.serving.service", "tests.conftest"),
)


class Process:
    """A started child, with the part of `subprocess.Popen` that tests use."""

    def __init__(self, server: Server, pid: int) -> None:
        self.server, self.pid, self.returncode = server, pid, None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self.server.ask(self.pid)
        return self.returncode

    def wait(self, timeout: float = 600) -> int:
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            time.sleep(0.01)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Server:
    """The process that has `modules` imported and forks the children; it ends when its socket is closed."""

    def __init__(self, modules: tuple[str, ...]) -> None:
        self.socket, theirs = socket.socketpair()
        self.lock = threading.Lock()
        command = [sys.executable, __file__, str(theirs.fileno()), *modules]
        self.cache = tempfile.TemporaryDirectory()
        # Its own session: Ctrl-C is for pytest. One thread: others do not survive a fork.
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_DATASETS_CACHE": self.cache.name}
        options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "start_new_session": True}
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=environment, cwd=ROOT, **options)
        theirs.close()
        atexit.register(process.wait)
        atexit.register(self.socket.close)

    def ask(self, question: object, files: tuple[int, ...] = ()) -> int | None:
        with self.lock:
            message = json.dumps(question).encode()
            socket.send_fds(self.socket, [b"%12d" % len(message)], files)
            self.socket.sendall(message)
            return json.loads(self.socket.recv(64))


server = functools.cache(Server)


def start(
    *words: object,
    env: Mapping[str, str] | None = None,
    cwd: Path | str | None = None,
    stdin: object = None,
    stdout: object = None,
    stderr: object = None,
    warm: tuple[str, ...] = SCRIPTS,
) -> Process:
    """Start `python *words` with open files as its input and output; None is the null device."""
    with open(os.devnull, "r+b") as null:
        files = tuple((file or null).fileno() for file in (stdin, stdout, stderr))
        child = server(warm)
        return Process(
            child, child.ask([list(map(str, words)), dict(env or os.environ), str(cwd or Path.cwd())], files)
        )


def run(
    *words: object, input: str = "", text: bool = True, check: bool = False, **options
) -> subprocess.CompletedProcess:
    """Run `python *words` to its end; `stdout` and `stderr` are captured unless they are given."""
    with tempfile.TemporaryFile() as stdin, tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        stdin.write(input.encode())
        stdin.seek(0)
        code = start(*words, **{"stdin": stdin, "stdout": stdout, "stderr": stderr} | options).wait()
        stdout.seek(0), stderr.seek(0)
        printed = [stdout.read(), stderr.read()]
    done = subprocess.CompletedProcess(words, code, *(part.decode() if text else part for part in printed))
    if check:
        done.check_returncode()
    return done


def run_two(
    *words: object, env: Mapping[str, str] | None = None, cwd: Path | str = ROOT
) -> subprocess.CompletedProcess:
    """Run two processes of torch.distributed on the CPU, with the variables that `torch.distributed.run` sets."""
    with socket.socket() as probe, tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        shared |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
        options = {"cwd": cwd, "stdout": stdout, "stderr": stderr}
        ranks = ({"RANK": number, "LOCAL_RANK": number} for number in "01")
        children = [start(*words, env=os.environ | shared | rank, **options) for rank in ranks]
        while any(child.poll() is None for child in children) and not any(child.poll() for child in children):
            time.sleep(0.01)
        for child in children:
            child.kill()  # it would wait for the other one, which has failed
        stdout.seek(0), stderr.seek(0)
        codes = [child.wait() for child in children]
        return subprocess.CompletedProcess(words, max(codes, key=bool), stdout.read().decode(), stderr.read().decode())


def become(words: list[str], environment: dict[str, str], folder: str, files: list[int], base: list[str]) -> int:
    """Run `python *words` in this process, as the interpreter would, and return its exit status."""
    os.setsid()
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    importlib.invalidate_caches()
    found = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    safe = words[0] == "-P"
    kind, *rest = words[safe:]
    first = {"-c": "", "-m": folder}.get(kind, str(Path(kind).absolute().parent))
    sys.path[:] = [*([] if safe else [first]), *found, *base]
    status = 0
    try:
        if kind == "-m":
            sys.argv[:] = rest
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        elif kind == "-c":
            sys.argv[:] = ["-c", *rest[1:]]
            sys.modules["__main__"] = module = types.ModuleType("__main__")
            exec(compile(rest[0], "<string>", "exec"), module.__dict__)
        else:
            sys.argv[:] = [kind, *rest]
            runpy.run_path(kind, run_name="__main__")
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if not isinstance(end.code, int | None):
            print(end.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    with suppress(AttributeError):
        threading._shutdown()
    atexit._run_exitfuncs()
    try:
        for file in (sys.stdout, sys.stderr):
            if not file.closed:
                file.flush()
    except OSError:
        status = 120  # as the interpreter does
    return status & 0xFF


def serve(channel: socket.socket, base: list[str]) -> None:
    """Answer `Server.ask`: to a list with the process id of the child it starts, to a process id with its status."""
    while True:
        head, files, _, _ = socket.recv_fds(channel, 12, 3)
        if not head:
            return
        size, message = int(head), b""
        while len(message) < size:
            message += channel.recv(size - len(message))
        question = json.loads(message)
        if isinstance(question, int):
            pid, status = os.waitpid(question, os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        elif not (answer := os.fork()):
            channel.close()
            try:
                os._exit(become(*question, list(files), base))
            finally:
                os._exit(70)
        for file in files:
            os.close(file)
        channel.sendall(json.dumps(answer).encode())


if __name__ == "__main__":
    added = {*filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)), sys.path[0]}
    before = [path for path in sys.path if path not in added]
    sys.path[0] = str(ROOT)
    for name in sys.argv[2:]:
        with suppress(ImportError):  # an extra that is not installed
            importlib.import_module(name)
    gc.freeze()
    serve(socket.socket(fileno=int(sys.argv[1])), before)
