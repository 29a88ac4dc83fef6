"""What masks cost: a training step with learned masks against a plain one of the same model.

``python -m benchmarks.pruning_step`` prints, per size, the medians of interleaved steps in one process, the median of
the ratios pair by pair, and the peak memory of both above what was in use before the model was built (one process
each). Float32 on the CPU.
"""

from __future__ import annotations

import argparse

import torch
from transformers import LlamaForCausalLM

from benchmarks.steps import SMALL, Step, compare, llama_config, peak_memory
from llmshearing.pruning.functional import apply_targeted_pruning

# name -> hidden size, layers, vocabulary, sequences, tokens per sequence
SIZES = {"d256 L8 V4096": (256, 8, 4096, 4, 256), "d512 L8 V8192": (512, 8, 8192, 2, 256)}


def make_step(size: str, masked: bool) -> Step:
    """A whole training step."""
    hidden, layers, vocabulary, sequences, length = {**SIZES, **SMALL}[size]
    torch.manual_seed(0)
    config = llama_config(hidden, layers, vocabulary, length)
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    ids = torch.randint(0, vocabulary, (sequences, length))
    if masked:
        half = {"hidden_size": hidden // 2, "num_hidden_layers": layers // 2, "num_key_value_heads": hidden // 128}
        target = {**half, "intermediate_size": hidden * 11 // 8}
        pruning = apply_targeted_pruning(model, target, warmup_steps=100)
    count = 0

    def step() -> None:
        nonlocal count
        if masked:
            pruning.draw(count)
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if masked:
            pruning.learn(count)
        count += 1

    return step


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pruning_step", description=__doc__)
    parser.add_argument("--steps", type=int, default=30, help="pairs of steps per size (default: 30)")
    arguments = parser.parse_args()
    torch.set_flush_denormal(True)
    print(f"{'size':16}{'plain s':>10}{'masked s':>10}{'ratio':>8}{'plain MB':>10}{'masked MB':>11}{'ratio':>8}")
    for size in SIZES:
        plain, masked, ratio = compare(make_step(size, False), make_step(size, True), pairs=arguments.steps)
        memory = [peak_memory(make_step, size, with_masks) for with_masks in (False, True)]
        print(
            f"{size:16}{plain:10.4f}{masked:10.4f}{ratio:8.3f}{memory[0]:10.0f}{memory[1]:11.0f}"
            f"{memory[1] / memory[0]:8.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
