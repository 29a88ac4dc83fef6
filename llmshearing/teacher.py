"""The teacher of a distillation: a causal LM that gives its likeliest tokens only, loaded whole and checked.

Shapes: B batch, T tokens of a sequence, D hidden size, K tokens that are compared.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, cast

import torch
from composer.core import State
from composer.utils import dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.fsdp import fully_shard
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from llmshearing.errors import InputError
from llmshearing.models.hub import hub_options
from llmshearing.models.loading import DTYPE, build_on_meta, load_reporting

TOKENS_AT_ONCE = 1024  # whose logits the teacher holds


class _Hidden(BaseModelOutputWithPastAndCrossAttentions):
    """With what causal LMs pass on besides."""

    router_logits = None


class _Given(nn.Module):
    """In place of a causal LM's layers: their output is what the LM was given as its input."""

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> _Hidden:
        """``(B, T, D)``, unchanged."""
        return _Hidden(last_hidden_state=cast(Any, inputs_embeds))


class Teacher(nn.Module):
    """A frozen causal LM whose output is log-probabilities of its likeliest tokens.

    The logits of all tokens over the whole vocabulary, which can take more memory than the model, never exist at once.
    They are the model's own, whatever it does to them after its output layer: Granite divides them, Cohere multiplies
    them, Gemma caps them.

    Args:
        model: the causal LM.
        top_k: tokens per position. ``None``: all.
        temperature: by which logits are divided.
        vocab_size: tokens of the model that count, from 0 on. ``None``: all.
    """

    def __init__(
        self, model: PreTrainedModel, *, top_k: int | None, temperature: float, vocab_size: int | None = None
    ) -> None:
        super().__init__()
        model.eval().requires_grad_(False)
        self.base = getattr(model, _base_name(model))
        self.head = _head(model)
        size = int(model.config.get_text_config().vocab_size)
        self.vocab_size = min(vocab_size or size, size)
        self.top_k, self.temperature = min(top_k or self.vocab_size, self.vocab_size), temperature

    def forward(self, **inputs: Tensor) -> tuple[Tensor, Tensor | None]:
        """What the model takes to log-probabilities and token ids, each ``(B, T, K)``.

        No ids, and all tokens in order, where all are asked for.
        """
        hidden = self.base(**inputs, use_cache=False)[0]
        rows, shape = hidden.flatten(0, -2), (*hidden.shape[:-1], self.top_k)
        values = torch.empty(len(rows), self.top_k, device=rows.device)
        ids = None if self.top_k == self.vocab_size else torch.empty_like(values, dtype=torch.long)
        for start in range(0, len(rows), TOKENS_AT_ONCE):
            chunk = slice(start, start + TOKENS_AT_ONCE)
            logits = self.head(inputs_embeds=rows[chunk].unsqueeze(0)).logits.squeeze(0)[..., : self.vocab_size]
            logits = logits.float().div_(self.temperature)
            normaliser = logits.logsumexp(-1, keepdim=True)
            if ids is None:
                torch.sub(logits, normaliser, out=values[chunk])
                continue
            likeliest, ids[chunk] = logits.topk(self.top_k, sorted=False)
            torch.sub(likeliest, normaliser, out=values[chunk])
        return values.view(shape), None if ids is None else ids.view(shape)

    def place(self, state: State) -> None:
        """On the device of this rank: whole, or under FSDP in shards, layer by layer, of what rank 0 has read."""
        if state.fsdp_config is None:
            state.device.module_to_device(self)
            return
        device = "cuda" if state.device.name == "gpu" else state.device.name
        mesh = torch.distributed.init_device_mesh(device, (dist.get_world_size(),))
        read = self.state_dict() if dist.get_global_rank() == 0 else {}  # whole, and stays where it was read
        for module in list(self.base.modules()):
            if type(module).__name__ in (cast(Any, self.base)._no_split_modules or ()):
                fully_shard(module, mesh=mesh)
        fully_shard(self, mesh=mesh)
        if read:
            self.to(device)
        else:
            self.to_empty(device=device)
        set_model_state_dict(self, read, options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True))
        for buffer in self.buffers():  # also those that no state dict holds, such as rotary frequencies
            torch.distributed.broadcast(buffer, src=0)


def _base_name(model: PreTrainedModel) -> str:
    """Where its layers are; in Gemma 3's text model that is not what ``base_model_prefix`` says."""
    if model.base_model_prefix in model._modules:
        return model.base_model_prefix
    return next(name for name, child in model.named_children() if isinstance(child, PreTrainedModel))


