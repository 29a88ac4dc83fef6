"""Interrupted anywhere and restarted, the output is the same, byte for byte, and nothing finished is done again."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from llmshearing import storage
from llmshearing.data_prep import mds, prepare, second_pass
from llmshearing.data_prep.tokenizer import Tokenizer
from llmshearing.errors import InputError
from llmshearing.fileio import files_below
from tests.conftest import heed_signals
from tests.object_store import Store

SCRIPT = Path(prepare.__file__)
OPTIONS = {"seq_len": 64, "eval_sequences": 3}
WriteJsonl = Callable[..., Path]


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, texts: list[str], write_jsonl: WriteJsonl) -> Path:
    """Two domains of six files, some seconds of work, with a bad line in one."""
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(12):
        order = random.Random(number).sample(texts, 500)
        write_jsonl(folder / ("code", "more")[number % 2] / f"{number:02}.jsonl", order)
    with (folder / "code" / "00.jsonl").open("a") as file:
        file.write("broken\n")
    return folder


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, corpus: Path, tokenizer: Tokenizer) -> dict[str, bytes]:
    """What a run that nothing disturbs writes."""
    out = tmp_path_factory.mktemp("uninterrupted") / "out"
    prepare.prepare(corpus, out, tokenizer=tokenizer, **OPTIONS)
    return content(out)


def test_a_killed_process_goes_on_where_it_was(
    corpus: Path, sentencepiece_model: Path, uninterrupted: dict[str, bytes], tmp_path: Path
) -> None:
    generator = random.Random(0)
    out = tmp_path / "out"
    command = [sys.executable, SCRIPT, corpus, out, "--tokenizer", sentencepiece_model]
    command += ["--seq-len", "64", "--eval-sequences", "3", "--workers", "2"]
    finished = 0
    for interruption in (signal.SIGINT, signal.SIGKILL, signal.SIGTERM):
        process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=heed_signals
        )
        finished = min(finished + generator.randint(1, 3), 11)
        while sum(path.name.endswith(".jsonl.json") for path in files_below(out)) < finished:
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.001)
        time.sleep(generator.uniform(0, 0.1))
        workers = psutil.Process(process.pid).children(recursive=True)
        if interruption == signal.SIGINT:
            os.killpg(process.pid, interruption)  # as a terminal does
            assert "the same command goes on" in process.communicate(timeout=60)[1]
            assert process.returncode == 130
        else:
            process.send_signal(interruption)
            assert process.wait(timeout=60) == -interruption
        assert not psutil.wait_procs(workers, timeout=30)[1], "a worker outlives the main process"
        assert not (out / "manifest.json").exists()
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert "parts of files were tokenized by an earlier run" in done.stderr
    assert content(out) == uninterrupted


def test_a_process_killed_while_it_writes_to_a_store_goes_on_where_it_was(
    corpus: Path, sentencepiece_model: Path, uninterrupted: dict[str, bytes], store: Store
) -> None:
    out = "s3://bucket/out"
    command = [sys.executable, SCRIPT, corpus, out, "--tokenizer", sentencepiece_model]
    command += ["--seq-len", "64", "--eval-sequences", "3", "--workers", "2"]
    for ending, times in ((".jsonl.json", 4), (".kept", 2)):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
        while sum(name.endswith(ending) for name in storage.files_below(out)) < times:
            assert process.poll() is None
            time.sleep(0.02)
        workers = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
        assert not psutil.wait_procs(workers, timeout=30)[1], "a worker outlives the main process"
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert "12 of 12 parts of files were tokenized by an earlier run" in done.stderr
    assert {name: storage.read_bytes(f"{out}/{name}") for name in storage.files_below(out)} == uninterrupted


class Unusable:
    """An encoder that must not be called."""

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        raise AssertionError("tokenized again")


class Deadly:
    """An encoder whose worker dies as the system's out-of-memory killer would have it."""

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


class StoppedError(Exception):
    """Stands for a kill at a chosen place."""


