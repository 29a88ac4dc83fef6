"""Every top-level key of a recipe: what it may be, what it is when it is left out, and what it is for."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from llmshearing.errors import InputError

REQUIRED = object()
_TIME = re.compile(r"(\d+(?:\.\d*)?(?:e\+?\d+)?)([a-z]+)", re.IGNORECASE)
_SHOWN = 200  # characters of a value that a message repeats
_UNITS = {"ba": "batches", "sp": "samples", "tok": "tokens", "dur": "share of the run"}


class Kind(ABC):
    """What a value may be. ``expected`` completes "it must be ..."."""

    expected: str

    @abstractmethod
    def fits(self, value: Any) -> bool:
        """Whether ``value`` is of this kind."""

    def hint(self, value: Any) -> str:
        """What may have been meant, as a sentence with a space before it, or nothing."""
        return ""


class Boolean(Kind):
    """True or false, and nothing that merely counts as one."""

    expected = "true or false"

    def fits(self, value: Any) -> bool:
        """See :meth:`Kind.fits`."""
        return isinstance(value, bool)


class Text(Kind):
    """A string that says something."""

    def __init__(self, what: str = "text") -> None:
        self.expected = f"{what} (a number needs quotes to be text)"

    def fits(self, value: Any) -> bool:
        """See :meth:`Kind.fits`."""
        return isinstance(value, str) and bool(value.strip()) and "\0" not in value


class Mapping(Kind):
    """Keys with values."""

    def __init__(self, example: str) -> None:
        self.expected = f"a mapping of keys to values, such as {example}"

    def fits(self, value: Any) -> bool:
        """See :meth:`Kind.fits`."""
        return isinstance(value, dict)


class Listing(Kind):
    """A list of mappings, not empty; ``example`` is one of them."""

    def __init__(self, example: str) -> None:
        self.expected = f"a list of mappings such as {example}"

    def fits(self, value: Any) -> bool:
        """See :meth:`Kind.fits`."""
        return isinstance(value, list) and bool(value) and all(isinstance(part, dict) for part in value)


class Number(Kind):
    """A finite number from ``low`` to ``high``; whole if asked."""

    def __init__(self, low: float, high: float = math.inf, *, whole: bool = True) -> None:
        self.low, self.high, self.whole = low, high, whole
        until = f" to {high:,}" if math.isfinite(high) else " on"
        self.expected = f"a {'whole ' if whole else ''}number from {low:,}{until}"

    def fits(self, value: Any) -> bool:
        """See :meth:`Kind.fits`."""
        kinds = (int,) if self.whole else (int, float)
        if not isinstance(value, kinds) or isinstance(value, bool):
            return False
        return self.low <= value <= self.high and value < math.inf


class Numbers(Kind):
    """A list of ``count`` finite numbers from ``low`` to below ``high``."""

    def __init__(self, count: int, low: float, high: float) -> None:
        self.count, self.low, self.high = count, low, high
        self.expected = f"a list of {count} numbers from {low:,} to below {high:,}"

    def fits(self, value: Any) -> bool:
        """See :meth:`Kind.fits`."""
        number = Number(self.low, self.high, whole=False)
        return (
            isinstance(value, (list, tuple))
            and len(value) == self.count
            and all(number.fits(part) and part < self.high for part in value)
        )


class Choice(Kind):
    """One of some words."""

    def __init__(self, *words: str) -> None:
        self.words, self.expected = words, f"one of {', '.join(words)}" if len(words) > 1 else words[0]

    def fits(self, value: Any) -> bool:
        """See :meth:`Kind.fits`."""
        return isinstance(value, str) and value in self.words

    def hint(self, value: Any) -> str:
        """See :meth:`Kind.hint`."""
        near = get_close_matches(str(value).lower(), self.words, n=1)
        return f" Did you mean '{near[0]}'?" if near else ""


class Time(Kind):
    """A number above 0 with its unit; whole, but for shares of the run, which end at 1."""

    def __init__(self, *units: str, zero: bool = False) -> None:
        self.units, self.zero = units, zero
        listed = " or ".join(f"{unit} ({_UNITS[unit]})" for unit in units)
        self.expected = f"a time {'from' if zero else 'above'} 0 with its unit, {listed}, such as 100ba"

    def fits(self, value: Any) -> bool:
        """See :meth:`Kind.fits`."""
        match = _TIME.fullmatch(value) if isinstance(value, str) else None
        if match is None or match[2] not in self.units:
            return False
        number = float(match[1])
        if number == 0:
            return self.zero
        return number <= 1 if match[2] == "dur" else number < 1e18 and number.is_integer()

    def hint(self, value: Any) -> str:
        """See :meth:`Kind.hint`."""
        if isinstance(value, str) and re.fullmatch(r".*\dep", value):
            return " The training data has no end, so nothing can be given in epochs (ep)."
        return ""


class Either(Kind):
    """Of one of several kinds."""

    def __init__(self, *kinds: Kind) -> None:
        self.kinds, self.expected = kinds, ", or ".join(kind.expected for kind in kinds)

    def fits(self, value: Any) -> bool:
        """See :meth:`Kind.fits`."""
        return any(kind.fits(value) for kind in self.kinds)


@dataclass(frozen=True)
class Key:
    """One key.

    Args:
        kind: what its value may be.
        default: its value where it is left out; :data:`REQUIRED` for none. Where that is a mapping or ``None``, the
            value may be ``null``.
        doc: what it is, in a few words.
    """

    kind: Kind
    default: Any
    doc: str

    def check(self, name: str, value: Any) -> Any:
        """The value to use, for a recipe that gives ``value``.

        Raises:
            InputError: it is of another kind, or ``null`` where that means nothing.
        """
        if value is None and (self.default is None or isinstance(self.default, dict)):
            return self.default
        if value is None:
            raise InputError(f"{name} is empty; it must be {self.kind.expected}. Leave the key out for its default.")
        if not self.kind.fits(value):
            raise unfit(name, value, self.kind)
        return value


def unfit(name: str, value: Any, kind: Kind) -> InputError:
    """The error for a key whose value is not of its kind."""
    shown = repr(value)
    if len(shown) > _SHOWN:
        shown = f"{shown[:_SHOWN]}..."
    return InputError(f"{name} is {shown}; it must be {kind.expected}.{kind.hint(value)}")


_NAMED = "{name: ...}"

KEYS: dict[str, Key] = {
    "variables": Key(Mapping("{run: runs/mine}"), {}, "values that the rest refers to as ${variables.NAME}"),
    "run_name": Key(Text(), REQUIRED, "names the run in loggers"),
    "seed": Key(Number(0, 2**32 - 1), 17, "of weights and the trainer; masks and data have their own"),
    "max_seq_len": Key(Number(2), REQUIRED, "tokens per sequence, as prepared"),
    "tokenizer": Key(Mapping("{name: FOLDER}"), REQUIRED, "name: Hugging Face folder or hub id; kwargs for loading it"),
    "model": Key(Mapping(_NAMED), REQUIRED, "name: composer_llama, and its settings"),
    "train_loader": Key(Mapping(_NAMED), REQUIRED, "name: dynamic_streaming, and its settings"),
    "eval_loader": Key(
        Either(Listing("{label: ..., name: one_domain, local: ...}"), Mapping("{name: per_domain, local: ...}")),
        None,
        "a list of evaluators, each with label, name: one_domain and its settings; or name: per_domain for all",
    ),
    "optimizer": Key(Mapping(_NAMED), REQUIRED, "name, lr and other settings; of the weights"),
    "scheduler": Key(Mapping(_NAMED), REQUIRED, "name, t_warmup and other settings; of the weights' learning rate"),
    "algorithms": Key(Mapping("{targeted_pruning: {...}}"), {}, "what changes training; by name, with settings"),
    "callbacks": Key(Mapping("{speed_monitor: {}}"), {}, "what watches and steers training; by name, with settings"),
    "loggers": Key(Mapping("{tensorboard: {}}"), {}, "where metrics go besides metrics.jsonl; by name, with settings"),
    "max_duration": Key(Time("ba", "sp", "tok"), REQUIRED, "when training ends"),
    "eval_interval": Key(Time("ba", "sp", "tok", "dur"), "1dur", "how often domains are evaluated"),
    "global_train_batch_size": Key(Number(1, 10**9), REQUIRED, "sequences per optimizer step, over all devices"),
    "device_train_microbatch_size": Key(
        Either(Number(1, 10**9), Choice("auto")), "auto", "sequences per forward pass on a device; 1 under FSDP2"
    ),
    "device_eval_batch_size": Key(Number(1, 10**9), 8, "sequences per evaluation pass on a device"),
    "precision": Key(Choice("amp_bf16", "amp_fp16", "fp32"), "amp_bf16", "of the forward and backward pass"),
    "fsdp_config": Key(Mapping("{activation_checkpointing: true}"), None, "settings of FSDP2; none for plain DDP"),
    "compile_config": Key(Mapping("{mode: default}"), None, "arguments of torch.compile; none to run as written"),
    "save_folder": Key(
        Text("a folder"), REQUIRED, "RUN/checkpoints, or its address; RUN also gets recipe.yaml and metrics.jsonl"
    ),
    "save_interval": Key(Time("ba", "sp", "tok", "dur"), "1dur", "how often a checkpoint is written; one at the end"),
    "save_num_checkpoints_to_keep": Key(Number(-1), -1, "the newest ones; -1 for all"),
    "save_overwrite": Key(Boolean(), False, "whether checkpoints of an earlier run may be replaced"),
    "load_path": Key(Text("a checkpoint's file or folder"), None, "checkpoint to start from, or its address"),
    "load_weights_only": Key(Boolean(), False, "take only the weights of load_path, and start at batch 0"),
    "autoresume": Key(Boolean(), False, "go on from the newest checkpoint in save_folder"),
    "device": Key(Choice("cpu", "gpu", "mps"), None, "the GPU where there is one, if left out"),
    "dist_timeout": Key(Number(1, 10**7, whole=False), 600.0, "seconds that processes wait for each other"),
    "progress_bar": Key(Boolean(), True, "a line on loss, speed and time left every few seconds"),
    "log_to_console": Key(Boolean(), False, "write metrics to the console"),
    "console_log_interval": Key(Time("ba"), "10ba", "how often"),
    "python_log_level": Key(Choice("debug", "info", "warning", "error", "critical"), "info", "of our own log"),
    "dry_run": Key(
        Either(Boolean(), Mapping("{num_devices: 8}")),
        False,
        "check and estimate only; num_devices, device_tflops, num_nodes",
    ),
}  # fmt: skip
