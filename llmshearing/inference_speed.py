"""``python -m llmshearing.inference_speed MODEL ... [--generate N ...]``: what a smaller model saves once it is served.

By model, batch size and length, medians of several rounds in which the models take turns, so that a machine which
others use slows all of them alike:

prefill
    tokens of a prompt per second, until the first new token is there
decode
    new tokens per second after that
latency
    seconds for a prompt and all new tokens
peak memory
    bytes, weights included: on a GPU always, on a CPU with --memory, in a process of its own for each figure

With --irregular MODEL a model of as many parameters takes part whose layers each have widths of their own, as pruning
without a target shape leaves them (LLM-Pruner): what the same parameters cost in odd shapes.

Prompts are random tokens and the likeliest token is taken, by stock ``transformers`` with a cache of keys and values.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tqdm import tqdm
from transformers import PretrainedConfig, PreTrainedModel

from llmshearing.architecture.shapes import ModelShape
from llmshearing.arguments import whole
from llmshearing.errors import InputError, cli
from llmshearing.fileio import give_json
from llmshearing.irregular import build_irregular, irregular_shapes
from llmshearing.measuring import parse_measuring
from llmshearing.models.loading import default_device, default_dtype
from llmshearing.peak_memory import peak_in_process
from llmshearing.reference_loss.evaluate import causal_config, load_model


def inference_speed(
    models: Sequence[str],
    *,
    generate: Sequence[int] = (128,),
    batch_sizes: Sequence[int] = (1,),
    prompt: int = 128,
    rounds: int = 3,
    dtype: str | None = None,
    irregular: Sequence[str] = (),
    memory: bool = False,
) -> list[dict[str, Any]]:
    """Measure models, all of them in memory.

    Runs on the GPU if there is one.

    Args:
        models: Hugging Face folders or hub ids.
        generate: numbers of new tokens, 2 at least.
        batch_sizes: sequences at once.
        prompt: tokens of a sequence before the new ones.
        rounds: how many times each; one more comes first, which is not counted.
        dtype: of weights and activations; bfloat16 on a GPU and float32 on a CPU unless given.
        irregular: models of supported families of which an irregular one is measured too, as ``NAME (irregular)``; see
            :mod:`llmshearing.irregular`.
        memory: on a CPU, measure memory too, which starts a process for each figure.

    Returns:
        For each model, batch size and number of new tokens: ``model``, ``num_parameters``, ``device``, ``dtype``,
        ``batch_size``, ``prompt``, ``generate``, ``prefill_tokens_per_s``, ``decode_tokens_per_s``, ``latency_s`` and,
        on a GPU or with ``memory``, ``peak_memory_bytes``, which has this model's weights in it and no other's. Of an
        irregular one also ``intermediate_sizes`` and ``num_key_value_heads``, by layer.

    Raises:
        InputError: a model cannot be read, or has fewer positions than are asked for; no irregular one can be made.
    """
    regular = {name: causal_config(name) for name in irregular}
    configs = {name: causal_config(name) for name in models}
    texts = {name: config.get_text_config() for name, config in configs.items()}
    _check(texts | regular, generate, batch_sizes, prompt, rounds)
    widths = {f"{name} (irregular)": _widths(config) for name, config in regular.items()}
    loaded = {name: _load(name, dtype, False) for name in configs}
    loaded |= {f"{name} (irregular)": _load(name, dtype, True) for name in regular}
    found = time_models(loaded, generate=generate, batch_sizes=batch_sizes, prompt=prompt, rounds=rounds)
    for entry in found:
        name = entry["model"].removesuffix(" (irregular)")
        if memory and "peak_memory_bytes" not in entry:
            case = (name, dtype, name != entry["model"], entry["batch_size"], prompt, entry["generate"])
            entry["peak_memory_bytes"] = peak_in_process(_load_case, _run_case, *case)
        entry |= widths.get(entry["model"], {})
    return found


def _load(name: str, dtype: str | None, irregular: bool) -> PreTrainedModel:
    """A model, or the irregular one of as many parameters."""
    config = causal_config(name)
    if not irregular:
        return load_model(name, config, dtype=dtype)
    return build_irregular(config, device=default_device(), dtype=getattr(torch, default_dtype(dtype)))


def _widths(config: PretrainedConfig) -> dict[str, list[int]]:
    shapes = irregular_shapes(ModelShape.from_hf_config(config))
    names = {"intermediate_sizes": "intermediate_size", "num_key_value_heads": "num_key_value_heads"}
    return {key: [getattr(shape, name) for shape in shapes] for key, name in names.items()}


def _load_case(
    name: str, dtype: str | None, irregular: bool, batch_size: int, prompt: int, length: int
) -> tuple[PreTrainedModel, int, int, int]:
    return _load(name, dtype, irregular), batch_size, prompt, length


def _run_case(case: tuple[PreTrainedModel, int, int, int]) -> None:
    model, batch_size, prompt, length = case
    _generate(model, torch.zeros(batch_size, prompt, dtype=torch.long), length)


def time_models(
    loaded: Mapping[str, PreTrainedModel],
    *,
    generate: Sequence[int],
    batch_sizes: Sequence[int] = (1,),
    prompt: int,
    rounds: int,
) -> list[dict[str, Any]]:
    """Measure models that are there, by name; see :func:`inference_speed`."""
    sizes = {name: model.config.get_text_config().vocab_size for name, model in loaded.items()}
    cases = [(size, length) for size in batch_sizes for length in generate]
    taken: dict[tuple[str, int, int], list[tuple[float, float]]] = {}
    memory: dict[tuple[str, int, int], int] = {}
    with tqdm(total=len(cases) * (rounds + 1) * len(loaded), unit="run", desc="generate") as progress:
        for size, length in cases:
            for number in range(rounds + 1):
                for name, model in loaded.items():
                    generator = torch.Generator().manual_seed(number)
                    ids = torch.randint(sizes[name], (size, prompt), generator=generator)
                    seconds, peak = _generate(model, ids.to(model.device), length)
                    key = (name, size, length)
                    if number:  # the first round warms up
                        taken.setdefault(key, []).append(seconds)
                        memory[key] = max(memory.get(key, 0), peak - _weights(loaded) + _weights({name: model}))
                    progress.update()
    found = []
    for (name, size, length), times in taken.items():
        first, whole_run = (statistics.median(seconds) for seconds in zip(*times, strict=True))
        after = statistics.median(total - begin for begin, total in times)
        model = loaded[name]
        entry = {
            "model": name,
            "num_parameters": model.num_parameters(),
            "device": model.device.type,
            "dtype": str(model.dtype).removeprefix("torch."),
            "batch_size": size,
            "prompt": prompt,
            "generate": length,
            "prefill_tokens_per_s": size * prompt / first,
            "decode_tokens_per_s": size * (length - 1) / after,
            "latency_s": whole_run,
        }
        if model.device.type == "cuda":
            entry["peak_memory_bytes"] = memory[name, size, length]
        found.append(entry)
    return found


def _check(
    configs: Mapping[str, Any], generate: Sequence[int], batch_sizes: Sequence[int], prompt: int, rounds: int
) -> None:
    whole("--prompt", prompt, "a prompt has a token at least", least=1)
    whole("--rounds", rounds, "measure at least once", least=1)
    for length in generate:
        whole("--generate", length, "the first new token is the prompt's; give 2 at least", least=2)
    for size in batch_sizes:
        whole("--batch-size", size, "a batch has a sequence at least", least=1)
    for name, config in configs.items():
        longest = getattr(config, "max_position_embeddings", None) or prompt + max(generate)
        if prompt + max(generate) > longest:
            raise InputError(
                f"'{name}' has {longest} positions; {prompt} tokens and {max(generate)} new ones do not fit. "
                "Lower --prompt or --generate."
            )


@torch.inference_mode()
def _generate(model: PreTrainedModel, ids: torch.Tensor, length: int) -> tuple[tuple[float, float], int]:
    """Seconds until the first new token of (batch, prompt) ids is there and until the last is; bytes at the peak."""
    gpu = model.device.type == "cuda"
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    begin = time.perf_counter()
    output = model(input_ids=ids, use_cache=True, logits_to_keep=1)
    token = output.logits[:, -1:].argmax(-1)
    _wait(gpu)
    first = time.perf_counter() - begin
    for _ in range(length - 1):
        output = model(input_ids=token, past_key_values=output.past_key_values, use_cache=True)
        token = output.logits[:, -1:].argmax(-1)
    _wait(gpu)
    return (first, time.perf_counter() - begin), torch.cuda.max_memory_allocated() if gpu else 0


def _wait(gpu: bool) -> None:
    if gpu:
        torch.cuda.synchronize()


def _weights(models: Mapping[str, PreTrainedModel]) -> int:
    """Bytes of models' weights."""
    return sum(model.get_memory_footprint() for model in models.values())


