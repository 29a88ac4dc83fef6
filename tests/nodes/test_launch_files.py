"""The files and commands of docs/launch.md: whole, and taken by the real launcher."""

from __future__ import annotations

import shlex
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import yaml
from composer.cli import launcher

from tests.conftest import REPOSITORY

LAUNCH = REPOSITORY / "launch"
PAGE = (REPOSITORY / "docs" / "launch.md").read_text(encoding="utf-8")


def parse(command: list[str], monkeypatch: pytest.MonkeyPatch, **environment: str) -> Namespace:
    """What the launcher makes of a command."""
    assert command[0] == "composer"
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "BASE_RANK", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", command)
    return launcher._parse_args()


def test_the_commands_of_the_page_are_of_one_run(monkeypatch: pytest.MonkeyPatch) -> None:
    commands = [shlex.split(line) for line in PAGE.splitlines() if line.startswith("composer ")]
    found = [parse(command, monkeypatch) for command in commands]
    assert [(each.node_rank, each.base_rank) for each in found] == [(0, 0), (1, 8)]
    assert {(each.world_size, each.nproc, each.module_mode, each.training_script) for each in found} == {
        (16, 8, True, "llmshearing.train")
    }
    assert [each.training_script_args for each in found] == [["my/prune.yaml", "autoresume=true"]] * 2


@pytest.fixture(scope="module")
def manifests() -> dict[str, Any]:
    return {each["kind"]: each for each in yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text(encoding="utf-8"))}


def test_the_pods_of_the_job_are_the_nodes_of_one_run(
    manifests: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    job, service = manifests["Job"], manifests["Service"]
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    nodes = job["spec"]["completions"]
    assert job["spec"]["completionMode"] == "Indexed"
    assert job["spec"]["parallelism"] == nodes
    assert [each["name"] for each in container["env"]] == ["NODE_RANK"]
    for rank in range(nodes):
        found = parse(container["command"], monkeypatch, NODE_RANK=str(rank))
        assert found.world_size == nodes * found.nproc
        assert found.nproc == container["resources"]["limits"]["nvidia.com/gpu"]
        assert (found.node_rank, found.base_rank) == (rank, rank * found.nproc)
        assert found.training_script_args == ["my/continue.yaml", "autoresume=true"]
        assert found.master_addr == f"{job['metadata']['name']}-0.{service['metadata']['name']}"
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert pod["restartPolicy"] == "Never"  # which podFailurePolicy asks for
    assert {each["name"] for each in container["volumeMounts"]} == {each["name"] for each in pod["volumes"]}


def test_bad_input_ends_the_job_and_no_other_exit_code_does(manifests: dict[str, Any]) -> None:
    rules = manifests["Job"]["spec"]["podFailurePolicy"]["rules"]
    (codes,) = (rule["onExitCodes"] for rule in rules if rule["action"] == "FailJob")
    assert (codes["operator"], codes["values"]) == ("In", [2])
    assert codes["containerName"] == manifests["Job"]["spec"]["template"]["spec"]["containers"][0]["name"]


def test_the_image_is_of_locked_packages_that_are_here_and_runs_as_a_user() -> None:
    lines = (LAUNCH / "Dockerfile").read_text(encoding="utf-8").splitlines()
    copied = [word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]]
    assert [name for name in copied if not (REPOSITORY / name).exists()] == []
    assert {"requirements.lock", "setup.py", "llmshearing"} <= set(copied)
    version = next(line for line in (REPOSITORY / "Makefile").read_text().splitlines() if "UV_VERSION :=" in line)
    assert any(f"uv=={version.split()[-1]}" in line for line in lines)
    assert [line for line in lines if line.startswith("USER ")] == ["USER 1000"]


def test_the_page_names_every_file() -> None:
    assert [path.name for path in sorted(Path(LAUNCH).iterdir()) if f"../launch/{path.name})" not in PAGE] == []
