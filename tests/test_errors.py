from __future__ import annotations

import errno
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import omegaconf
import pytest
import torch
from safetensors import safe_open

from llmshearing.errors import InputError, cli, naming
from llmshearing.fileio import write_text


def raising(error: BaseException) -> Callable[[Path], None]:
    def run(folder: Path) -> None:
        raise error

    return run


def write_to_full_disk(folder: Path) -> None:
    with naming("/dev/full"), open("/dev/full", "w") as file:
        file.write("x" * 100_000)


def read_damaged_safetensors(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\xff" * 64)
    safe_open(folder / "model.safetensors", "pt")


def read_cut_checkpoint(folder: Path) -> None:
    torch.save({"a": torch.zeros(1000)}, folder / "c.pt")
    os.truncate(folder / "c.pt", 2000)
    torch.load(folder / "c.pt")


def read_code(folder: Path) -> None:
    torch.save({"a": Path("x")}, folder / "c.pt")
    torch.load(folder / "c.pt", weights_only=True)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (raising(InputError("`x` is 3;\n it must be\n\n below 2.\n")), "`x` is 3; it must be below 2."),
        (lambda folder: write_text("/proc/nothing/x.json", "{}"), "'/proc/nothing': No such file or directory."),
        (lambda folder: write_text(folder / "file" / "x.json", "{}"), "file': File exists. Choose another place"),
        (lambda folder: (folder / "file" / "x").read_text(), "file/x': Not a directory. Give a folder."),
        (lambda folder: folder.read_text(), "': Is a directory. Give a file."),
        (write_to_full_disk, "'/dev/full': No space left on device. Free some space there and run"),
        (lambda folder: os.replace(folder / "a", folder / "b"), "/a' and '"),
        (raising(OSError("We couldn't connect to\n  'the hub'")), "We couldn't connect to 'the hub'"),
        (raising(OSError(errno.EIO, "Input/output error")), "error: Input/output error."),
        (raising(ConnectionError()), "error: ConnectionError"),
        (read_damaged_safetensors, "A safetensors file is truncated or damaged: "),
        (read_cut_checkpoint, "A file that torch.save wrote is truncated or damaged: PytorchStreamReader"),
        (read_code, "A file is damaged, or holds what could run code when read: Weights only load failed"),
        (lambda folder: omegaconf.OmegaConf.from_dotlist(["a.b=${"]), "A recipe cannot be read: "),
    ],
)
def test_what_is_not_a_mistake_of_the_program_is_one_line(
    run: Callable[[Path], None], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as end:
        cli(run)(tmp_path)
    said = capsys.readouterr().err
    assert end.value.code == 2
    assert said.startswith("error: ")
    assert message in said
    assert said.count("\n") == 1, said


def test_a_list_of_problems_keeps_its_lines(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        cli(raising(InputError("The recipe cannot run:\n  - a is 1;\n    lower it\n  - b is 2")))(tmp_path)
    assert capsys.readouterr().err == "error: The recipe cannot run:\n  - a is 1; lower it\n  - b is 2\n"


def test_ctrl_c_is_130_without_a_traceback(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as end:
        cli(raising(KeyboardInterrupt()))(tmp_path)
    assert end.value.code == 130
    assert end.value.__suppress_context__
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize(
    "error",
    [TypeError("x"), AssertionError("x"), KeyError("x"), ValueError("x"), RuntimeError("x"), UnicodeError("x")],
)
def test_a_mistake_of_the_program_keeps_its_traceback(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(type(error)) as found:
        cli(raising(error))(tmp_path)
    assert found.value is error


def test_an_end_with_a_code_of_its_own_keeps_it(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as end:
        cli(raising(SystemExit(3)))(tmp_path)
    assert end.value.code == 3
    assert pickle.UnpicklingError.__module__ == "_pickle"  # by which the error is told apart
