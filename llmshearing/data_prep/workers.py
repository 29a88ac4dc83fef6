"""The first pass over many files: worker processes, each with its copy of the encoder, tokenize a file at a time."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from pathlib import Path

from llmshearing.data_prep.readers import SourceFile
from llmshearing.data_prep.tokenize_file import TokenizedFile, recorded_part, tokenize_file
from llmshearing.data_prep.tokenizer import Encoder
from llmshearing.errors import InputError

Finished = tuple[SourceFile, TokenizedFile]

# Set in each worker by _start_worker.
_encoder: Encoder
_tokens_made: Synchronized[int]
_stop: Event


def tokenize_files(
    files: Sequence[SourceFile],
    encoder: Encoder,
    *,
    num_workers: int,
    work: Path,
    token_type: str,
    text_key: str | None,
) -> Iterator[tuple[int, list[Finished]]]:
    """Tokenize files into ``work``; the first error of any worker stops all.

    Args:
        files: the files to tokenize, in the order in which they are begun.
        encoder: text to ids.
        num_workers: number of processes.
        work: folder of the tokenized files.
        token_type: ``uint16`` or ``uint32``.
        text_key: see :func:`data_prep.readers.read_documents`.

    Yields:
        at least once a second: the tokens that all workers have made so far, and the files finished since the last
        time, with their records.

    Raises:
        InputError: a file cannot be read, or a worker was killed.
    """
    context = multiprocessing.get_context("spawn")  # a fork taken while threads run can deadlock
    tokens_made = context.Value("Q")
    stop = context.Event()
    executor = ProcessPoolExecutor(
        max(min(num_workers, len(files)), 1), context, _start_worker, (encoder, tokens_made, stop)
    )
    try:
        running = {executor.submit(_tokenize, file, work, token_type, text_key) for file in files}
        while running:
            done, running = wait(running, timeout=1, return_when=FIRST_COMPLETED)
            yield tokens_made.value, [future.result() for future in done]
    except BrokenProcessPool as error:
        raise InputError(
            "A worker process was killed, most likely for want of memory. Use fewer --workers; the same command goes "
            "on from here."
        ) from error
    finally:
        stop.set()
        executor.shutdown(cancel_futures=True)


def _start_worker(encoder: Encoder, tokens_made: Synchronized[int], stop: Event) -> None:
    global _encoder, _tokens_made, _stop
    _encoder, _tokens_made, _stop = encoder, tokens_made, stop
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # or each worker would use every core
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the main process sets ``stop``

    def follow_parent() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)  # the main process was killed: without this, its workers would wait for it for ever

    threading.Thread(target=follow_parent, daemon=True).start()


def _tokenize(file: SourceFile, work: Path, token_type: str, text_key: str | None) -> Finished:
    for tokens in tokenize_file(file, _encoder, work=work, token_type=token_type, text_key=text_key):
        with _tokens_made.get_lock():
            _tokens_made.value += tokens
        if _stop.is_set():
            raise InterruptedError
    return file, recorded_part(work, file)
