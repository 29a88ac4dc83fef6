"""Commands in processes of their own that start at once: children of a process that has imported the libraries.

A child is what ``python ...`` would be in all that a command can see, but for libraries that are imported already
(tests/forkserver_process.py). What depends on how they are imported needs a process of its own.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from composer.utils import get_free_tcp_port

# By lm-eval and scikit-learn, in a test's own process: how fast files are fetched, and how OpenMP begins.
_SET_BY_IMPORT = ("HF_XET_HIGH_PERFORMANCE", "KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK")
_READ_ON_IMPORT = ("HF_", "HUGGINGFACE_", "TRANSFORMERS_", "PYTHONHASHSEED", "KMP_", "MKL_")
# What a trainer leaves in the environment of a test's own process, by which the next process takes itself for a rank.
_OF_RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
_GRACE = 30.0  # seconds that ranks have to end when one of them has failed, as the composer launcher gives them


class Forked:
    """A running command, used as a ``subprocess.Popen``. It leads a session, and so a group, of its own."""

    def __init__(self, args: Sequence[str], connection: socket.socket, stdout: Path, stderr: Path) -> None:
        self.args, self.stdout_path, self.stderr_path = list(args), stdout, stderr
        self.returncode: int | None = None
        self._replies = connection.makefile("r")
        self._connection = connection
        self.pid = int(self._replies.readline())

    def poll(self) -> int | None:
        """The exit code, of a signal its negative number; ``None`` while the process runs."""
        return self._await(0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end.

        Raises:
            subprocess.TimeoutExpired: it took longer than ``timeout`` seconds; the process goes on.
        """
        code = self._await(timeout)
        if code is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired(self.args, timeout)
        return code

    def _await(self, timeout: float | None) -> int | None:
        if self.returncode is None and self._replied(timeout):
            self.returncode = int(self._replies.readline())
            self._replies.close()
            self._connection.close()
        return self.returncode

    def _replied(self, timeout: float | None) -> bool:
        poll = select.poll()  # which, unlike select, takes descriptors above 1024
        poll.register(self._connection, select.POLLIN)
        return bool(poll.poll(None if timeout is None else 1000 * timeout))

    def send_signal(self, number: int) -> None:
        """To this process alone, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """SIGTERM to this process alone."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to this process alone."""
        self.send_signal(signal.SIGKILL)

    def kill_group(self) -> None:
        """SIGKILL to it and to all that it has started, also when it has ended itself."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            return

    def read(self) -> tuple[str, str]:
        """What it has written so far to stdout and stderr."""
        return (
            self.stdout_path.read_text(encoding="utf-8", errors="replace"),
            self.stderr_path.read_text(encoding="utf-8", errors="replace"),
        )


class Ranks(Forked):
    """A running command on several ranks; the other ranks follow the first one's end only if one of them failed."""

    def __init__(self, args: Sequence[str], ranks: Sequence[Forked]) -> None:
        self.args, self.ranks = list(args), list(ranks)
        self.pid, self.stdout_path, self.stderr_path = ranks[0].pid, ranks[0].stdout_path, ranks[0].stderr_path
        self.returncode = None
        self._failed: list[Forked] = []
        self._ends: float | None = None

    def _await(self, timeout: float | None) -> int | None:
        deadline = None if timeout is None else time.monotonic() + timeout
        while self.returncode is None:
            codes = [rank.poll() for rank in self.ranks]
            if self._ends is None and any(codes):
                self._failed = [rank for rank in self.ranks if rank.returncode]
                self._ends = time.monotonic() + _GRACE
                for rank in self.ranks:
                    rank.terminate()
            elif self._ends is not None and time.monotonic() > self._ends:
                self.kill_group()
            if None not in codes:
                self.returncode = self._failed[0].returncode if self._failed else 0
            elif deadline is not None and time.monotonic() >= deadline:
                return None
            else:
                time.sleep(0.02)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """To each rank that still runs."""
        for rank in self.ranks:
            rank.send_signal(number)

    def kill_group(self) -> None:
        """SIGKILL to the ranks and to all that they have started."""
        for rank in self.ranks:
            rank.kill_group()

    def read(self) -> tuple[str, str]:
        """What the first rank has written so far, and to stdout, once all have ended, what those that failed have."""
        stdout, stderr = self.ranks[0].read()
        for number, rank in enumerate(self.ranks):
            if rank in self._failed and self.returncode is not None:
                stdout += f"\nGlobal rank {number} (PID {rank.pid}) exited with code {rank.returncode}\n"
                stdout += "".join(rank.read()) if number else ""
        return stdout, stderr


