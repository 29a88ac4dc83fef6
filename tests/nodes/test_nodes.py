"""What nodes agree on before training; two processes of one group that believe to be nodes, in folders of their own."""

from __future__ import annotations

import multiprocessing
import os
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed

from llmshearing import environment, nodes
from llmshearing.errors import InputError, LostError
from llmshearing.together import problems_of_all, together

SAVE = Path("run/checkpoints")
NEWEST = SAVE / "ep0-ba4-rank0.pt"


def _node(rank: int, folder: Path, store: Path, task: Callable[[int], Any], results: Any) -> None:
    os.chdir(folder)
    names = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1, "NODE_RANK": rank}
    os.environ.update({name: str(value) for name, value in names.items()})
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    try:
        found = task(rank)
    except InputError as error:
        found = f"refused: {error}"
    results.put((rank, found))
    distributed.barrier()


def on_nodes(folders: Sequence[Path], task: Callable[[int], Any]) -> list[Any]:
    """What ``task(rank)`` gives on each of two nodes."""
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    store = folders[0].parent / f"store-{secrets.token_hex(4)}"
    processes = [
        context.Process(target=_node, args=(rank, folder, store, task, results)) for rank, folder in enumerate(folders)
    ]
    for process in processes:
        process.start()
    found = dict(results.get(timeout=60) for _ in processes)
    for process in processes:
        process.join(60)
    return [found[0], found[1]]


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Two disks, with the same paths on them as far as they are relative."""
    monkeypatch.setattr(nodes, "_APPEARS", 0.3)
    made = tmp_path / "0", tmp_path / "1"
    for folder in made:
        (folder / "run").mkdir(parents=True)
    return made


def recipe(**changed: Any) -> dict[str, Any]:
    dataset = {"local": "data/train", "proportions": {"web": 1.0}}
    return {"seed": 1, "variables": {"cache": 0}, "train_loader": {"dataset": dataset}, "eval_loader": None, **changed}


def alike(folders: Sequence[Path], *recipes: dict[str, Any]) -> list[Any]:
    return on_nodes(folders, lambda rank: nodes.check_alike(recipes[rank]))


def test_nodes_with_the_same_recipe_and_files_go_on(folders: tuple[Path, Path]) -> None:
    for folder in folders:
        (folder / "data" / "train" / "web").mkdir(parents=True)
        (folder / "data" / "train" / "web" / "index.json").write_text("{}")
    assert alike(folders, recipe(), recipe(variables={"cache": 1})) == [None, None]


def test_caches_may_lie_in_other_places(folders: tuple[Path, Path]) -> None:
    caches = [{"dataset": {"local": f"cache{rank}", "remote": "data"}} for rank in (0, 1)]
    assert alike(folders, *(recipe(train_loader=cache) for cache in caches)) == [None, None]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"seed": 2}, "The recipe's seed is 2 on node 1 ('"),
        ({"eval_loader": [{"label": "web"}]}, "The recipe's eval_loader"),
    ],
)
def test_another_recipe_is_named_on_both_nodes(
    change: dict[str, Any], expected: str, folders: tuple[Path, Path]
) -> None:
    found = alike(folders, recipe(), recipe(**change))
    assert found[0] == found[1]
    assert found[0].startswith(f"refused: {expected}")
    assert "Give all nodes the same" in found[0]


def test_data_that_one_node_lacks_or_has_otherwise_is_named(folders: tuple[Path, Path]) -> None:
    (folders[0] / "data" / "train" / "web").mkdir(parents=True)
    (folders[0] / "data" / "train" / "web" / "index.json").write_text("{}")
    assert "'data/train' (train_loader.dataset.local) is not there on node 1" in alike(folders, recipe(), recipe())[1]
    (folders[1] / "data" / "train" / "web").mkdir(parents=True)
    (folders[1] / "data" / "train" / "web" / "index.json").write_text("[]")
    assert "'data/train' (train_loader.dataset.local) is of digest" in alike(folders, recipe(), recipe())[0]


def test_other_versions_are_named(folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "version", lambda package: f"{package} of {Path.cwd().name}")
    monkeypatch.setattr(nodes, "versions", environment.versions)
    found = alike(folders, recipe(), recipe())
    assert found[0] == found[1]
    assert "The version of llmshearing is llmshearing of 1 on node 1" in found[0]


def test_what_one_node_refuses_all_refuse(folders: tuple[Path, Path]) -> None:
    def refuse(rank: int) -> None:
        with together():
            if rank == 1:
                raise InputError("The disk is gone.")

    found = on_nodes(folders, refuse)
    assert found[0] == found[1]
    assert found[0].startswith("refused: On node 1 ('")
    assert found[0].endswith("'): The disk is gone.")


def test_problems_are_those_of_all_nodes(folders: tuple[Path, Path]) -> None:
    found = on_nodes(folders, lambda rank: problems_of_all(["a", "b"] if rank else ["b"]))
    assert found[0] == found[1]
    assert found[0][0] == "b"
    assert found[0][1].startswith("On node 1 ('")
    assert found[0][1].endswith("'): a")
    assert on_nodes(folders, lambda rank: problems_of_all([])) == [[], []]


def disks(folders: Sequence[Path], *, sharded: bool = False, autoresume: bool = True) -> list[Any]:
    return on_nodes(folders, lambda rank: nodes.check_disks(SAVE, sharded=sharded, autoresume=autoresume))


def test_on_a_shared_disk_any_checkpoint_is_whole(folders: tuple[Path, Path]) -> None:
    assert disks([folders[0], folders[0]], sharded=True) == [None, None]
    assert [path.name for path in folders[0].rglob(".*")] == []


def test_sharded_checkpoints_on_disks_of_their_own_are_refused(folders: tuple[Path, Path]) -> None:
    found = disks(folders, sharded=True)
    assert found[0] == found[1]
    assert "save_folder 'run/checkpoints' is on another disk on node 1" in found[0]
    assert "fsdp_config.state_dict_type to full" in found[0]


def test_a_checkpoint_that_only_another_node_has_is_not_passed_over(folders: tuple[Path, Path]) -> None:
    (folders[1] / NEWEST).parent.mkdir()
    (folders[1] / NEWEST).touch()
    assert "is that of batch 4 on node 1" in disks(folders)[0]
    assert disks(folders, autoresume=False) == [None, None]
    (folders[0] / NEWEST).parent.mkdir()
    (folders[0] / NEWEST).touch()
    assert disks(folders) == [None, None]


def test_every_node_needs_the_checkpoint_that_the_run_goes_on_from(folders: tuple[Path, Path]) -> None:
    def copies() -> list[Any]:
        return on_nodes(folders, lambda rank: nodes.check_copies(str(NEWEST)))

    (folders[0] / NEWEST).parent.mkdir()
    torch.save(torch.ones(3), folders[0] / NEWEST)
    assert "which is not there on node 1" in copies()[0]
    (folders[1] / NEWEST).parent.mkdir()
    torch.save(torch.zeros(3), folders[1] / NEWEST)
    assert "which is another one on node 1" in copies()[1]
    torch.save(torch.ones(3), folders[1] / NEWEST)
    assert copies() == [None, None]


def test_only_errors_of_the_network_are_called_a_lost_node(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(message: str) -> None:
        with nodes.lost_contact():
            raise RuntimeError(message)

    closed = "[pair.cc:534] gloo: Connection closed by peer [10.0.0.2]:38571"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    monkeypatch.setenv("WORLD_SIZE", "1")
    with pytest.raises(RuntimeError, match="closed by peer") as alone:
        fail(closed)
    assert not isinstance(alone.value, LostError)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(LostError, match="has lost the processes of another node"):
        fail(closed)
    with pytest.raises(RuntimeError, match="out of memory") as other:
        fail("CUDA out of memory")
    assert not isinstance(other.value, LostError)


def test_the_network_to_the_first_node_is_chosen_unless_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "ib0")
    nodes.choose_interface()
    assert os.environ["GLOO_SOCKET_IFNAME"] == "ib0"
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    nodes.choose_interface()
    assert os.environ["GLOO_SOCKET_IFNAME"] == "lo"
