"""``python -m benchmarks.budget``: what 54 B tokens on 2 nodes and 1.2 T on 64 take, computed from unit costs.

Prints the tables of docs/scale.md. Where a cost is measured anew, change it here and put the tables there again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from llmshearing.architecture.shapes import ModelShape
from llmshearing.compute import training_flops

#: The paper's 2.7B.
MODEL = ModelShape(2560, 6912, 32, 20, 20, 128, 32000, False)
SEQ_LEN = 4096
GPUS = 8  # of a node
HOUR = 3600


@dataclass(frozen=True)
class Cost:
    """A unit cost: its value, and where it comes from."""

    value: float
    unit: str
    source: str


COSTS = {
    "tokenizing": Cost(2.5e6, "tokens per second and core", "LLaMA's tokenizer on RedPajama's mix, here"),
    "packing": Cost(65e6, "tokens per second, one core", "8.8 M tokens by `prepare.py`, here"),
    "text": Cost(3.7, "bytes of text per token", "the same texts"),
    "token": Cost(2, "bytes per token, tokenized and packed", "the format, vocabularies of up to 65,536"),
    "loader": Cost(
        2900,
        "sequences of 2048 tokens per second and worker",
        "`python -m benchmarks.streaming_speed`, on a busy machine",
    ),
    "amplification": Cost(
        1.2,
        "of a node's share of the data that it fetches, at most",
        "a test's bound; 1.003 by `python -m benchmarks.scale`",
    ),
    "peak": Cost(989e12, "FLOP/s of an H100, bfloat16, dense", "data sheet"),
    "mfu": Cost(0.4, "of the peak", "assumption"),
    "state": Cost(12, "bytes per parameter of a checkpoint: weights and Adam's moments, float32", "the format"),
    "disk": Cost(2e9, "bytes per second that the shared disk takes and gives, all nodes together", "assumption"),
    "start": Cost(60, "seconds until all ranks have imported, opened data and met", "assumption; 15 s here"),
    "failures": Cost(1 / 5000, "failures per node and hour", "assumption"),
}


@dataclass(frozen=True)
class Plan:
    """A run: tokens, nodes, and tokens of a global batch."""

    tokens: float
    nodes: int
    batch: float


PLANS = (Plan(54e9, 2, 256 * SEQ_LEN), Plan(1.2e12, 64, 1024 * SEQ_LEN))


def budget(plan: Plan) -> dict[str, str]:
    """What a plan takes, by what it is."""
    cost = {name: each.value for name, each in COSTS.items()}
    gpus = plan.nodes * GPUS
    flops = training_flops(MODEL, seq_len=SEQ_LEN, checkpointing=False)
    rate = cost["peak"] * cost["mfu"] / flops  # tokens per second and GPU
    training = plan.tokens / (rate * gpus)
    packed = plan.tokens * cost["token"]
    fetched = packed * min(1.0, cost["amplification"] / plan.nodes)  # by each node
    state = MODEL.num_parameters() * cost["state"]
    saving = state / cost["disk"]
    failures = cost["failures"] * plan.nodes / HOUR  # per second
    interval = math.sqrt(2 * saving / failures)  # at which saving and what failures lose are least (Young)
    lost = training * (saving / interval + failures * (interval / 2 + saving + cost["start"]))
    loader = cost["loader"] * 2048 / (rate * GPUS)
    return {
        "tokenizing, core-hours": _number(plan.tokens / cost["tokenizing"] / HOUR),
        "packing, core-hours": _number(plan.tokens / cost["packing"] / HOUR),
        "disk while preparing, TB: text, tokens, packed": _number(
            plan.tokens * (cost["text"] + 2 * cost["token"]) / 1e12
        ),
        "packed data, TB": _number(packed / 1e12),
        "fetched by each node, TB": _number(fetched / 1e12),
        "given by the store, TB": _number(fetched * plan.nodes / 1e12),
        "given by the store on average, MB/s": _number(fetched * plan.nodes / training / 1e6),
        "GPU-hours": _number(training * gpus / HOUR),
        "training, hours": _number(training / HOUR),
        "a step, seconds": _number(plan.batch / (rate * gpus)),
        "sequences that a node trains on per second": _number(rate * GPUS / SEQ_LEN),
        "what one worker reads, as a multiple of that": _number(loader),
        "a checkpoint, GB": _number(state / 1e9),
        "failures in the run": _number(failures * training),
        "a checkpoint every, minutes": _number(interval / 60),
        "lost to saving, failures and restarts": f"{lost / training:.2%}",
    }


def _number(value: float) -> str:
    """Two or three digits."""
    digits = max(0, 1 - math.floor(math.log10(value))) if value else 0
    return f"{value:,.{digits}f}" if value < 100 else f"{float(f'{value:.3g}'):,.0f}"


def tables() -> tuple[str, str]:
    """The unit costs, and what the plans take, as Markdown."""
    costs = [[name, _unit(each.value), each.unit, each.source] for name, each in COSTS.items()]
    plans = [budget(plan) for plan in PLANS]
    heads = [f"{plan.tokens / 1e9:,.0f} B tokens, {plan.nodes} nodes of {GPUS} GPUs" for plan in PLANS]
    rows = [[name, *(plan[name] for plan in plans)] for name in plans[0]]
    return _table(["cost", "value", "unit", "source"], costs), _table(["", *heads], rows)


def _unit(value: float) -> str:
    return f"{value:.3g}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)) + "\n"


def main() -> None:
    """The command line; see the module."""
    print("\n".join(tables()))


if __name__ == "__main__":
    main()
