"""How to tune: what can be chosen, and what means nothing."""

from __future__ import annotations

from dataclasses import dataclass

from llmshearing.arguments import number, whole
from llmshearing.errors import InputError


@dataclass(frozen=True)
class Settings:
    """How to tune. Defaults are what the scripts of Sheared LLaMA give its 1.3B model, but for those of LoRA.

    Attributes:
        chat_template: a name of ``template.TEMPLATES`` or a file; ``None``: the model's own.
        rounds: of each conversation, the first so many; ``None``: all. The paper takes 1.
        sample: so many conversations, drawn at random; ``None``: all. The paper takes 10,000.
        max_length: in tokens; longer conversations are left out. ``None``: 512, or the model's positions if fewer.
        epochs: passes over the conversations.
        batch_size: conversations per step.
        micro_batch_size: of these, how many at once in memory; divides ``batch_size``.
        learning_rate: the highest, after warming up; ``None``: 5e-5, and 2e-4 with LoRA.
        warmup: share of the steps; a cosine to zero follows.
        lora: rank of LoRA on all linear layers but the head; ``None``: all weights are trained.
        keep_adapter: write the adapter too, to ``adapter`` in the folder.
        gradient_checkpointing: recompute activations, for memory.
        save_interval: steps between checkpoints.
        seed: of the draw, the order and LoRA's first weights.
    """

    chat_template: str | None = None
    rounds: int | None = None
    sample: int | None = None
    max_length: int | None = None
    epochs: float = 2.0
    batch_size: int = 128
    micro_batch_size: int = 8
    learning_rate: float | None = None
    warmup: float = 0.03
    lora: int | None = None
    keep_adapter: bool = False
    gradient_checkpointing: bool = False
    save_interval: int = 50
    seed: int = 42

    def check(self) -> None:
        """Refuse values that mean nothing.

        Raises:
            InputError: names the option.
        """
        for name in ("rounds", "sample", "max_length", "lora"):
            if (value := getattr(self, name)) is not None:
                whole(f"--{name.replace('_', '-')}", value, "it must be a whole number of at least 1", least=1)
        for name in ("batch_size", "micro_batch_size", "save_interval"):
            option = f"--{name.replace('_', '-')}"
            whole(option, getattr(self, name), "it must be a whole number of at least 1", least=1)
        whole("--seed", self.seed, "it must be a whole number of at least 0", least=0)
        number("--epochs", self.epochs, "it must be above 0", within=lambda value: value > 0)
        number("--warmup", self.warmup, "it is a share, of at least 0 and below 1", within=lambda value: 0 <= value < 1)
        if self.learning_rate is not None:
            rule = "it must be above 0"
            number("--learning-rate", self.learning_rate, rule, within=lambda value: value > 0)
        if self.batch_size % min(self.micro_batch_size, self.batch_size):
            raise InputError(
                f"--micro-batch-size is {self.micro_batch_size}, which does not divide --batch-size, "
                f"{self.batch_size}. Take one of its divisors."
            )
        if self.keep_adapter and self.lora is None:
            raise InputError("--keep-adapter is given, but without --lora there is no adapter. Give both or neither.")
