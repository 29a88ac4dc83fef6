"""What ``trl`` and ``peft`` are given, and the folder that comes of it."""

from __future__ import annotations

import copy
import dataclasses
import logging
import math
import os
import random
from pathlib import Path
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProgressCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from llmshearing.convert.output import check_output, output_folder
from llmshearing.errors import InputError
from llmshearing.fileio import refuse_address, remove, write_json
from llmshearing.models.loading import DTYPE, default_device, keep_generation_config
from llmshearing.models.pretrained import is_finite
from llmshearing.reference_loss.evaluate import causal_config, load_model
from llmshearing.tokenizer import model_tokenizer
from llmshearing.tune.chats import Chat, read_chats
from llmshearing.tune.encode import Example, encode_all
from llmshearing.tune.libraries import libraries
from llmshearing.tune.resume import checkpoints_of, day_of, digest_of_examples, digest_of_weights, open_checkpoints
from llmshearing.tune.settings import Settings
from llmshearing.tune.template import Turns, prepare_tokenizer

log = logging.getLogger(__name__)


def tune(
    model_name: str, chats: str | Path, out: str | Path, settings: Settings | None = None, *, overwrite: bool = False
) -> dict[str, Any]:
    """Tune a model on conversations and write it, with its chat template, as a Hugging Face folder.

    Weights are in float32 during training, with bfloat16 arithmetic on a GPU, and written in the model's own type. The
    loss is on answers only. A killed run goes on from its last checkpoint when it is called again with the same.

    Args:
        model_name: Hugging Face folder or hub id of a causal LM.
        chats: JSON lines, see :mod:`llmshearing.tune.chats`.
        out: the folder to create; checkpoints are beside it until it is there.
        settings: how.
        overwrite: replace the model that is at ``out``.

    Returns:
        What ``tuning.json`` in the folder holds: settings, conversations used and left out, losses in nats per token.

    Raises:
        InputError: something given is wrong; trl or peft is missing; the loss is not finite.
    """
    settings = settings or Settings()
    settings.check()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError(f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but tuning runs in one process. Start one.")
    refuse_address(out, "a model is tuned", "Give a path, and copy the folder there afterwards.")
    place = Path(check_output(out, overwrite=overwrite, source=model_name))
    libraries()
    given = _sampled(read_chats(chats), settings)
    config = causal_config(model_name)
    tokenizer = model_tokenizer(model_name)
    text_config = config.get_text_config()
    turns = prepare_tokenizer(tokenizer, model_name, vocab_size=text_config.vocab_size, template=settings.chat_template)
    folder = checkpoints_of(place)
    turns = dataclasses.replace(turns, day=(day := day_of(folder)))
    positions = getattr(text_config, "max_position_embeddings", None)
    max_length = _max_length(settings, positions, model_name)
    examples, left_out = encode_all(given, tokenizer, turns, max_length=max_length, vocab_size=text_config.vocab_size)
    record: dict[str, Any] = {
        "format": 1,
        **dataclasses.asdict(settings),
        "max_length": max_length,
        "learning_rate": settings.learning_rate or (5e-5 if settings.lora is None else 2e-4),
        "conversations": len(examples),
        "left_out": left_out,
        "answer_tokens": sum(sum(example.completion_mask) for example in examples),
        "examples_digest": digest_of_examples(examples),
        "weights_digest": digest_of_weights(model_name, config),
        "end_of_turn": tokenizer.convert_ids_to_tokens(turns.end),
        "day": day.isoformat(),
    }
    checkpoint = open_checkpoints(folder, record)
    log.info("%d conversations, %d tokens of answers.", record["conversations"], record["answer_tokens"])
    set_seed(settings.seed)  # before LoRA draws its weights
    model = load_model(model_name, config, dtype="float32")
    keep_generation_config(model)  # which checkpoints hold too
    dtype = getattr(config, DTYPE, None) or torch.float32
    # The trainer makes the model's special tokens those of the tokenizer, which may be none of its business.
    generation = _ending_at(copy.deepcopy(model.generation_config) or GenerationConfig(), turns)
    tokens = {name: getattr(model.config, name, None) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    trainer = _trainer(model, tokenizer, turns, examples, folder, record)
    trainer.train(resume_from_checkpoint=checkpoint)
    if tokenizer.eos_token_id != tokens["eos_token_id"]:
        log.info("The folder keeps the special tokens of the model's own config, whatever the trainer said of them.")
    record["losses"] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    with output_folder(place, overwrite=overwrite) as unfinished:
        trained = trainer.model
        if settings.lora is not None:
            if settings.keep_adapter:
                trained.save_pretrained(unfinished / "adapter")
            trained = trained.merge_and_unload()
        _check_finite(trained)
        trained.config.update({**tokens, "use_cache": True})
        trained.generation_config = generation
        trained.to(dtype if isinstance(dtype, torch.dtype) else torch.float32).save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        write_json(unfinished / "tuning.json", record)
    remove(folder)
    return record


def _sampled(chats: list[Chat], settings: Settings) -> list[Chat]:
    if settings.sample is not None:
        if settings.sample > len(chats):
            raise InputError(f"--sample is {settings.sample}, but there are {len(chats)} conversations. Lower it.")
        chosen = sorted(random.Random(settings.seed).sample(range(len(chats)), settings.sample))
        chats = [chats[index] for index in chosen]
    return chats if settings.rounds is None else [chat.rounds(settings.rounds) for chat in chats]


def _max_length(settings: Settings, positions: int | None, name: str) -> int:
    if settings.max_length is None:
        return min(512, positions or 512)
    if positions is not None and settings.max_length > positions:
        raise InputError(f"--max-length is {settings.max_length}, but '{name}' has {positions} positions. Lower it.")
    return settings.max_length


def _trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    turns: Turns,
    examples: list[Example],
    folder: Path,
    record: dict[str, Any],
) -> Any:
    """trl's SFTTrainer, set up."""
    trl, peft, datasets = libraries()
    micro = min(record["micro_batch_size"], record["batch_size"])
    gpu = default_device().type == "cuda"
    arguments = trl.SFTConfig(
        output_dir=str(folder),
        num_train_epochs=record["epochs"],
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=record["batch_size"] // micro,
        learning_rate=record["learning_rate"],
        weight_decay=0.0,
        lr_scheduler_type="cosine",
        warmup_ratio=record["warmup"],
        gradient_checkpointing=record["gradient_checkpointing"],
        bf16=gpu,
        use_cpu=not gpu,
        seed=record["seed"],
        data_seed=record["seed"],
        save_steps=record["save_interval"],
        save_total_limit=2,  # one is whole while the other is written
        logging_steps=1,
        logging_nan_inf_filter=False,  # which would hide them
        report_to="none",
        dataloader_pin_memory=gpu,
        # Ids and masks are there: nothing is left to be rendered, cut off or added.
        completion_only_loss=True,
        max_length=None,
        pad_token=tokenizer.convert_ids_to_tokens(turns.pad),
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # else several GPUs would each take a micro batch, under DataParallel
    adapter = None
    if record["lora"] is not None:
        rank = record["lora"]
        adapter = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    rows = [{"input_ids": one.input_ids, "completion_mask": one.completion_mask} for one in examples]
    trainer = trl.SFTTrainer(
        model=model.train(),
        args=arguments,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=adapter,
    )
    trainer.remove_callback(ProgressCallback)  # which writes to stdout
    trainer.add_callback(_Progress())
    return trainer


class _Progress(ProgressCallback):
    """A bar on stderr that says the loss; a loss that is not finite ends the run."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        loss = (logs or {}).get("loss")
        if loss is None:
            return
        if not math.isfinite(loss):
            raise InputError(f"The loss is {loss} in step {state.global_step}. Lower --learning-rate.")
        if self.training_bar is not None:
            self.training_bar.set_postfix(loss=f"{loss:.3f}")


def _ending_at(generation: GenerationConfig, turns: Turns) -> GenerationConfig:
    """A generation config by which generation ends at the end of an answer, besides where it ended before."""
    before = generation.eos_token_id if isinstance(generation.eos_token_id, list) else [generation.eos_token_id]
    ends = list(dict.fromkeys([turns.end, *(token for token in before if token is not None)]))
    generation.eos_token_id = ends if len(ends) > 1 else ends[0]
    generation.use_cache = True
    if generation.pad_token_id is None:
        generation.pad_token_id = turns.pad
    return generation


def _check_finite(model: PreTrainedModel) -> None:
    for name, parameter in model.named_parameters():
        if not is_finite(parameter):
            raise InputError(f"'{name}' holds NaN or infinity after training, so nothing is written. Train with less.")
