"""The process behind tests.forkserver: it has imported what takes seconds to import, and forks a child per command.

Nothing of this repository is imported here, so a child runs the code as it is. A child becomes what
``python ARGUMENTS`` would be. At its end all is done but taking libraries apart, object by object: that takes a second.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import resource
import runpy
import selectors
import signal
import socket
import sys
import tempfile
import threading
import types
import warnings
from pathlib import Path
from typing import Any

# What the commands import in the end; `transformers` and `streaming` do much of it only when it is used.
PRELOADED = """
    torch torch._dynamo torch.distributed.checkpoint torch.distributed.fsdp torch.distributed.tensor torch.optim
    torch._subclasses.fake_tensor torch.utils._pytree torch.utils.data
    transformers transformers.models.auto.modeling_auto transformers.models.auto.tokenization_auto
    transformers.models.llama.modeling_llama transformers.models.mistral.modeling_mistral
    transformers.models.qwen2.modeling_qwen2 transformers.models.qwen3.modeling_qwen3
    transformers.models.llama.tokenization_llama transformers.models.llama.tokenization_llama_fast
    transformers.generation.utils transformers.tokenization_utils_fast transformers.data.data_collator
    composer composer.algorithms composer.callbacks composer.loggers composer.metrics composer.models composer.optim
    composer.utils.parallelism composer.trainer.trainer composer.cli.launcher
    streaming streaming.base.dataset streaming.base.world streaming.base.shared
    omegaconf numpy pyarrow pyarrow.json pyarrow.parquet safetensors.torch sentencepiece tokenizers
    matplotlib matplotlib.figure matplotlib.ticker matplotlib.patches matplotlib.backends.backend_agg
    matplotlib.backends.backend_svg
    multiprocessing.managers multiprocessing.resource_tracker multiprocessing.shared_memory multiprocessing.pool
    multiprocessing.sharedctypes concurrent.futures.process filelock psutil tqdm
""".split()  # noqa: SIM905


def serve() -> dict[str, Any]:
    """Fork a child per connection, until stdin ends. Returns in the children only, with what was asked of them."""
    _default_handlers()  # nohup, and a shell for its background jobs, have them ignored
    for name in PRELOADED:
        importlib.import_module(name)
    # Composer imports every causal LM there is, to tell whether a model is one.
    list(importlib.import_module("transformers.models.auto.modeling_auto").MODEL_FOR_CAUSAL_LM_MAPPING.values())
    threads = {path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")}
    threads.discard("jemalloc_bg_thd")  # pyarrow's, which starts anew in a child
    assert len(threads) == 1, f"a fork would lose all but one of the threads {threads}"
    gc.collect()
    gc.freeze()  # or a child's first collection would copy every page
    woken, waker = socket.socketpair()
    waker.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
    children: dict[int, socket.socket] = {}
    with socket.socket(socket.AF_UNIX) as listener, selectors.DefaultSelector() as selector:
        listener.bind(sys.argv[1])
        listener.listen()
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        for source in (sys.stdin, listener, woken):
            selector.register(source, selectors.EVENT_READ)
        while True:
            ready = [key.fileobj for key, _ in selector.select()]
            if woken in ready:
                woken.recv(4096)
                _reap(children)
            if sys.stdin in ready:  # its other end is gone
                for pid in children:
                    os.killpg(pid, signal.SIGKILL)
                os._exit(0)
            if listener in ready:
                connection, _ = listener.accept()
                with connection.makefile("r") as stream:
                    request: dict[str, Any] = json.loads(stream.readline())
                pid = os.fork()
                if pid == 0:
                    break
                children[pid] = connection
    signal.set_wakeup_fd(-1)
    _become(request)
    connection.sendall(b"%d\n" % os.getpid())
    for end in (connection, woken, waker, *children.values()):
        end.close()
    return request


def _reap(children: dict[int, socket.socket]) -> None:
    while children:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        with children.pop(pid) as connection:
            try:
                connection.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
            except OSError:
                continue  # nobody waits for it any more


def _default_handlers() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def _become(request: dict[str, Any]) -> None:
    """Take over what a new process has of its own, and what Python and libraries read when they start."""
    import numpy
    import torch
    from composer.utils import checkpoint

    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if (
        "RANK" not in request["env"] and "llmshearing.train" not in request["arguments"]
    ):  # Composer, imported, sets them
        _default_handlers()
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    for number, path in enumerate((os.devnull, request["stdout"], request["stderr"])):
        opened = os.open(path, flags if number else os.O_RDONLY, 0o666)
        os.dup2(opened, number)
        os.close(opened)
    environment: dict[str, str] = request["env"]
    os.environ.clear()
    os.environ.update(environment)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(write_through=bool(environment.get("PYTHONUNBUFFERED")))  # type: ignore[attr-defined]
    os.chdir(request["cwd"])
    for name, value in request["limits"].items():
        resource.setrlimit(getattr(resource, name), (value, value))
    tempfile.tempdir = None
    checkpoint._TORCH_DISTRIBUTED_CHECKPOINTS_FILENAME = f"__{environment.get('RANK', 0)}_0.distcp"
    numpy.random.seed()
    torch.default_generator.seed()
    if threads := environment.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(threads))
    sys.warnoptions[:] = [option for option in environment.get("PYTHONWARNINGS", "").split(",") if option]
    warnings._processoptions(sys.warnoptions)  # type: ignore[attr-defined]
    sys.path[:0] = [folder for folder in environment.get("PYTHONPATH", "").split(os.pathsep) if folder]
    importlib.invalidate_caches()
    for name in ("forkserver", "sitecustomize"):
        sys.modules.pop(name, None)


def run(arguments: list[str]) -> None:
    """What ``python ARGUMENTS`` does: ``-m MODULE ...``, ``-c CODE ...`` or ``SCRIPT ...``."""
    main = types.ModuleType("__main__")
    main.__dict__.update(__builtins__=__builtins__, __spec__=None)
    sys.modules["__main__"] = main
    first, *rest = arguments
    if first == "-m":
        sys.path.insert(0, os.getcwd())
        sys.argv[:] = ["-m", *rest[1:]]
        runpy._run_module_as_main(rest[0])  # type: ignore[attr-defined]
    elif first == "-c":
        sys.path.insert(0, "")
        sys.argv[:] = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), main.__dict__)
    else:
        sys.path.insert(0, os.path.dirname(os.path.realpath(first)))
        sys.argv[:] = arguments
        main.__file__ = first
        with open(first, "rb") as script:
            exec(compile(script.read(), first, "exec"), main.__dict__)


def _exit_code(arguments: list[str]) -> int:
    try:
        run(arguments)
    except SystemExit as error:
        if error.code is None or isinstance(error.code, int):
            return error.code or 0
        sys.stderr.write(f"{error.code}\n")
        return 1
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        return -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    return 0


def _end(code: int) -> None:
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.modules["__main__"].__dict__.clear()
    gc.collect()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    if code == -signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(code & 0xFF)


if __name__ == "__main__":
    del sys.path[0]  # this folder
    _end(_exit_code(serve()["arguments"]))
