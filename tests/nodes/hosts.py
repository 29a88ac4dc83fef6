"""Two hosts on one machine: network, process, mount and host name namespaces, joined by a cable, as root or anybody.

Each host has its own ``/dev/shm``, its own ``$TMPDIR``, and a folder that is at one path on both and of either alone.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.conftest import REPOSITORY, heed_signals

_BOOT = 'mount -t tmpfs tmpfs /dev/shm && mount --bind "$1" "$2" && ip link set lo up && echo up && exec sleep infinity'


class NotAllowed(Exception):
    """Namespaces cannot be made here; says why."""


class Host:
    """One of them, until :meth:`lose` or the end of :func:`two_hosts`.

    Args:
        number: from 0 on.
        folder: of all hosts. ``folder/own`` is on this host what ``folder/host<number>`` is for everybody.
        enter: the command that leads into the namespaces that the hosts are made in; empty for none.
        mapped: whether this one makes a user namespace in which we are root.
    """

    def __init__(self, number: int, folder: Path, *, enter: Sequence[str] = (), mapped: bool = False) -> None:
        self.number, self.address, self.own = number, f"10.77.0.{number + 1}", folder / "own"
        self.disk, self.log = folder / f"host{number}", folder / f"log{number}"
        self.environment = {"TMPDIR": str(self.own / "tmp"), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        for path in (self.own, self.disk, self.disk / "tmp"):
            path.mkdir(exist_ok=True)
        user = ["--user", "--map-root-user"] if mapped else []
        spaces = [*user, "--net", "--mount", "--pid", "--uts", "--fork", "--kill-child", "--mount-proc"]
        self._holder = subprocess.Popen(
            [*enter, "unshare", *spaces, "sh", "-c", _BOOT, "sh", str(self.disk), str(self.own)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._holder.stdout is not None
        assert self._holder.stderr is not None
        if self._holder.stdout.readline() != "up\n":
            self._holder.wait()
            raise NotAllowed(" ".join(self._holder.stderr.read().split()))
        task = Path(f"/proc/{self._holder.pid}/task/{self._holder.pid}/children")
        self.pid = int(task.read_text().split()[0])  # of its first process: with it, all others end

    def enter(self, *spaces: str) -> list[str]:
        """The beginning of a command that runs on this host."""
        user = [] if os.geteuid() == 0 else ["--user", "--preserve-credentials"]
        return [
            "nsenter",
            "-t",
            str(self.pid),
            f"--wd={REPOSITORY}",
            *user,
            *(spaces or ("--net", "--mount", "--pid", "--uts")),
        ]

    def start(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        """Start a command here, in the repository; what it says goes to ``log``."""
        with self.log.open("wb") as file:
            return subprocess.Popen(
                [*self.enter(), *command],
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                preexec_fn=heed_signals,
            )

    def unplug(self) -> None:
        """Cut the cable: from now on nobody hears that this host's processes end."""
        _run([*self.enter("--net"), "ip", "link", "set", "eth0", "down"])

    def lose(self) -> None:
        """Kill every process of it at once, and its namespaces with them."""
        os.kill(self.pid, signal.SIGKILL)
        self._holder.wait()

    def close(self) -> None:
        """The same, if it has not been lost already."""
        if self._holder.poll() is None:
            self.lose()
        for pipe in (self._holder.stdout, self._holder.stderr):
            assert pipe is not None
            pipe.close()


@contextmanager
def two_hosts(folder: Path) -> Iterator[tuple[Host, Host]]:
    """``node0`` and ``node1``, which reach each other at their ``address``.

    Raises:
        NotAllowed: this machine has no namespaces for us.
    """
    if lacking := [tool for tool in ("unshare", "nsenter", "ip") if shutil.which(tool) is None]:
        raise NotAllowed(f"no {' and no '.join(lacking)} here")
    mapped = os.geteuid() != 0
    hosts: list[Host] = []
    try:
        hosts.append(Host(0, folder, mapped=mapped))
        hosts.append(Host(1, folder, enter=hosts[0].enter("--user", "--mount") if mapped else ()))
        peer = ["peer", "name", "eth0", "netns", str(hosts[1].pid)]
        _run([*hosts[0].enter("--net"), "ip", "link", "add", "eth0", "type", "veth", *peer])
        for host in hosts:
            for settings in (["addr", "add", f"{host.address}/24", "dev", "eth0"], ["link", "set", "eth0", "up"]):
                _run([*host.enter("--net"), "ip", *settings])
            _run([*host.enter(), "hostname", f"node{host.number}"])
        yield hosts[0], hosts[1]
    finally:
        for host in hosts:
            host.close()


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise NotAllowed(f"`{' '.join(command)}`: {' '.join(done.stderr.split())}")
