"""Parts that measure: steps with and without masks, the loss of distillation, and both against the estimates."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from transformers import AutoConfig, PreTrainedModel

from benchmarks.gpu_check.models import SIZES, build, tokens
from benchmarks.gpu_check.part import FailedError, Found, Setup, SkippedError, within
from llmshearing.architecture.shapes import ModelShape
from llmshearing.compute import training_flops
from llmshearing.divergence import distillation_loss
from llmshearing.dry_run.estimates import training_memory
from llmshearing.pruning.functional import apply_targeted_pruning

RATIO = 1.15  # of a masked step to a plain one, whose work is per weight: a defect if it is more
# Of what is measured to the dry run's estimate: more does not fit where the dry run says so, less turns users away.
OPTIMISTIC, PESSIMISTIC = 1.1, 0.5
FILLED = 0.8  # share of the device's free memory that a step may take by the estimate
KEPT, PEAK = 0.1, 2.6  # bytes per logit in bfloat16 that the divergence keeps, and takes for its gradient of 2


def step_135m(setup: Setup) -> Found:
    """At SmolLM2-135M's sizes."""
    return _step(setup, "small" if setup.small else "135M")


def step_1b(setup: Setup) -> Found:
    """At TinyLlama's, 1.1 B parameters."""
    return _step(setup, "small" if setup.small else "1B")


def divergence(setup: Setup) -> Found:
    """The loss of distillation over 128,256 tokens: its value, and what it keeps and takes."""
    vocabulary, length, k = (1000, 64, 8) if setup.small else (128_256, 4096, 64)
    torch.manual_seed(0)
    with setup.place:
        source = torch.randn(1, length, vocabulary, dtype=torch.bfloat16, requires_grad=True)
        labels = torch.zeros(1, length, dtype=torch.long)
        values, ids = torch.randn(1, length, vocabulary, dtype=torch.bfloat16).topk(k)
        values = (values - 9).float()  # what is compared has some probability, and not all
    few = slice(0, 64)
    small = [tensor[:, few] for tensor in (source.detach(), values, ids, labels)]
    ours = distillation_loss(*small)
    theirs = distillation_loss(
        *(tensor.cpu().double() if tensor.is_floating_point() else tensor.cpu() for tensor in small)
    )
    figure = within("relative error", abs(ours.item() - theirs.item()) / theirs.item(), 1e-4)
    measured: dict[str, object] = {}
    if setup.on_gpu:
        logits = source * 1
        gc.collect()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        loss = distillation_loss(logits, values, ids, labels)
        kept = torch.cuda.memory_allocated() - before
        torch.autograd.grad(loss, logits)
        peak = torch.cuda.max_memory_allocated() - before
        size = logits.numel()
        measured = {"kept": kept / size, "peak": peak / size}
        figure += f"; bytes per logit: {within('kept', kept / size, KEPT)}, {within('peak', peak / size, PEAK)}"
    return Found(figure, measured)


@dataclass(frozen=True)
class Steps:
    """What was measured of the steps of one model.

    Args:
        tokens: of a step.
        flops: per token, of a plain step.
        seconds: of a plain step.
        masked_seconds: of one under masks.
        memory: bytes at the peak of plain steps; ``None`` where they cannot be told.
        masked_memory: the same under masks.
        estimated_memory: the dry run's estimate of ``memory``.
    """

    tokens: int
    flops: float
    seconds: float
    masked_seconds: float
    memory: int | None
    masked_memory: int | None
    estimated_memory: float

    def judged(self) -> Found:
        """The figures.

        Raises:
            FailedError: masks cost too much time, or the estimate is far off.
        """
        ratio, speed = self.masked_seconds / self.seconds, self.tokens / self.seconds
        teraflops = speed * self.flops / 1e12
        values = {**asdict(self), "ratio": ratio, "tokens_per_second": speed, "teraflops": teraflops}
        figure = f"{speed:,.0f} tokens/s, {teraflops:.3g} TFLOP/s, masked step {ratio:.3g}"
        if self.memory is None or self.masked_memory is None:
            return Found(figure, values)
        plain, masked, estimated = (x / 1e9 for x in (self.memory, self.masked_memory, self.estimated_memory))
        figure += f"; {plain:.3g} GB, masked {masked:.3g}, estimated {estimated:.3g}"
        share = max(plain, masked) / estimated
        if ratio > RATIO:
            raise FailedError(f"{figure}: a masked step should take at most {RATIO}")
        if not PESSIMISTIC <= share <= OPTIMISTIC:
            raise FailedError(f"{figure}: {share:.2f} of the estimate, not {PESSIMISTIC} to {OPTIMISTIC}")
        return Found(figure, values)


def _step(setup: Setup, size: str) -> Found:
    entries, length = SIZES[size]
    config = AutoConfig.for_model(**{**entries, "use_cache": False, "max_position_embeddings": length})
    shape = ModelShape.from_hf_config(config)
    sequences, estimated = _that_fit(setup, shape, length)
    model = build(config, setup.place)
    ids = tokens(config, sequences, length).to(setup.place)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    count = 3 if setup.small else 12
    seconds, memory = _measure(setup, _plain_step(model, optimizer, ids), count)
    masked_seconds, masked_memory = _measure(setup, _masked_step(model, optimizer, ids), count)
    flops = training_flops(shape, seq_len=length, checkpointing=False)
    return Steps(ids.numel(), flops, seconds, masked_seconds, memory, masked_memory, estimated).judged()


def _that_fit(setup: Setup, shape: ModelShape, length: int) -> tuple[int, float]:
    """As many sequences as fit, and the dry run's estimate for them."""
    free = torch.cuda.mem_get_info()[0] if setup.on_gpu else float("inf")
    for sequences in (8, 4, 2, 1):
        estimate = training_memory(
            shape, seq_len=length, microbatch_size=sequences, num_shards=1, sharded=False, checkpointing=False
        ).total
        if estimate < FILLED * free:
            return sequences, estimate
    raise SkippedError(f"needs about {estimate / FILLED / 1e9:.0f} GB of free memory")


def _plain_step(model: PreTrainedModel, optimizer: torch.optim.Optimizer, ids: torch.Tensor) -> Callable[[int], None]:
    def step(number: int) -> None:
        with torch.autocast(ids.device.type, dtype=torch.bfloat16):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _masked_step(model: PreTrainedModel, optimizer: torch.optim.Optimizer, ids: torch.Tensor) -> Callable[[int], None]:
    """Of the same model, which has masks from here on."""
    config = model.config
    groups = config.num_key_value_heads
    queries = config.num_attention_heads // groups
    target = {
        "hidden_size": config.hidden_size // 2,
        "num_hidden_layers": config.num_hidden_layers // 2,
        "intermediate_size": config.intermediate_size // 2,
        "num_key_value_heads": (groups + 1) // 2,
        "num_attention_heads": (groups + 1) // 2 * queries,
    }
    pruning = apply_targeted_pruning(model, target, warmup_steps=100)
    plain = _plain_step(model, optimizer, ids)

    def step(number: int) -> None:
        pruning.draw(number)
        plain(number)
        pruning.learn(number)

    return step


def _measure(setup: Setup, step: Callable[[int], None], steps: int) -> tuple[float, int | None]:
    """Median seconds of a step, and on a GPU the peak of what is allocated, in bytes."""
    if setup.on_gpu:
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for number in range(steps + 3):
        begin = time.perf_counter()
        step(number)
        if setup.on_gpu:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds[3:]), torch.cuda.max_memory_allocated() if setup.on_gpu else None
