"""What nodes agree on before training; two processes of one group that believe to be nodes, in folders of their own."""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llmshearing import nodes
from llmshearing.errors import LostError
from tests.conftest import REPOSITORY
from tests.forkserver import ForkServer

SAVE = Path("run/checkpoints")
NEWEST = SAVE / "ep0-ba4-rank0.pt"
SHARDED = {"folder": str(SAVE), "sharded": True, "autoresume": True}


Run = Callable[..., list[Any]]


@pytest.fixture
def on_nodes(forked: ForkServer, folders: tuple[Path, Path], tmp_path: Path) -> Run:
    """``on_nodes(task, **arguments)``: what a task of ``node_process.py`` gives on each of two nodes."""

    def run(task: str, *, shared: bool = False, **arguments: Any) -> list[Any]:
        store = tmp_path / f"store-{secrets.token_hex(4)}"
        started, results = [], []
        for rank, folder in enumerate(folders):
            names = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1, "NODE_RANK": rank}
            results.append(Path(f"{store}-{rank}.result"))
            job = {
                "rank": rank,
                "store": str(store),
                "task": task,
                "arguments": arguments,
                "result": str(results[rank]),
            }
            path = tmp_path / f"{store.name}-{rank}.json"
            path.write_text(json.dumps(job))
            environ = os.environ | {name: str(value) for name, value in names.items()} | {"PYTHONPATH": str(REPOSITORY)}
            command = [sys.executable, "-m", "tests.nodes.node_process", path]
            started.append(forked.start(command, cwd=folders[0] if shared else folder, env=environ))
        for process in started:
            assert process.wait(60) == 0, process.read()[1]
        return [json.loads(result.read_text()) for result in results]

    return run


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two disks, with the same paths on them as far as they are relative."""
    made = tmp_path / "0", tmp_path / "1"
    for folder in made:
        (folder / "run").mkdir(parents=True)
    return made


def recipe(**changed: Any) -> dict[str, Any]:
    dataset = {"local": "data/train", "proportions": {"web": 1.0}}
    return {"seed": 1, "variables": {"cache": 0}, "train_loader": {"dataset": dataset}, "eval_loader": None, **changed}


def test_nodes_with_the_same_recipe_and_files_go_on(folders: tuple[Path, Path], on_nodes: Run) -> None:
    for folder in folders:
        (folder / "data" / "train" / "web").mkdir(parents=True)
        (folder / "data" / "train" / "web" / "index.json").write_text("{}")
    assert on_nodes("alike", recipes=[recipe(), recipe(variables={"cache": 1})]) == [None, None]


def test_caches_may_lie_in_other_places(on_nodes: Run) -> None:
    caches = [{"dataset": {"local": f"cache{rank}", "remote": "data"}} for rank in (0, 1)]
    assert on_nodes("alike", recipes=[recipe(train_loader=cache) for cache in caches]) == [None, None]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"seed": 2}, "The recipe's seed is 2 on node 1 ('"),
        ({"eval_loader": [{"label": "web"}]}, "The recipe's eval_loader"),
    ],
)
def test_another_recipe_is_named_on_both_nodes(change: dict[str, Any], expected: str, on_nodes: Run) -> None:
    found = on_nodes("alike", recipes=[recipe(), recipe(**change)])
    assert found[0] == found[1]
    assert found[0].startswith(f"refused: {expected}")
    assert "Give all nodes the same" in found[0]


def test_data_that_one_node_lacks_or_has_otherwise_is_named(folders: tuple[Path, Path], on_nodes: Run) -> None:
    recipes = [recipe(), recipe()]
    (folders[0] / "data" / "train" / "web").mkdir(parents=True)
    (folders[0] / "data" / "train" / "web" / "index.json").write_text("{}")
    found = on_nodes("alike", recipes=recipes)
    assert "'data/train' (train_loader.dataset.local) is not there on node 1" in found[1]
    (folders[1] / "data" / "train" / "web").mkdir(parents=True)
    (folders[1] / "data" / "train" / "web" / "index.json").write_text("[]")
    assert "'data/train' (train_loader.dataset.local) is of digest" in on_nodes("alike", recipes=recipes)[0]


def test_other_versions_are_named(on_nodes: Run) -> None:
    found = on_nodes("alike_but_for_versions", recipe=recipe())
    assert found[0] == found[1]
    assert "The version of llmshearing is llmshearing of 1 on node 1" in found[0]


def test_what_one_node_refuses_all_refuse(on_nodes: Run) -> None:
    found = on_nodes("refuse", by=1)
    assert found[0] == found[1]
    assert found[0].startswith("refused: On node 1 ('")
    assert found[0].endswith("'): The disk is gone.")


def test_problems_are_those_of_all_nodes(on_nodes: Run) -> None:
    found = on_nodes("problems", problems=[["b"], ["a", "b"]])
    assert found[0] == found[1]
    assert found[0][0] == "b"
    assert found[0][1].startswith("On node 1 ('")
    assert found[0][1].endswith("'): a")
    assert on_nodes("problems", problems=[[], []]) == [[], []]


def test_on_a_shared_disk_any_checkpoint_is_whole(folders: tuple[Path, Path], on_nodes: Run) -> None:
    assert on_nodes("disks", **SHARDED, shared=True) == [None, None]
    assert [path.name for path in folders[0].rglob(".*")] == []


def test_sharded_checkpoints_on_disks_of_their_own_are_refused(on_nodes: Run) -> None:
    found = on_nodes("disks", **SHARDED)
    assert found[0] == found[1]
    assert "save_folder 'run/checkpoints' is on another disk on node 1" in found[0]
    assert "fsdp_config.state_dict_type to full" in found[0]


def test_a_checkpoint_that_only_another_node_has_is_not_passed_over(folders: tuple[Path, Path], on_nodes: Run) -> None:
    whole = SHARDED | {"sharded": False}
    (folders[1] / NEWEST).parent.mkdir()
    (folders[1] / NEWEST).touch()
    assert "is that of batch 4 on node 1" in on_nodes("disks", **whole)[0]
    assert on_nodes("disks", **whole | {"autoresume": False}) == [None, None]
    (folders[0] / NEWEST).parent.mkdir()
    (folders[0] / NEWEST).touch()
    assert on_nodes("disks", **whole) == [None, None]


def test_every_node_needs_the_checkpoint_that_the_run_goes_on_from(folders: tuple[Path, Path], on_nodes: Run) -> None:
    def copies() -> list[Any]:
        return on_nodes("copies", path=str(NEWEST))

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
