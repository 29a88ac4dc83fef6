"""``python -m tests.faults [--kills 50]``: kill real work at random moments, run it again, compare.

A training run, a resumed one, a conversion and a preparation. Exit code 1 if any ended otherwise than undisturbed; its
folder then stays in OUT.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from tests.faults.campaign import campaign, run
from tests.faults.scenarios import SCENARIOS, make_scenarios
from tests.forkserver import ForkServer


def main() -> None:
    """The command line; see the module."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50, help="of each kind of work (default: 50)")
    parser.add_argument("--only", choices=SCENARIOS, nargs="+", default=SCENARIOS, help="kinds of work")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", type=Path, help="an empty folder to work in; default: a temporary one")
    arguments = parser.parse_args()
    out = arguments.out or Path(tempfile.mkdtemp(prefix="faults-"))
    server = ForkServer()
    failed = 0
    try:
        scenarios = make_scenarios(out / "inputs", lambda scenario, folder: run(server, scenario, folder))
        for name in arguments.only:
            scenario = scenarios[name]
            found = campaign(server, scenario, out / "work", kills=arguments.kills, seed=arguments.seed, report=_print)
            failed += len(found.failures)
            _print(
                f"{name}: {found.kills} kills of {found.trials} pieces of work, {len(found.failures)} ended otherwise"
            )
    finally:
        server.close()
    _print(f"Everything is in '{out}'.")
    raise SystemExit(bool(failed))


def _print(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
