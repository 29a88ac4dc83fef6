"""Forked commands are what processes of their own would be."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.conftest import heed_signals
from tests.forkserver import ForkServer

# What a command can see of its process, other than which libraries are there.
_SEEN = """
import json, logging, os, runpy, signal, sys, warnings
import composer, streaming, torch, transformers
import numpy
print(json.dumps({
    "argv": sys.argv, "name": __name__, "cwd": os.getcwd(),
    "path": [path for path in sys.path if not path.startswith("/tmp/tmp")], "environment": dict(os.environ),
    "flags": str(sys.flags), "options": sys.warnoptions,
    "filters": sorted({str(filter) for filter in warnings.filters if "Distutils" not in str(filter)}),
    "root": [logging.root.level, len(logging.root.handlers), logging.lastResort.level],
    "loggers": [logging.getLogger(name).getEffectiveLevel() for name in ("composer", "transformers", "torch", "ours")],
    "dtype": str(torch.get_default_dtype()),
    "threads": [torch.get_num_threads(), torch.get_num_interop_threads()], "denormal": float(torch.tensor(1e-40)),
    "signals": [str(signal.getsignal(number)) for number in (signal.SIGCHLD, signal.SIGHUP, signal.SIGPIPE)],
    "buffered": [(stream.line_buffering, stream.write_through) for stream in (sys.stdout, sys.stderr)],
    "input": sys.stdin.read(), "session": os.getsid(0) == os.getpid(),
    "product": (torch.arange(90000.).reshape(300, 300).sin() @ torch.ones(300, 300)).sum().item(),
}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("threads", ["1", None])
def test_a_child_sees_what_a_process_of_its_own_sees(forked: ForkServer, tmp_path: Path, threads: str | None) -> None:
    script = tmp_path / "seen.py"
    script.write_text(_SEEN)
    environment = {key: value for key, value in os.environ.items() if key not in ("OMP_NUM_THREADS", "LC_CTYPE")}
    environment |= {"PYTHONWARNINGS": "ignore", "PYTHONPATH": "/nowhere"}
    if threads:
        environment["OMP_NUM_THREADS"] = threads
    command = [sys.executable, str(script), "a b", "c"]
    fresh = subprocess.run(
        command,
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        start_new_session=True,
        check=True,
        preexec_fn=heed_signals,
    )
    child = forked.run(command, cwd=tmp_path, env=environment, check=True)
    assert json.loads(child.stdout) == json.loads(fresh.stdout)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("pass", 0),
        ("import sys; sys.exit()", 0),
        ("import sys; sys.exit(3)", 3),
        ("import sys; sys.exit('why')", 1),
        ("raise KeyError('gone')", 1),
        ("raise KeyboardInterrupt", -signal.SIGINT),
        ("import os; os.kill(os.getpid(), 9)", -signal.SIGKILL),
        ("import os; os.abort()", -signal.SIGABRT),
    ],
)
def test_exit_codes(forked: ForkServer, code: str, expected: int) -> None:
    assert forked.run(["python", "-c", code]).returncode == expected


def test_output_is_kept_apart(forked: ForkServer) -> None:
    code = "import sys, atexit; atexit.register(print, 'last'); print('out'); print('err', file=sys.stderr)"
    code += "; sys.exit('why')"
    done = forked.run(["python", "-c", code])
    assert (done.stdout, done.stderr) == ("out\nlast\n", "err\nwhy\n")
    done = forked.run(["python", "-c", "print('before'); raise KeyError('gone')"])
    assert done.stdout == "before\n"
    assert "Traceback" in done.stderr
    assert done.stderr.endswith("KeyError: 'gone'\n")
    with pytest.raises(subprocess.CalledProcessError):
        forked.run(["python", "-c", "raise KeyError('gone')"], check=True)