@contextmanager
def stopped(owner: Any, name: str, *, at: int) -> Iterator[None]:
    """The block ends where ``owner.name`` is called for the ``at``-th time, before that call does anything."""
    call = getattr(owner, name)
    calls = 0

    def stop(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at:
            raise StoppedError
        return call(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, stop)
        with pytest.raises(StoppedError):
            yield


@pytest.fixture(scope="module")
def tokenized(tmp_path_factory: pytest.TempPathFactory, corpus: Path, tokenizer: Tokenizer) -> Path:
    """An output folder left right after the first pass."""
    out = tmp_path_factory.mktemp("tokenized") / "out"
    with stopped(second_pass, "hold_out", at=1):
        prepare.prepare(corpus, out, tokenizer=tokenizer, **OPTIONS)
    return out


# os.replace: settings, mark of the run, eval documents of 2 domains, all that is held out; 3 files of each of 12 parts
# (6 to 41); 2 eval splits, a shard and its record in each train split, 4 indices, the record of all of it (42 to 52);
# train, eval, bad lines, input, manifest.
# shutil.rmtree: unfinished files, 2 splits in place, the work folder.
PLACES = [
    (mds.ShardFormat, "write", 1),
    (mds.ShardFormat, "write", 4),
    *((os, "replace", at) for at in (1, 2, 4, 5, 6, 8, 20, 42, 45, 49, *range(52, 58))),
    *((shutil, "rmtree", at) for at in (2, 3, 4)),
]


@pytest.mark.parametrize(("owner", "name", "at"), PLACES, ids=lambda value: getattr(value, "__name__", str(value)))
def test_every_step_after_the_first_pass_can_be_interrupted(
    owner: Any,
    name: str,
    at: int,
    corpus: Path,
    tokenized: Path,
    tokenizer: Tokenizer,
    uninterrupted: dict[str, bytes],
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    shutil.copytree(tokenized, out)
    unusable = replace(tokenizer, encoder=Unusable())  # no file may be tokenized again
    with stopped(owner, name, at=at):
        prepare.prepare(corpus, out, tokenizer=unusable, **OPTIONS)
    prepare.prepare(corpus, out, tokenizer=unusable, **OPTIONS)
    assert content(out) == uninterrupted


def test_an_unfinished_run_may_go_on_with_another_packing(
    corpus: Path, tokenized: Path, tokenizer: Tokenizer, uninterrupted: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(tokenized, out)
    unusable = replace(tokenizer, encoder=Unusable())
    with pytest.raises(InputError, match="too small"):
        prepare.prepare(corpus, out, tokenizer=unusable, seq_len=64, eval_sequences=10**6)
    with stopped(os, "replace", at=66):  # packed for another length, half of it moved into place
        prepare.prepare(corpus, out, tokenizer=unusable, seq_len=32, eval_sequences=3)
    assert (out / "train").exists()
    with pytest.raises(InputError, match="another 'text_key': None, now text"):
        prepare.prepare(corpus, out, tokenizer=unusable, text_key="text", **OPTIONS)
    prepare.prepare(corpus, out, tokenizer=unusable, **OPTIONS)
    assert content(out) == uninterrupted


def test_a_file_that_changed_since_is_tokenized_again(
    corpus: Path, tokenizer: Tokenizer, texts: list[str], tmp_path: Path, write_jsonl: WriteJsonl
) -> None:
    path = write_jsonl(tmp_path / "corpus" / "code" / "a.jsonl", texts[:300])
    out = tmp_path / "out"
    with stopped(os, "replace", at=15):  # packed, and half of it moved into place
        prepare.prepare(tmp_path / "corpus", out, tokenizer=tokenizer, **OPTIONS)
    assert (out / "train").exists()
    changed = path.read_text(encoding="utf-8").replace("self", "this")  # of the same size
    path.write_text(changed, encoding="utf-8")
    os.utime(path, ns=(0, 0))
    prepare.prepare(tmp_path / "corpus", out, tokenizer=tokenizer, **OPTIONS)
    prepare.prepare(tmp_path / "corpus", tmp_path / "fresh", tokenizer=tokenizer, **OPTIONS)
    assert content(out) == content(tmp_path / "fresh")


def test_a_killed_worker_is_reported(corpus: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="worker process was killed"):
        prepare.prepare(corpus, tmp_path / "out", tokenizer=replace(tokenizer, encoder=Deadly()), **OPTIONS)


def test_a_script_whose_workers_would_run_it_too_ends_with_the_reason(
    corpus: Path, sentencepiece_model: Path, tmp_path: Path
) -> None:
    """They die before they have read the job, which is larger than what a pipe holds."""
    script = tmp_path / "script.py"
    script.write_text(
        "from dataclasses import replace\n"
        "from pathlib import Path\n"
        "from llmshearing.data_prep.prepare import prepare\n"
        "from llmshearing.data_prep.tokenizer import load_tokenizer\n"
        "class Large:\n"
        "    def __init__(self) -> None:\n"
        "        self.vocabulary = bytes(1 << 20)\n"
        "    def encode(self, texts):\n"
        "        return [[0] for _ in texts]\n"
        f"tokenizer = replace(load_tokenizer({str(sentencepiece_model)!r}), encoder=Large())\n"
        f"prepare(Path({str(corpus)!r}), Path({str(tmp_path / 'out')!r}), tokenizer=tokenizer, **{OPTIONS})\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "under `if __name__ == '__main__':`" in done.stderr.splitlines()[-1]