@cli
def main(argv: Sequence[str] | None = None) -> None:
    """The command line; see the module."""
    parser = argparse.ArgumentParser(
        prog="python -m llmshearing.inference_speed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("models", metavar="MODEL", nargs="+", help="Hugging Face folders or hub ids")
    parser.add_argument("--generate", metavar="N", type=int, nargs="+", default=[128], help="new tokens (default: 128)")
    parser.add_argument("--batch-size", metavar="N", type=int, nargs="+", default=[1], help="sequences (default: 1)")
    parser.add_argument("--prompt", metavar="N", type=int, default=128, help="tokens before them (default: 128)")
    parser.add_argument("--rounds", metavar="N", type=int, default=3, help="medians of how many (default: 3)")
    parser.add_argument(
        "--irregular", metavar="MODEL", nargs="+", default=[], help="time irregular models of as many parameters too"
    )
    parser.add_argument("--memory", action="store_true", help="measure peak memory on a CPU too")
    arguments = parse_measuring(parser, argv)
    found = inference_speed(
        arguments.models,
        generate=arguments.generate,
        batch_sizes=arguments.batch_size,
        prompt=arguments.prompt,
        rounds=arguments.rounds,
        dtype=arguments.dtype,
        irregular=arguments.irregular,
        memory=arguments.memory,
    )
    give_json(arguments.out, found)


if __name__ == "__main__":
    main()
