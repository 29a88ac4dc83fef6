"""What ``convert shear --fit`` costs: seconds and memory against forward passes of the whole source on the same text.

``python -m benchmarks.fit`` prints, for two sizes sheared to half of every dimension, the fit's seconds in forward
passes, and the peak memory of both above what was in use: the fit reads weights from the folder as it needs them, the
forward pass holds them all. The arithmetic is of one for Llama-2-7B to 2.7 B, too. Float32 on the CPU, random weights
and tokens, which cost what real ones do.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from benchmarks.steps import SMALL, Step, compare, llama_config, peak_memory
from llmshearing.architecture.config import sheared_config
from llmshearing.architecture.shapes import ModelShape
from llmshearing.convert.commands import open_checkpoint
from llmshearing.models.streamed import StreamedModel
from llmshearing.pruning.fit import Reconstruction
from llmshearing.pruning.hard_concrete import deterministic
from llmshearing.pruning.shear import Shears
from llmshearing.pruning.target import resolve_target, unit_groups

# name -> hidden size, layers, vocabulary, batches of 16 sequences, tokens per sequence
SIZES = {"d128-L8": (128, 8, 4096, 2, 128), "d256-L8": (256, 8, 4096, 2, 128)}
LLAMA_7B = ModelShape(4096, 11008, 32, 32, 32, 128, 32000, tie_word_embeddings=False)
TO_2_7B = {"hidden_size": 2560, "intermediate_size": 6912, "num_attention_heads": 20}
AT_ONCE = 16


def build(folder: Path, size: str) -> None:
    """A model of random weights."""
    hidden, layers, vocabulary, _, length = {**SIZES, **SMALL}[size]
    torch.manual_seed(0)
    LlamaForCausalLM(llama_config(hidden, layers, vocabulary, length)).save_pretrained(folder)


def make_step(size: str, folder: str, kind: str) -> Step:
    """A forward pass over all text, or a fit on it."""
    *_, vocabulary, number, length = {**SIZES, **SMALL}[size]
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randint(0, vocabulary, (AT_ONCE, length), generator=generator) for _ in range(number)]
    model = str(Path(folder, size))
    return forward_step(model, batches) if kind == "forward" else fit_step(model, batches)


def forward_step(folder: str, batches: list[torch.Tensor]) -> Step:
    """All batches through the whole model."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()

    def step() -> None:
        with torch.no_grad():
            for ids in batches:
                model(input_ids=ids, use_cache=False)

    return step


def fit_step(folder: str, batches: list[torch.Tensor]) -> Step:
    """A fit of half of every dimension, from the folder."""
    config = AutoModelForCausalLM.from_pretrained(folder).config
    source = ModelShape.from_hf_config(config)
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_key_value_heads")
    target = resolve_target(source, {name: math.ceil(getattr(source, name) / 2) for name in names})
    generator = torch.Generator().manual_seed(0)
    masks: dict[str, torch.Tensor] = {
        group.dimension: (deterministic(torch.rand(group.shape, generator=generator), group.num_kept) > 0).float()
        for group in unit_groups(source, target)
    }
    shears = Shears(masks, source, target)
    small = type(config)(**sheared_config(config.to_dict(), target, shears.layers))

    def step() -> None:
        with open_checkpoint(folder) as checkpoint:
            placed = {
                place.name: (tensor, place)
                for name, tensor in checkpoint.tensors.items()
                if (place := shears.place(name, tensor.shape)) is not None
            }
            read: Callable[[str], torch.Tensor] = lambda name: checkpoint.tensors[name].read()  # noqa: E731
            cut: Callable[[str], torch.Tensor] = lambda name: placed[name][1].cut(placed[name][0].read())  # noqa: E731
            device = torch.device("cpu")
            parts = StreamedModel(config, read, device=device), StreamedModel(small, cut, device=device)
            for _ in Reconstruction(*parts, shears).fit(batches):
                pass

    return step


def arithmetic(source: ModelShape, target: ModelShape, tokens: int) -> dict[str, float]:
    """What a fit asks for, in bytes and floating-point operations.

    Streams are the source's in front of and behind a layer, and the sheared model's; Gram matrices are of what o_proj
    and down_proj are given, at most; of either model a layer is in memory, or its output matrix. A fit runs each layer
    about 2.2 times.
    """
    layer = (source.num_parameters() - 2 * source.vocab_size * source.hidden_size) / source.num_hidden_layers
    inner = (target.hidden_size, target.num_attention_heads * target.head_dim, target.intermediate_size)
    outputs = target.num_attention_heads * target.head_dim * 3 + 2 * target.intermediate_size
    products = sum(2 * tokens * size**2 for size in (inner[0], *inner)) + 2 * tokens * inner[0] * (outputs + sum(inner))
    return {
        "streams": 4.0 * tokens * (2 * source.hidden_size + target.hidden_size),
        "weights": 4.0 * max(layer, source.vocab_size * source.hidden_size) * 1.5,
        "gram": 8.0 * max(inner) * (max(inner) + target.hidden_size) * 3,  # and what solving needs
        "passes": 2.2 * 2 * tokens * (source.num_parameters() + target.num_parameters()),
        "products": float(products * target.num_hidden_layers),
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fit", description=__doc__)
    parser.add_argument("--pairs", type=int, default=5, help="pairs of a forward pass and a fit (default: 5)")
    arguments = parser.parse_args()
    torch.set_flush_denormal(True)
    columns = ("forward s", "fit s", "ratio", "weights MB", "forward MB", "fit MB")
    print(f"{'size':12}" + "".join(f"{column:>12}" for column in columns))
    for size in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            for name in (size, *SMALL):
                build(Path(folder, name), name)
            forward, fit, ratio = compare(
                make_step(size, folder, "forward"), make_step(size, folder, "fit"), pairs=arguments.pairs
            )
            peaks = [peak_memory(make_step, size, folder, kind) for kind in ("forward", "fit")]
            weights = sum(file.stat().st_size for file in Path(folder, size).glob("*.safetensors")) / 2**20
        print(
            f"{size:12}{forward:12.3f}{fit:12.3f}{ratio:12.1f}{weights:12.0f}{peaks[0]:12.0f}{peaks[1]:12.0f}",
            flush=True,
        )
    needs = arithmetic(LLAMA_7B, resolve_target(LLAMA_7B, TO_2_7B), tokens := 64 * 2048)
    memory = ", ".join(f"{name} {needs[name] / 1e9:.1f} GB" for name in ("streams", "weights", "gram"))
    print(
        f"Llama-2-7B to 2.7 B on {tokens} tokens: {memory}; {needs['passes'] / 1e12:.0f} TFLOP of passes in float32, "
        f"{needs['products'] / 1e12:.0f} of sums in float64."
    )


if __name__ == "__main__":
    main()