class ForkServer:
    """Starts ``[python, ...]``, also by its path, or ``[composer, -n N, ...]`` with ranks as the launcher has them."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="forkserver-"))
        self._number = 0
        ours = {"PYTORCH_NVML_BASED_CUDA_CHECK": "1", "OPENBLAS_NUM_THREADS": "1"}  # no CUDA, no threads before a fork
        taken = {"PYTHONPATH", "PYTHONWARNINGS", "OMP_NUM_THREADS"}  # by each child from its own environment
        self._environment = {key: value for key, value in os.environ.items() if key not in taken} | ours
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("forkserver_process.py")), str(self._folder / "socket")],
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n", "the fork server could not start; see its stderr above"

    def start(
        self,
        command: Sequence[str | Path],
        *,
        cwd: str | Path | None = None,
        env: Mapping[str, str] | None = None,
        limits: Mapping[str, int] | None = None,
    ) -> Forked:
        """Start a command.

        Args:
            command: program and arguments.
            cwd: its working directory; ours if ``None``.
            env: its whole environment; a copy of ours, but for what makes a rank of it, if ``None``.
            limits: of resources, by their names in the module ``resource``, e.g. ``{"RLIMIT_FSIZE": 10_000}``.
        """
        program, *arguments = map(str, command)
        if env is None:
            env = {name: value for name, value in os.environ.items() if name not in _OF_RANKS}
        environment = dict(env)
        if Path(program).name.startswith("python") and arguments[:2] != ["-m", "composer"]:
            return self._fork(command, arguments, environment, cwd, limits)
        if Path(program).name.startswith("python"):
            arguments = arguments[2:]
        else:
            assert Path(program).name == "composer", f"'{program}' is neither python nor composer"
        options = {"-n": "1", "--stderr": ""}
        while arguments[0] in options:
            options[arguments[0]], arguments = arguments[1], arguments[2:]
        number = int(options["-n"])
        common = {"WORLD_SIZE": str(number), "LOCAL_WORLD_SIZE": str(number), "NODE_RANK": "0", "PYTHONUNBUFFERED": "1"}
        common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(get_free_tcp_port())}
        common |= {"TORCH_NCCL_ASYNC_ERROR_HANDLING": "1"}
        ranks = []
        for rank in range(number):
            changed = environment | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            stderr = Path(options["--stderr"].format(rank=rank)) if rank and options["--stderr"] else None
            ranks.append(self._fork(command, arguments, changed, cwd, limits, stderr))
        return Ranks(list(map(str, command)), ranks)

    def run(
        self,
        command: Sequence[str | Path],
        *,
        cwd: str | Path | None = None,
        env: Mapping[str, str] | None = None,
        limits: Mapping[str, int] | None = None,
        timeout: float = 300,
        check: bool = False,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end.

        Raises:
            subprocess.TimeoutExpired: it took longer than ``timeout`` seconds; its whole group is killed.
            subprocess.CalledProcessError: with ``check``, its exit code was not 0; stdout and stderr are with it.
        """
        process = self.start(command, cwd=cwd, env=env, limits=limits)
        try:
            code = process.wait(timeout)
        except BaseException as error:
            process.kill_group()
            process.wait()
            if isinstance(error, subprocess.TimeoutExpired):
                raise subprocess.TimeoutExpired(process.args, timeout, *process.read()) from None
            raise
        done = subprocess.CompletedProcess(process.args, code, *process.read())
        if check and code:
            sys.stderr.write(done.stderr)
            done.check_returncode()
        return done

    def _fork(
        self,
        command: Sequence[str | Path],
        arguments: list[str],
        environment: dict[str, str],
        cwd: str | Path | None,
        limits: Mapping[str, int] | None,
        stderr: Path | None = None,
    ) -> Forked:
        for key in (environment.keys() | self._environment.keys()) - set(_SET_BY_IMPORT):
            if key.startswith(_READ_ON_IMPORT) and environment.get(key) != self._environment.get(key):
                raise ValueError(f"{key} is read while libraries are imported: start a process of its own")
        self._number += 1
        stdout = self._folder / f"{self._number}.stdout"
        stderr = stderr or self._folder / f"{self._number}.stderr"
        request = {"arguments": arguments, "env": environment, "cwd": str(cwd or Path.cwd()), "limits": limits or {}}
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(self._folder / "socket"))
        connection.sendall(json.dumps({**request, "stdout": str(stdout), "stderr": str(stderr)}).encode() + b"\n")
        return Forked(list(map(str, command)), connection, stdout, stderr)

    def close(self) -> None:
        """End the server and every child that still runs."""
        self._process.communicate()
        shutil.rmtree(self._folder)
