"""Kill a scenario at random moments, run it again until it ends, and compare with what undisturbed runs make."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.faults.scenarios import Scenario
from tests.forkserver import ForkServer

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
MOST_KILLS = 4  # of one piece of work, before it is let to its end


@dataclass
class Findings:
    """What a campaign saw.

    Args:
        kills: processes that were killed before their end.
        trials: pieces of work that were killed at least once and then ended.
        failures: a line for each that did not end as undisturbed.
    """

    kills: int = 0
    trials: int = 0
    failures: list[str] = field(default_factory=list)


def run(server: ForkServer, scenario: Scenario, folder: Path) -> float:
    """Run the command to its end; seconds it took.

    Raises:
        RuntimeError: it failed; with the end of what it printed.
    """
    begin = time.monotonic()
    done = server.run(scenario.command, cwd=folder, env=ENVIRONMENT, timeout=600)
    if done.returncode != 0:
        raise RuntimeError(f"exit code {done.returncode}: {done.stdout[-1000:]}{done.stderr[-1000:]}")
    return time.monotonic() - begin


def campaign(
    server: ForkServer, scenario: Scenario, folder: Path, *, kills: int, seed: int, report: Callable[[str], object]
) -> Findings:
    """Kill ``scenario`` ``kills`` times.

    A piece of work is killed up to :data:`MOST_KILLS` times at moments drawn evenly from the time it takes, sometimes
    with all that it has started, and run again at once; then it is let to its end.

    Args:
        server: starts commands.
        scenario: what to run.
        folder: for everything; one more folder for each piece of work, which goes if its result is right.
        kills: how many to make in all.
        seed: of the moments.
        report: called with a line for each piece of work.
    """
    generator = random.Random(f"{scenario.name} {seed}")
    whole = folder / f"{scenario.name}-undisturbed"
    scenario.prepare(whole)
    seconds = run(server, scenario, whole)
    expected = scenario.result(whole)
    findings = Findings()
    trial = 0
    while findings.kills < kills:
        trial += 1
        work = folder / f"{scenario.name}-{trial}"
        scenario.prepare(work)
        moments = []
        for _ in range(min(generator.randint(1, MOST_KILLS), kills - findings.kills)):
            moment = generator.uniform(0, seconds)
            if not _killed(server, scenario, work, moment, with_children=generator.random() < 0.5):
                break  # it had ended before
            moments.append(moment)
            findings.kills += 1
        if not moments:
            shutil.rmtree(work)
            continue
        findings.trials += 1
        described = f"{scenario.name} {trial}, killed after " + ", ".join(f"{moment:.2f}" for moment in moments) + " s"
        try:
            run(server, scenario, work)
            differing = compare(expected, scenario.result(work))
        except RuntimeError as error:
            differing = [str(error)]
        if differing:
            findings.failures.append(f"{described}: {'; '.join(differing[:5])}")
            report(f"FAILED {findings.failures[-1]}")
        else:
            shutil.rmtree(work)
            report(f"ok     {described}")
    return findings


def compare(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """What differs, by name."""
    return (
        [f"{name} is missing" for name in expected.keys() - found.keys()]
        + [f"{name} is left over" for name in found.keys() - expected.keys()]
        + [f"{name} differs" for name in expected.keys() & found.keys() if expected[name] != found[name]]
    )


def _killed(server: ForkServer, scenario: Scenario, folder: Path, moment: float, *, with_children: bool) -> bool:
    """Run the command and kill it after ``moment`` seconds; whether it was still running."""
    process = server.start(scenario.command, cwd=folder, env=ENVIRONMENT)
    try:
        process.wait(timeout=moment)
        return False
    except subprocess.TimeoutExpired:
        pass
    children = psutil.Process(process.pid).children(recursive=True)
    for pid in [process.pid, *(child.pid for child in children if with_children)]:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    killed = process.wait() == -signal.SIGKILL
    if alive := psutil.wait_procs(children, timeout=60)[1]:
        raise RuntimeError(f"{len(alive)} processes outlive the one that started them: {alive}")
    return killed