def _head(model: PreTrainedModel) -> PreTrainedModel:
    """The same output layer behind no layers."""
    head = copy.copy(model)
    head._modules = {**model._modules, _base_name(model): _Given()}
    return head


def load_teacher(name: str, dtype: torch.dtype, *, on_each_rank: bool = True) -> PreTrainedModel:
    """A causal LM with every tensor that its config asks for.

    Args:
        name: Hugging Face folder or hub id.
        dtype: of its weights.
        on_each_rank: ``False``: rank 0 reads it, the others have the shapes of its parameters only (``meta``).

    Raises:
        InputError: on every rank: it is missing or broken, lacks tensors, holds NaN or infinity, or is of a family
            whose output layer cannot be asked by itself.
    """
    if on_each_rank:
        return _read(name, dtype)
    model, refused = None, [""]
    if dist.get_global_rank() == 0:
        try:
            model = _read(name, dtype)
        except InputError as error:
            refused = [str(error)]
    dist.broadcast_object_list(refused)
    if refused[0]:
        raise InputError(refused[0])
    if model is not None:
        return model
    return build_on_meta(AutoConfig.from_pretrained(name, **hub_options(name)), **{DTYPE: dtype})


def _read(name: str, dtype: torch.dtype) -> PreTrainedModel:
    try:
        model, found = load_reporting(name, dtype=dtype)
    except Exception as error:  # a damaged file may raise anything
        raise InputError(f"The teacher '{name}' cannot be loaded: {' '.join(str(error).split())}") from error
    if missing := sorted(found["missing_keys"]):
        raise InputError(f"The teacher '{name}' lacks {_some(missing)}: it is incomplete. Copy or fetch it again.")
    broken = [key for key, tensor in model.named_parameters() if not torch.stack(tensor.aminmax()).isfinite().all()]
    if broken:
        raise InputError(f"The teacher '{name}' holds NaN or infinity in {_some(broken)}. Take an earlier one.")
    config = model.config.get_text_config()
    try:
        _head(model)(inputs_embeds=torch.zeros(1, 1, config.hidden_size, dtype=model.dtype))
    except Exception as error:  # whatever its code does with what it lacks
        raise InputError(
            f"A teacher of type '{config.model_type}' gives no logits from hidden states alone ({error!r}). "
            "Take one of another family."
        ) from error
    return model


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more tensors" if len(names) > 3 else "")


def load_own_tokenizer(name: str, *, local: bool = False) -> PreTrainedTokenizerBase | None:
    """The tokenizer that lies with a model, if there is one."""
    if Path(name).is_dir() and not any(Path(name).glob("*token*")):
        return None
    try:
        return AutoTokenizer.from_pretrained(name, **({"local_files_only": True} if local else hub_options(name)))
    except Exception:  # none, or one of a form that transformers here does not know
        return None


def common_vocabulary(
    teacher: str,
    teacher_size: int,
    vocab_size: int,
    teacher_tokenizer: PreTrainedTokenizerBase | None,
    tokenizer: PreTrainedTokenizerBase | None,
) -> int:
    """How many tokens, from 0 on, teacher and model have in common; the rest pads either's vocabulary.

    Args:
        teacher: its name, for messages.
        teacher_size: its vocabulary, padding included.
        vocab_size: the model's.
        teacher_tokenizer: the teacher's, if known; vocabularies of equal size are believed to be the same without.
        tokenizer: the model's, if known.

    Raises:
        InputError: their tokenizers differ, or the sizes do and the tokenizers are not known.
    """
    common = min(teacher_size, vocab_size)
    if teacher_tokenizer is None or tokenizer is None:
        if teacher_size == vocab_size:
            return common
        raise InputError(
            f"The teacher '{teacher}' has {teacher_size} tokens, the model {vocab_size}: they need the same tokenizer, "
            "beside the teacher and given with the model, to tell that only padding differs."
        )
    own, others = _words(tokenizer), _words(teacher_tokenizer)
    if own != others:
        differing = len({*own.items()} ^ {*others.items()})
        raise InputError(
            f"The teacher '{teacher}' has another tokenizer than the model: {differing} entries of their vocabularies "
            "differ. Take a teacher of the same family."
        )
    if (largest := max(tokenizer.get_vocab().values(), default=0)) >= common:
        raise InputError(
            f"The teacher '{teacher}' has {teacher_size} tokens and the model {vocab_size}, but the tokenizer gives "
            f"ids up to {largest}. Take a tokenizer without the tokens that were added."
        )
    return common


def _words(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """What a tokenizer can make of text; added tokens, such as one to pad with, are no matter."""
    added = tokenizer.get_added_vocab()
    return {token: number for token, number in tokenizer.get_vocab().items() if token not in added}
