"""Which checkpoint a run starts from, what it removes, and what it refuses to read."""

from __future__ import annotations

import multiprocessing
import os
import re
import shutil
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dist_cp

from llmshearing.errors import InputError
from llmshearing.resume import find_start
from llmshearing.run_folder import claim, folder_problem
from llmshearing.unfinished import newest_checkpoint
from tests.convert.checkpoints import sharded
from tests.models import make_model
from tests.training import make_trainer

FORK = multiprocessing.get_context("fork")
FIRST, SECOND = "ep0-ba2-rank0.pt", "ep0-ba4-rank0.pt"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoints of a run of 4 batches of 8 sequences."""
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    make_trainer(folder=folder, duration="4ba", save_interval="2ba").fit()
    return folder


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    return shutil.copytree(written, tmp_path / "run" / "checkpoints", symlinks=True)


@pytest.fixture(scope="module")
def shapes() -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in make_model("llama3").state_dict().items()}


def recipe(folder: Path, **changes: Any) -> dict[str, Any]:
    """What ``written`` was trained with, as far as a start asks."""
    optimizer = {"name": "decoupled_adamw", "lr": 1e-2, "betas": [0.9, 0.95], "weight_decay": 1e-5}
    return {
        "save_folder": str(folder),
        "save_overwrite": False,
        "autoresume": True,
        "load_path": None,
        "load_weights_only": False,
        "max_duration": "12ba",
        "global_train_batch_size": 8,
        "seed": 7,
        "optimizer": optimizer,
        "train_loader": {},
        "fsdp_config": None,
        **changes,
    }


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def no_link(folder: Path) -> None:
    (folder / "latest-rank0.pt").unlink()


def dangling(folder: Path) -> None:
    no_link(folder)
    (folder / "latest-rank0.pt").symlink_to("ep0-ba6-rank0.pt")


def unfinished_newer(folder: Path) -> None:
    (folder / "ep0-ba6-rank0.pt").write_bytes(b"cut off")


@pytest.mark.parametrize(
    ("harm", "expected"),
    [
        (lambda folder: None, SECOND),
        (unfinished_newer, SECOND),
        (no_link, SECOND),
        (dangling, SECOND),
        (lambda folder: cut(folder / SECOND), FIRST),
        (lambda folder: (cut(folder / SECOND), no_link(folder)), FIRST),
        (lambda folder: [cut(folder / name) for name in (FIRST, SECOND)], None),
    ],
)
def test_a_run_goes_on_from_its_newest_whole_checkpoint(
    harm: Callable[[Path], Any], expected: str | None, folder: Path
) -> None:
    harm(folder)
    found = newest_checkpoint(folder)
    assert found == (None if expected is None else folder / expected)
    whole = {FIRST, SECOND} if expected == SECOND else {expected} - {None}
    assert {path.name for path in folder.iterdir()} == whole | ({"latest-rank0.pt"} if expected else set())
    if expected is not None:
        assert os.readlink(folder / "latest-rank0.pt") == expected
    assert newest_checkpoint(folder) == found


def write_sharded(path: Path, **state: Any) -> None:
    content = {"state": {"model": {"model.weight": torch.ones(4, 2)}, **state}}
    dist_cp.save(content, storage_writer=dist_cp.FileSystemWriter(path), no_dist=True)


def test_a_sharded_run_goes_on_from_its_newest_whole_folder(tmp_path: Path) -> None:
    for batch in (2, 4, 6):
        write_sharded(tmp_path / f"ep0-ba{batch}")
    (tmp_path / "latest-rank0.pt").symlink_to("ep0-ba6")
    (tmp_path / "ep0-ba6" / ".metadata").unlink()  # killed while it wrote
    cut(tmp_path / "ep0-ba4" / "__0_0.distcp")  # damaged when it was whole
    assert newest_checkpoint(tmp_path) == tmp_path / "ep0-ba2"
    assert os.readlink(tmp_path / "latest-rank0.pt") == "ep0-ba2"
    left = sorted(path.name for path in tmp_path.iterdir())
    assert len(left) == 3
    assert left[0].startswith("damaged-")
    assert left[0].endswith("-ep0-ba4")


def test_a_sharded_checkpoint_without_the_files_of_another_node_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    for batch in (2, 4):
        write_sharded(tmp_path / f"ep0-ba{batch}")
    (tmp_path / "ep0-ba4" / "__0_0.distcp").unlink()
    with pytest.raises(InputError, match="ep0-ba4' lacks its file '__0_0.distcp'.*the files of all nodes into one"):
        newest_checkpoint(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ep0-ba2", "ep0-ba4"]


@pytest.mark.parametrize("held", [False, True])
def test_a_run_that_goes_on_from_a_sharded_checkpoint_saves_what_that_one_has(
    written: Path, shapes: dict[str, tuple[int, ...]], tmp_path: Path, held: bool
) -> None:
    """Loading asks a sharded checkpoint for all that the run itself would save."""

    def put(content: dict[str, Any]) -> None:
        if held:
            model = content["state"]["integrations"]["huggingface"]["model"]
            model["generation_config"] = {"file_extension": ".json", "content": "{}"}
            content["state"]["callbacks"]["DynamicBatchLoading"] = {"history": "{}"}

    sharded(written / SECOND, tmp_path / "ep0-ba4", put)
    (tmp_path / "latest-rank0.pt").symlink_to("ep0-ba4")
    start = find_start(recipe(tmp_path, fsdp_config={"state_dict_type": "sharded"}), shapes)
    assert (start.path, start.saves_generation, start.has_history) == (str(tmp_path / "ep0-ba4"), held, held)
    whole = find_start(recipe(written), shapes)  # of one file nothing is asked
    assert (whole.saves_generation, whole.has_history) == (True, True)


def test_a_sharded_checkpoint_of_before_sub_streams_goes_on_only_without_them(
    written: Path, shapes: dict[str, tuple[int, ...]], tmp_path: Path
) -> None:
    def put(content: dict[str, Any]) -> None:
        content["state"]["dataset_state"] = {"train": {"domains": ["a"], "samples_used": [32]}}

    sharded(written / SECOND, tmp_path / "ep0-ba4", put)
    (tmp_path / "latest-rank0.pt").symlink_to("ep0-ba4")
    settings = {"fsdp_config": {"state_dict_type": "sharded"}}
    with pytest.raises(InputError, match=r"train_loader\.dataset\.sub_streams is not 1, as it was"):
        find_start(recipe(tmp_path, **settings), shapes)
    settings["train_loader"] = {"dataset": {"sub_streams": 1}}
    assert find_start(recipe(tmp_path, **settings), shapes).path == str(tmp_path / "ep0-ba4")


def clean(folder: Path, barrier: Barrier, results: Any) -> None:
    barrier.wait()
    try:
        results.put(str(newest_checkpoint(folder)))
    except BaseException as error:
        results.put(repr(error))


def test_two_processes_may_clean_one_folder_at_once(tmp_path: Path) -> None:
    for trial in range(10):
        folder = tmp_path / str(trial)
        write_sharded(folder / "ep0-ba100")
        (folder / "latest-rank0.pt").symlink_to("ep0-ba100")
        (folder / "ep0-ba200").mkdir()
        for rank in range(64):
            (folder / "ep0-ba200" / f"__{rank}_0.distcp").write_bytes(b"x")
        barrier, results = FORK.Barrier(2), FORK.Queue()
        processes = [FORK.Process(target=clean, args=(folder, barrier, results)) for _ in range(2)]
        for process in processes:
            process.start()
        assert {results.get(timeout=60) for _ in processes} == {str(folder / "ep0-ba100")}
        for process in processes:
            process.join()
        assert sorted(path.name for path in folder.iterdir()) == ["ep0-ba100", "latest-rank0.pt"]


def test_a_start_is_told(folder: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    assert find_start(recipe(folder / "new"), shapes).path is None
    assert find_start(recipe(folder), shapes).path == str(folder / SECOND)
    assert not find_start(recipe(folder), shapes).finished
    for end in ("4ba", "3ba", "32sp", "512tok"):
        assert find_start(recipe(folder, max_duration=end), shapes).finished
    given = recipe(folder / "new", autoresume=False, load_path=str(folder / FIRST))
    assert find_start(given, shapes).path == str(folder / FIRST)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"autoresume": False}, f"holds '{SECOND}' of another run. Set autoresume=true to go on with that"),
        ({"autoresume": False, "load_path": FIRST}, f"holds '{SECOND}' of another run"),
        ({"load_path": SECOND, "max_duration": "4ba", "save_folder": "new"}, "at 4ba and max_duration is '4ba'"),
        ({"load_path": "nowhere", "save_folder": "new"}, "There is no checkpoint"),
        ({"seed": 8}, "cannot go on with this recipe.*\n  - seed is 8, but it was 7"),
        ({"global_train_batch_size": 16}, "size is 16, but its 4 batches had 32 sequences: 8 each"),
        ({"optimizer": {"name": "adamw"}}, "optimizer.name is 'adamw', but it was another"),
        ({"optimizer": {"name": "decoupled_adamw", "lr": 0.1}}, "optimizer.lr is 0.1, but it was 0.01"),
        (
            {"optimizer": {"name": "decoupled_adamw", "betas": [0.5, 0.6], "weight_decay": 0.1}},
            r"betas is \[0.5, 0.6\], but it was \[0.9, 0.95\]\n  - optimizer.weight_decay is 0.1, but it was 1e-05",
        ),
        ({"fsdp_config": {}}, "is one file, but this run's are a folder, sharded: .*state_dict_type to full"),
    ],
)  # fmt: skip
def test_what_would_be_ignored_or_written_over_is_refused(
    changes: dict[str, Any], message: str, folder: Path, shapes: dict[str, tuple[int, ...]], monkeypatch: Any
) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(InputError, match=message):
        find_start(recipe(folder, **changes), shapes)
    assert find_start(recipe(folder), shapes).path == str(folder / SECOND)  # nothing was removed


def test_weights_alone_may_come_from_any_run(folder: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    settings = recipe(
        folder / "new", load_path=str(folder / SECOND), load_weights_only=True, seed=8, max_duration="1ba"
    )
    start = find_start(settings, shapes)
    assert (start.path, start.finished) == (str(folder / SECOND), False)


@pytest.mark.parametrize(
    ("shapes_of", "message"),
    [
        (lambda shapes: {"w": (3,)}, "0 of the model's 1 tensors are in .*; 1 are missing, 0 have another shape, "),
        (lambda shapes: {**shapes, "w": (3,)}, r"1 are missing, 0 have another shape, 0 are foreign \(such as 'w'\)"),
        (lambda shapes: {**shapes, next(iter(shapes)): (3,)}, "0 are missing, 1 have another shape"),
        (lambda shapes: dict(list(shapes.items())[1:]), "0 are missing, 0 have another shape, 1 are foreign"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(
    shapes_of: Callable[..., Any], message: str, folder: Path, shapes: dict[str, tuple[int, ...]]
) -> None:
    with pytest.raises(InputError, match=message):
        find_start(recipe(folder), shapes_of(shapes))


class Evil:
    """Makes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (str(self.path), "w")


