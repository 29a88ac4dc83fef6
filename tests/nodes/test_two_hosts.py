"""Runs over two hosts: the numbers of one host, whatever is lost on the way, and refusals that name the node."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from llmshearing.convert.commands import shear
from tests.conftest import REPOSITORY
from tests.data.launch import wait_until
from tests.dry_runs import make_debug_data
from tests.faults.campaign import compare
from tests.faults.scenarios import leaves, metrics
from tests.forkserver import ForkServer
from tests.nodes.hosts import Host, NotAllowed, two_hosts

pytestmark = [pytest.mark.dist, pytest.mark.slow]

COMPOSER = Path(sys.executable).with_name("composer")
LOST = 20  # seconds until a node that says nothing is given up
PASSING = ("_wct", ".time", ".repr")
SETTINGS = {
    "max_duration": "8ba",
    "save_interval": "2ba",
    "eval_interval": "4ba",
    "save_num_checkpoints_to_keep": -1,
    "save_overwrite": False,
    "autoresume": True,
    "dist_timeout": LOST,
    "progress_bar": False,
}


class Work:
    """A folder with data and recipes, which all hosts share."""

    def __init__(self, folder: Path) -> None:
        self.folder = make_debug_data(folder)
        self.recipe = yaml.safe_load((REPOSITORY / "yamls" / "debug" / "prune.yaml").read_text())
        self.recipe["variables"]["data"] = str(folder / "runs" / "debug" / "data")
        self.recipe["tokenizer"]["name"] = str(folder / "runs" / "debug" / "tokenizer")
        self.recipe["train_loader"]["dataset"]["update_interval"] = 4
        self.recipe["algorithms"]["targeted_pruning"]["warmup"] = "2ba"
        self.recipe |= SETTINGS

    def write(self, name: str, run: Path, **changed: Any) -> list[str]:
        """Write a recipe; what a launcher runs with it."""
        recipe = {**self.recipe, **changed, "variables": {**self.recipe["variables"], "run": str(run)}}
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(recipe))
        return ["-m", "llmshearing.train", str(path)]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    return Work(tmp_path_factory.mktemp("nodes"))


@pytest.fixture(scope="module")
def pruned(work: Work, forked: ForkServer) -> Path:
    """A pruning run of two ranks on one host that nobody has disturbed."""
    run = work.folder / "whole"
    forked.run([COMPOSER, "-n", "2", *work.write("whole", run)], cwd=REPOSITORY, check=True)
    return run


@pytest.fixture
def hosts(work: Work) -> Iterator[tuple[Host, Host]]:
    try:
        with two_hosts(work.folder) as made:
            yield made
    except NotAllowed as error:
        pytest.skip(f"no network namespaces here: {error}")


def launch(hosts: Sequence[Host], command: Sequence[str], *, ranks: int = 1) -> list[subprocess.Popen[bytes]]:
    """The command on all hosts, by the launcher that people use."""
    world = ["--nproc", str(ranks), "--world_size", str(ranks * len(hosts)), "--master_addr", hosts[0].address]
    return [
        host.start([str(COMPOSER), *world, "--master_port", "29500", "--node_rank", str(host.number), *command])
        for host in hosts
    ]


def finish(hosts: Sequence[Host], processes: Sequence[subprocess.Popen[bytes]]) -> list[int]:
    """The exit codes of a command that must end by itself."""
    deadline = time.monotonic() + 240
    for host, process in zip(hosts, processes, strict=True):
        try:
            process.wait(max(1.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise AssertionError(f"host {host.number} still runs:\n{host.log.read_text()}") from None
    return [process.returncode for process in processes]


def succeed(hosts: Sequence[Host], processes: Sequence[subprocess.Popen[bytes]]) -> None:
    codes = finish(hosts, processes)
    assert codes == [0] * len(hosts), "\n".join(host.log.read_text()[-3000:] for host in hosts)


def result(run: Path, scratch: Path) -> dict[str, Any]:
    """Losses, and all that the last checkpoint holds, bit by bit, without what clocks say."""
    latest = run / "checkpoints" / "latest-rank0.pt"
    if latest.is_dir():
        dcp_to_torch_save(latest.resolve(), scratch)
    state = torch.load(scratch if latest.is_dir() else latest, weights_only=False)["state"]
    found = metrics(run / "metrics.jsonl")
    for part in ("model", "optimizers", "schedulers", "algorithms", "dataset_state", "callbacks"):
        found |= {f"{part}{name}": value for name, value in leaves(state.get(part)) if not name.endswith(PASSING)}
    return {name: value for name, value in found.items() if "all_saved_checkpoints" not in name}  # their paths


def slurm(hosts: Sequence[Host], folder: Path, script: list[str]) -> subprocess.Popen[bytes]:
    """``launch/slurm.sbatch`` as Slurm runs it: a step on each host, and a controller that notes what it is told."""
    folder.mkdir()
    steps = "".join(
        f'SLURM_NODEID={host.number} {" ".join(host.enter())} "$@" >{host.log} 2>&1 &\np{host.number}=$!\n'
        for host in hosts
    )
    stand_ins = {
        "srun": f"shift\n{steps}wait $p0; a=$?\nwait $p1; b=$?\nexit $((a > b ? a : b))\n",
        "scontrol": f'echo "$@" >>{folder}/told\n[ "$1" = requeue ] || echo {hosts[0].address}\n',
    }
    for name, text in stand_ins.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}")
        (folder / name).chmod(stat.S_IRWXU)
    given = {"SLURM_JOB_ID": "12345", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "node[0-1]"}
    path = f"{folder}:{COMPOSER.parent}:{os.environ['PATH']}"
    return subprocess.Popen(
        ["bash", str(REPOSITORY / "launch" / "slurm.sbatch"), *script],
        cwd=REPOSITORY,
        env={**os.environ, **hosts[0].environment, **given, "PATH": path},
        stdin=subprocess.DEVNULL,
    )


def test_a_lost_node_ends_the_other_and_one_or_two_nodes_go_on_to_the_same_numbers(
    work: Work, pruned: Path, hosts: tuple[Host, Host], forked: ForkServer, tmp_path: Path
) -> None:
    run, alone = work.folder / "lost", work.folder / "alone"
    command = work.write("lost", run)
    processes = launch(hosts, command)
    wait_until(lambda: (run / "checkpoints" / "ep0-ba2-rank0.pt").exists() or any(p.poll() for p in processes), "saves")
    hosts[1].unplug()
    hosts[1].lose()
    lost = time.monotonic()
    assert finish(hosts, processes)[0] == 1, hosts[0].log.read_text()
    assert time.monotonic() - lost < 3 * LOST
    said = hosts[0].log.read_text()
    assert "error: Rank 0 on node 0 ('node0') has lost the processes of another node" in said
    assert "Traceback" not in said

    shutil.copytree(run, alone, symlinks=True)
    forked.run([COMPOSER, "-n", "2", *work.write("alone", alone)], cwd=REPOSITORY, check=True)
    expected = result(pruned, tmp_path / "state.pt")
    assert compare(expected, result(alone, tmp_path / "state.pt")) == []

    with two_hosts(work.folder) as new:
        job = slurm(new, tmp_path / "slurm", command[2:])
        assert job.wait(240) == 0, "".join(host.log.read_text() for host in new)
    assert compare(expected, result(run, tmp_path / "state.pt")) == []
    assert (tmp_path / "slurm" / "told").read_text() == "show hostnames node[0-1]\n"


def continued(work: Work, pruned: Path) -> dict[str, Any]:
    """What of a recipe is other for the sheared model, in shards."""
    sheared = work.folder / "sheared"
    if not sheared.exists():
        shear(pruned / "checkpoints" / "latest-rank0.pt", sheared)
    dataset = {**work.recipe["train_loader"]["dataset"]}
    dataset |= {name: str(sheared / "shearing.json") for name in ("proportions", "start")}
    return {
        "model": {"name": "composer_llama", "pretrained": str(sheared), "init_device": "mixed"},
        "train_loader": {**work.recipe["train_loader"], "dataset": dataset},
        "algorithms": {"gradient_clipping": work.recipe["algorithms"]["gradient_clipping"]},
        "fsdp_config": {},
        "device_train_microbatch_size": 1,
        "max_duration": "4ba",
    }


def test_four_ranks_on_two_hosts_continue_in_shards_as_on_one_and_on_a_shared_disk_two_go_on(
    work: Work, pruned: Path, hosts: tuple[Host, Host], forked: ForkServer, tmp_path: Path
) -> None:
    changed = continued(work, pruned)
    one, two, fewer = (work.folder / name for name in ("one", "two", "fewer"))
    forked.run([COMPOSER, "-n", "4", *work.write("one", one, **changed)], cwd=REPOSITORY, check=True)
    succeed(hosts, launch(hosts, work.write("two", two, **changed), ranks=2))
    expected = result(one, tmp_path / "state.pt")
    assert compare(expected, result(two, tmp_path / "state.pt")) == []

    shutil.copytree(two, fewer, symlinks=True)
    shutil.rmtree(fewer / "checkpoints" / "ep0-ba4")
    succeed(hosts, launch(hosts, work.write("fewer", fewer, **changed)))
    found = metrics(fewer / "metrics.jsonl")
    losses = {name: value for name, value in metrics(one / "metrics.jsonl").items() if "loss" in name}
    assert any(name.startswith("metrics 4 ") for name in losses)
    assert {name: found[name] for name in losses} == pytest.approx(losses, rel=1e-4)


def test_disks_that_are_not_shared_lose_no_checkpoint_silently(
    work: Work, pruned: Path, hosts: tuple[Host, Host]
) -> None:
    own = hosts[0].own / "run"
    assert finish(hosts, launch(hosts, work.write("sharded", own, **continued(work, pruned)))) == [2, 2]
    for host in hosts:
        assert f"save_folder '{own}/checkpoints' is on another disk on node 1 ('node1')" in host.log.read_text()

    shutil.rmtree(hosts[0].disk / "run")
    shutil.copytree(pruned, hosts[0].disk / "run", symlinks=True)
    (hosts[0].disk / "run" / "checkpoints" / "ep0-ba8-rank0.pt").unlink()
    assert finish(hosts, launch(hosts, work.write("own", own))) == [2, 2]
    for host in hosts:
        assert "ep0-ba6-rank0.pt' of node 0 ('node0'), which is not there on node 1 ('node1')" in host.log.read_text()