def test_modules_and_scripts_run_in_their_folder_with_their_environment_alone(
    forked: ForkServer, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    code = "import json, os, sys; print(json.dumps([__name__, sys.argv, os.getcwd(), dict(os.environ)]))"
    (tmp_path / "elsewhere" / "shown.py").write_text(code)
    environment = {"A": "b\nc"}
    done = forked.run(["python", "-m", "shown", "x"], cwd=tmp_path / "elsewhere", env=environment, check=True)
    script = str(tmp_path / "elsewhere" / "shown.py")
    assert json.loads(done.stdout) == ["__main__", [script, "x"], str(tmp_path / "elsewhere"), environment]
    done = forked.run(["python", "elsewhere/shown.py"], cwd=tmp_path, env={**environment, "D": ""}, check=True)
    assert json.loads(done.stdout) == ["__main__", ["elsewhere/shown.py"], str(tmp_path), {**environment, "D": ""}]
    done = forked.run(
        ["python", "-m", "shown"], cwd=tmp_path, env={**environment, "PYTHONPATH": f"{tmp_path}/elsewhere"}
    )
    assert done.returncode == 0, done.stderr
    assert forked.run(["python", "-m", "shown"], cwd=tmp_path).returncode == 1
    with pytest.raises(ValueError, match="HF_HOME is read while libraries are imported"):
        forked.run(["python", "-c", "pass"], env={**os.environ, "HF_HOME": str(tmp_path)})


def test_the_code_under_test_is_imported_anew(forked: ForkServer, tmp_path: Path) -> None:
    for number in (1, 22):
        (tmp_path / "under_test.py").write_text(f"number = {number}")
        done = forked.run(["python", "-c", "import under_test; print(under_test.number)"], cwd=tmp_path, check=True)
        assert done.stdout == f"{number}\n"
    code = "import sys; print([name for name in sys.modules if name.startswith(('llmshearing', 'data_prep', 'tests'))])"
    assert forked.run(["python", "-c", code]).stdout == "[]\n"


def test_what_is_drawn_differs(forked: ForkServer) -> None:
    code = "import random, numpy, torch; print(random.random(), numpy.random.rand(), torch.rand(1).item(), sep='\\n')"
    first, second = (forked.run(["python", "-c", code], check=True).stdout.split() for _ in range(2))
    assert not set(first) & set(second)


def test_limits(forked: ForkServer, tmp_path: Path) -> None:
    done = forked.run(
        ["python", "-c", "open('big', 'wb', 0).write(bytes(9000))"], cwd=tmp_path, limits={"RLIMIT_FSIZE": 5000}
    )
    assert done.returncode in (0, 1, -signal.SIGXFSZ)
    assert (tmp_path / "big").stat().st_size == 5000


_WITH_A_CHILD = """
import subprocess, sys, time
child = subprocess.Popen(["sleep", "1000"])
print(child.pid, flush=True)
time.sleep(1000)
"""


def test_after_a_timeout_nothing_of_it_runs(forked: ForkServer) -> None:
    with pytest.raises(subprocess.TimeoutExpired) as caught:
        forked.run(["python", "-c", _WITH_A_CHILD], timeout=3)
    assert _ends(int(caught.value.stdout))


def test_a_running_command_is_signalled(forked: ForkServer) -> None:
    process = forked.start(["python", "-c", _WITH_A_CHILD])
    assert process.poll() is None
    while not process.read()[0]:
        time.sleep(0.05)
    child = int(process.read()[0])
    process.kill()
    assert process.wait(20) == process.poll() == -signal.SIGKILL
    assert psutil.pid_exists(child)  # as after a kill of one process
    process.kill_group()
    assert _ends(child)
    process.kill()  # of what has ended: nothing
    # Composer, once it has started a run in this process, has named its rank in our environment.
    alone = {key: value for key, value in os.environ.items() if key != "RANK"}
    process = forked.start(["python", "-c", "import time; time.sleep(1000)"], env=alone)
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(20) == -signal.SIGTERM


def _ends(pid: int) -> bool:
    for _ in range(400):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


_SUM = """
import os, sys, torch, torch.distributed as dist
dist.init_process_group("gloo")
total = torch.tensor([dist.get_rank() + 1.0])
dist.all_reduce(total)
print("rank", os.environ["RANK"], "of", os.environ["WORLD_SIZE"], "has", total.item(), sys.argv[1:])
print("said", file=sys.stderr)
dist.destroy_process_group()
"""


def test_ranks(forked: ForkServer, tmp_path: Path) -> None:
    (tmp_path / "ranks.py").write_text(_SUM)
    command = ["composer", "-n", "2", "--stderr", str(tmp_path / "err{rank}"), "ranks.py", "a"]
    done = forked.run(command, cwd=tmp_path, check=True)
    assert done.stdout == "rank 0 of 2 has 3.0 ['a']\n"
    assert done.stderr.endswith("said\n")
    assert (tmp_path / "err1").read_text().endswith("said\n")
    (tmp_path / "fails.py").write_text(
        "import os, time\nif os.environ['RANK'] == '1': raise KeyError('gone')\ntime.sleep(1000)"
    )
    done = forked.run(["composer", "-n", "2", "fails.py"], cwd=tmp_path, timeout=60)
    assert done.returncode == 1
    assert "KeyError: 'gone'" in done.stdout  # where the launcher shows it
    process = forked.start(["composer", "-n", "2", "-m", "timeit", "-n", "1", "import time; time.sleep(1000)"])
    process.kill()
    assert process.wait(20) == -signal.SIGKILL