def test_a_checkpoint_runs_no_code(folder: Path, shapes: dict[str, tuple[int, ...]], tmp_path: Path) -> None:
    state = torch.load(folder / SECOND, weights_only=False)
    mark = tmp_path / "ran"
    state["state"]["callbacks"]["Evil"] = Evil(mark)
    torch.save(state, folder / SECOND)
    with pytest.raises(InputError, match="open, which could run code when read"):
        find_start(recipe(folder), shapes)
    given = recipe(folder / "new", load_path=str(folder / SECOND), load_weights_only=True)
    with pytest.raises(InputError, match="could run code when read"):
        find_start(given, shapes)
    assert not mark.exists()
    assert (folder / SECOND).exists()  # it is for the user to judge


def test_a_sharded_checkpoint_runs_no_code(tmp_path: Path) -> None:
    write_sharded(tmp_path / "run" / "ep0-ba2", callbacks={"evil": Evil(tmp_path / "ran")})
    with pytest.raises(InputError, match="could run code when read"):
        find_start(recipe(tmp_path / "run", fsdp_config={}), {"weight": (4, 2)})
    assert not (tmp_path / "ran").exists()


def test_an_algorithm_that_composer_would_evaluate_is_refused(folder: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    state = torch.load(folder / SECOND, weights_only=False)
    state["state"]["algorithms"].append(("Alibi", {"repr": "Alibi(print('ran'))"}))
    torch.save(state, folder / SECOND)
    with pytest.raises(InputError, match="written with the algorithm 'Alibi', which no recipe has"):
        find_start(recipe(folder), shapes)


def hold(run: Path, ready: Any) -> None:
    claim(run)
    FORK.Process(target=ready.wait, args=(60,)).start()  # a worker that outlives its run
    ready.wait(60)
    ready.wait(60)


def test_a_run_folder_belongs_to_one_process_until_that_ends(tmp_path: Path) -> None:
    ready = FORK.Barrier(3)
    holder = FORK.Process(target=hold, args=(tmp_path / "run", ready))
    holder.start()
    ready.wait(60)
    with pytest.raises(InputError, match=rf"in use by process {holder.pid} on .*, which trains there. Wait for it"):
        claim(tmp_path / "run")
    holder.kill()
    holder.join()
    claim(tmp_path / "run")
    claim(tmp_path / "run")


@pytest.mark.parametrize(
    ("save_folder", "problem"),
    [
        ("file/checkpoints", "'.*/file' is a file: choose another, or move that away"),
        ("file", "is a file"),
        ("s3://bucket/run", "give it two folders in the bucket at least"),
        ("{run_name}/checkpoints", r"write values of the recipe as \$\{run_name\}"),
        ("x" * 300, "File name too long"),
    ],
)
def test_a_run_folder_that_cannot_be_is_named(
    save_folder: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    found = folder_problem(save_folder)
    assert found is not None
    assert re.search(problem, found), found
    assert folder_problem("new/checkpoints") is None
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
