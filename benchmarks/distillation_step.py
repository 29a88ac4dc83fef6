"""What a teacher costs: a training step distilled from the source against a plain one of the same small model.

``python -m benchmarks.distillation_step`` prints, per size and number of the teacher's tokens that are compared, what
``benchmarks.pruning_step`` does for masks, and the ratio that the arithmetic of both models asks for. The teacher has
twice the student's size in every dimension. Float32 on the CPU.
"""

from __future__ import annotations

import argparse

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.steps import SMALL, Step, compare, llama_config, peak_memory
from llmshearing.architecture.shapes import ModelShape
from llmshearing.compute import forward_flops, training_flops
from llmshearing.divergence import distillation_loss
from llmshearing.teacher import Teacher

# name -> the teacher's hidden size, layers, vocabulary, sequences, tokens per sequence
SIZES = {"d256 L8 V4096": (256, 8, 4096, 4, 256), "d256 L8 V32000": (256, 8, 32000, 2, 512)}
PLAIN = 0  # tokens compared where there is no teacher


def config(size: str, *, share: int) -> LlamaConfig:
    """Of the teacher at ``share`` 1, of the student at 2."""
    hidden, layers, vocabulary, _, length = {**SIZES, **SMALL}[size]
    return llama_config(hidden // share, layers // share, vocabulary, length)


def make_step(size: str, top_k: int | None) -> Step:
    """A whole training step of the student."""
    _, _, vocabulary, sequences, length = {**SIZES, **SMALL}[size]
    torch.manual_seed(0)
    student = LlamaForCausalLM(config(size, share=2))
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4)
    ids = torch.randint(0, vocabulary, (sequences, length))
    if top_k != PLAIN:
        teacher = Teacher(LlamaForCausalLM(config(size, share=1)), top_k=top_k, temperature=1.0)

    def step() -> None:
        outputs = student(input_ids=ids, labels=ids)
        loss = outputs.loss
        if top_k != PLAIN:
            with torch.no_grad():
                values, tokens = teacher(input_ids=ids)
            loss = 0.5 * loss + 0.5 * distillation_loss(outputs.logits, values, tokens, ids)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.distillation_step", description=__doc__)
    parser.add_argument("--steps", type=int, default=30, help="pairs of steps per row (default: 30)")
    arguments = parser.parse_args()
    torch.set_flush_denormal(True)
    columns = ("plain s", "taught s", "ratio", "arithmetic", "plain MB", "teacher MB", "taught MB")
    print(f"{'size':16}{'top_k':>8}" + "".join(f"{column:>12}" for column in columns))
    for size, (*_, length) in SIZES.items():
        teacher, student = (ModelShape.from_hf_config(config(size, share=share)) for share in (1, 2))
        forward = forward_flops(teacher, seq_len=length)
        training = training_flops(student, seq_len=length, checkpointing=False)
        for top_k in (64, None):
            plain, taught, ratio = compare(make_step(size, PLAIN), make_step(size, top_k), pairs=arguments.steps)
            without, with_teacher = (peak_memory(make_step, size, compared) for compared in (PLAIN, top_k))
            print(
                f"{size:16}{top_k or 'all':>8}{plain:12.4f}{taught:12.4f}{ratio:12.2f}{1 + forward / training:12.2f}"
                f"{without:12.0f}{4 * teacher.num_parameters() / 2**20:12.0f}{with_teacher:12.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
