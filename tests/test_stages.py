"""The demo's stages: what is finished is kept, what is killed goes on, and nobody works there twice."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from demo.stages import Stage, run_stages
from tests.conftest import REPOSITORY

# Two stages: the first notes that it ran; the second does too, with its process id, and waits for "go".
SCRIPT = r"""
import sys
from pathlib import Path
from demo.stages import Stage, run_stages
folder = Path(sys.argv[1])
note = "import os, sys; open(sys.argv[1], 'a').write(f'{os.getpid()}\\n')"
wait = "import os, sys, time\nwhile not os.path.exists(sys.argv[2]): time.sleep(0.01)"
stages = [
    Stage("first", "the first", [[sys.executable, "-c", note, str(folder / "first")]], []),
    Stage(
        "second", "the second",
        [[sys.executable, "-c", f"{note}\n{wait}", str(folder / "second"), str(folder / "go")]], [],
    ),
]
run_stages(stages, folder / "records", root=folder)
"""


def start(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SCRIPT, str(folder)]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)


def lines(path: Path, count: int) -> list[str]:
    """The file's lines, as soon as there are ``count``."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if path.is_file() and len(found := path.read_text().splitlines()) >= count:
            return found
        time.sleep(0.01)
    raise AssertionError(f"{path} never had {count} lines")


def is_alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux ends a process with its parent")
def test_a_killed_run_takes_its_command_along_and_the_next_goes_on_from_there(tmp_path: Path) -> None:
    killed = start(tmp_path)
    (command,) = map(int, lines(tmp_path / "second", 1))
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    end = time.monotonic() + 60
    while is_alive(command) and time.monotonic() < end:
        time.sleep(0.01)
    assert not is_alive(command)
    again = start(tmp_path)
    lines(tmp_path / "second", 2)
    (tmp_path / "go").touch()
    output, _ = again.communicate(timeout=60)
    assert again.returncode == 0
    assert "the first: done before" in output
    assert len(lines(tmp_path / "first", 1)) == 1


def test_a_second_run_waits_for_the_first_and_repeats_nothing(tmp_path: Path) -> None:
    first = start(tmp_path)
    lines(tmp_path / "second", 1)
    second = start(tmp_path)
    assert second.stdout is not None
    assert "waiting for it to end" in second.stdout.readline()
    (tmp_path / "go").touch()
    assert first.wait(timeout=60) == 0
    output, _ = second.communicate(timeout=60)
    assert second.returncode == 0
    assert "the second: done before" in output
    assert len(lines(tmp_path / "second", 1)) == 1
    first.communicate()


def test_a_stage_that_fails_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stage = Stage("only", "the only", [[sys.executable, "-c", "raise SystemExit(2)"]], [], remedy="Do otherwise.")
    with pytest.raises(SystemExit):
        run_stages([stage], tmp_path / "records", root=tmp_path)
    assert capsys.readouterr().out.endswith(
        "The stage 'only' failed with exit code 2; the cause stands above. Do otherwise.\n"
    )


def test_a_stage_runs_again_when_an_input_changes_and_a_failure_ends_with_its_code(tmp_path: Path) -> None:
    (tmp_path / "input").write_text("0")
    code = "import sys; open('ran', 'a').write('x'); sys.exit(int(open('input').read()))"
    stages = [Stage("only", "the only", [[sys.executable, "-c", code]], [], [tmp_path / "input"])]
    for _ in range(2):
        run_stages(stages, tmp_path / "records", root=tmp_path)
    assert (tmp_path / "ran").read_text() == "x"
    (tmp_path / "input").write_text("3")
    with pytest.raises(SystemExit) as error:
        run_stages(stages, tmp_path / "records", root=tmp_path)
    assert error.value.code == 3
    assert (tmp_path / "ran").read_text() == "xx"
