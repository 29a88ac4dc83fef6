"""The two recipes as text: every key with what it is, as in the shipped ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from llmshearing.architecture.shapes import ModelShape
from llmshearing.new_recipe.job import Job, composer
from llmshearing.new_recipe.plan import TOP_K, WEIGHT, Training

_COLUMN = 42  # of comments
_NO_COMMENT = ""


_Line = tuple[str, str]


def prune_recipe(job: Job) -> str:
    """The first recipe."""
    plan, training = job.plan, job.plan.prune
    how = "learn which units stay" if plan.learned else "put the units that carry most under masks"
    lines = [
        (f"# {job.name}: {how}.", _NO_COMMENT),
        (f"#   {composer(job, 'prune')}", _NO_COMMENT),
        *_variables(job, "prune", {"source": (job.pruned, "str: Hugging Face folder or hub id of the model to shear")}),
        *_model(job, "${variables.source}", job.source, written=False, training=training),
        *_loader(job, _proportions(job), training),
        *(_optimizer(training) if plan.learned else _STILL),
        ("algorithms:", "what changes training; by name"),
        ("  targeted_pruning:", "all its keys: llmshearing/pruning/README.md"),
        ("    target:", f"{job.target.num_parameters():,} parameters"),
        *((f"      {name}: {size}", "int") for name, size in job.sizes.items()),
        *(_learning(training) if plan.learned else _scores(job)),
        *_callbacks(),
        *_how_long(job, training),
    ]
    return _render(lines)


def continue_recipe(job: Job) -> str:
    """The second recipe."""
    training = job.plan.after
    named = {
        "source": (job.model, "str: Hugging Face folder or hub id of the model that was sheared"),
        "sheared": (f"{job.run}/sheared", "str: where `convert shear` wrote"),
    }
    record = "${variables.sheared}/shearing.json"
    mix = [
        (f"    proportions: {record}", "the mix that pruning ended with; or {domain: share}"),
        (f"    start: {record}", "samples that pruning used: none comes twice"),
    ]
    teacher = [
        ("  source_distillation:", "all its keys: llmshearing/distillation.py"),
        ("    teacher: ${variables.source}", "str: Hugging Face folder or hub id, of the same vocabulary"),
        (f"    weight: {WEIGHT}", "float: share of the loss; the rest is the data's"),
        (f"    top_k: {TOP_K}", "int: tokens per position that are compared, for memory"),
    ]
    lines = [
        (f"# {job.name}: train the sheared model on.", _NO_COMMENT),
        (f"#   {composer(job, 'continue')}", _NO_COMMENT),
        *_variables(job, "continue", named),
        *_model(job, "${variables.sheared}", job.target, written=True, training=training),
        *_loader(job, mix, training),
        *_optimizer(training),
        ("algorithms:", "what changes training; by name"),
        *([] if job.plan.learned else teacher),
        *_CLIPPING,
        *_callbacks(),
        *_how_long(job, training),
    ]
    return _render(lines)


def _variables(job: Job, stage: str, named: Mapping[str, tuple[str, str]]) -> list[_Line]:
    return [
        ("# Add dry_run=true to check everything and to see parameters, memory and device-hours first.", _NO_COMMENT),
        ("", _NO_COMMENT),
        ("variables:", "values used below as ${variables.NAME}"),
        (f"  data: {_quoted(job.data)}", "str: where data_prep/prepare.py wrote"),
        (f"  run: {_quoted(f'{job.run}/{stage}')}", "str: everything this run writes"),
        *(
            [(f"  cache: {_quoted(f'{job.run}/cache')}", "str: shards of the data on this machine")]
            if job.remote
            else []
        ),
        *((f"  {name}: {_quoted(value)}", comment) for name, (value, comment) in named.items()),
        ("", _NO_COMMENT),
        (f"run_name: {_quoted(f'{job.name}-{stage}')}", "str: also names the run in loggers"),
        ("seed: 17", "int: of the trainer; masks and data have their own"),
        (f"max_seq_len: {job.seq_len}", "int: tokens per sequence, as prepared"),
        ("", _NO_COMMENT),
    ]


def _model(job: Job, pretrained: str, shape: ModelShape, *, written: bool, training: Training) -> list[_Line]:
    own = written or shape.head_dim * shape.num_attention_heads != shape.hidden_size  # else a config may not say it
    sizes: dict[str, Any] = {
        "model_type": (shape.model_type, "str: Hugging Face architecture"),
        "vocab_size": (shape.vocab_size, "int"),
        "hidden_size": (shape.hidden_size, "int: residual stream"),
        "intermediate_size": (shape.intermediate_size, "int: MLP neurons of each layer"),
        "num_hidden_layers": (shape.num_hidden_layers, "int"),
        "num_attention_heads": (shape.num_attention_heads, "int: query heads of each layer"),
        "num_key_value_heads": (shape.num_key_value_heads, "int: key-value heads of each layer"),
        **({"head_dim": (shape.head_dim, "int: of the source, and stays so")} if own else {}),
        "max_position_embeddings": (job.positions, "int: at least max_seq_len"),
        "tie_word_embeddings": (shape.tie_word_embeddings, "bool: one matrix for embedding and lm_head"),
        **{name: (value, type(value).__name__) for name, value in job.own.items()},
    }
    mixed = ("  init_device: mixed", "str: mixed: rank 0 reads the weights, FSDP2 hands them on; or cpu: all read")
    return [
        ("tokenizer:", "that of the model and of the prepared data"),
        (f"  name: {pretrained}", "str: Hugging Face folder or hub id"),
        ("", _NO_COMMENT),
        ("model:", "all its keys: llmshearing/models/llama.py"),
        ("  name: composer_llama", "str: a LLaMA-family model of Hugging Face"),
        (f"  pretrained: {pretrained}", "str: Hugging Face folder or hub id"),
        ("  attn_implementation: sdpa", "str: sdpa, eager or flash_attention_2 (needs the extra `flash`)"),
        *([mixed] if training.sharded else []),
        ("  expected_config:", "checked against the model; a dry run needs no more of it"),
        *((f"    {name}: {json.dumps(value).strip(chr(34))}", comment) for name, (value, comment) in sizes.items()),
        ("", _NO_COMMENT),
    ]


def _proportions(job: Job) -> list[_Line]:
    shares = ((f"      {_quoted(domain)}: {share}", _NO_COMMENT) for domain, share in job.proportions.items())
    return [("    proportions:", "share of each domain at first: of the data's tokens"), *shares]


def _loader(job: Job, mix: list[_Line], training: Training) -> list[_Line]:
    return [
        ("train_loader:", "all its keys: llmshearing/data/loaders.py"),
        ("  name: dynamic_streaming", "str: domains in a mix that can move"),
        ("  dataset:", "all its keys: llmshearing/data/dataset.py"),
        *_folders(job),
        *mix,
        (f"    update_interval: {training.interval}", "int: batches between updates of the mix"),
        ("    shuffle_seed: 9176", "int: order of samples, the same in both recipes"),
        ("    on_exhausted: repeat", "str: another pass over a domain that runs out; or stop"),
        (f"  num_workers: {2 if job.machine.gpu else 0}", "int: processes that read ahead, per device"),
        ("", _NO_COMMENT),
        ("eval_loader:", "one evaluator per domain; all keys: llmshearing/data/evaluation.py"),
        *(_evaluator(domain, job) for domain in job.proportions),
        ("", _NO_COMMENT),
    ]


def _folders(job: Job) -> list[_Line]:
    comment = "str: a folder per domain; the cache where `remote` is set"
    if not job.remote:
        return [("    local: ${variables.data}/train", comment)]
    return [
        ("    local: ${variables.cache}/train", comment),
        ("    remote: ${variables.data}/train", "str: where shards are fetched from"),
    ]


def _evaluator(domain: str, job: Job) -> _Line:
    path, remote = (
        json.dumps(f"${{variables.{name}}}/eval/{domain}", ensure_ascii=False) for name in ("cache", "data")
    )
    places = f"local: {path}, remote: {remote}" if job.remote else f"local: {remote}"
    return f"  - {{label: {_quoted(domain)}, name: one_domain, {places}}}", _NO_COMMENT


def _optimizer(training: Training) -> list[_Line]:
    return [
        ("optimizer:", "of the weights"),
        ("  name: decoupled_adamw", "str: decoupled_adamw or adamw"),
        (f"  lr: {training.lr:.1e}", "float: peak learning rate; try two to four times as much"),
        ("  betas: [0.9, 0.95]", "Adam coefficients"),
        ("  eps: 1.0e-8", "float"),
        ("  weight_decay: 0.0", "float: decoupled from lr"),
        ("", _NO_COMMENT),
        ("scheduler:", "of the weights' learning rate"),
        ("  name: cosine_with_warmup", "str: or linear_decay_with_warmup, constant_with_warmup"),
        (f"  t_warmup: {training.warmup}ba", "time of linear warm-up"),
        ("  alpha_f: 0.1", "float: final learning rate as a share of lr"),
        ("", _NO_COMMENT),
    ]


_STILL: list[_Line] = [
    ("optimizer:", "of the weights, which stand still: the fit wants those of the source"),
    ("  name: decoupled_adamw", "str: decoupled_adamw or adamw"),
    ("  lr: 0.0", "float"),
    ("", _NO_COMMENT),
    ("scheduler:", "of the weights' learning rate"),
    ("  name: constant_with_warmup", "str: or cosine_with_warmup, linear_decay_with_warmup"),
    ("  t_warmup: 0ba", "time of linear warm-up"),
    ("", _NO_COMMENT),
]
_CLIPPING: list[_Line] = [
    ("  gradient_clipping:", "of Composer"),
    ("    clipping_type: norm", "str: norm, value or adaptive"),
    ("    clipping_threshold: 1.0", "float: of the weights; masks are not clipped"),
    ("", _NO_COMMENT),
]


def _learning(training: Training) -> list[_Line]:
    return [
        ("    lr: 1.0", "float: of masks and multipliers"),
        (f"    warmup: {max(1, training.batches // 5)}ba", "time until the constraint asks for the full target"),
        *_CLIPPING,
    ]


def _scores(job: Job) -> list[_Line]:
    return [
        ("    selection: scores", "str: by what units carry; or learned, importance, random"),
        (f"    scores: {_quoted(f'{job.run}/scores.safetensors')}", "str: the file that llmshearing.score wrote"),
        ("", _NO_COMMENT),
    ]


def _callbacks() -> list[_Line]:
    losses = "${variables.data}/reference_losses.json"
    return [
        ("callbacks:", "what watches and steers training; by name"),
        ("  dynamic_batch_loading:", "all its keys: llmshearing/data/callback.py"),
        ("    update_type: doremi", "str: doremi (Algorithm 1 of the paper), ado or constant"),
        (f"    reference_losses: {losses}", "file that llmshearing.reference_loss wrote"),
        ("  speed_monitor:", "of Composer: samples, batches and tokens per second"),
        ("    window_size: 10", "int: batches that a speed is the mean of"),
        ("  lr_monitor: {}", "of Composer: the learning rate, for the report"),
        ("", _NO_COMMENT),
    ]


def _how_long(job: Job, training: Training) -> list[_Line]:
    fsdp = [
        ("fsdp_config:", "fully sharded (FSDP2)"),
        ("  activation_checkpointing: true", "bool: recompute each layer's activations"),
        ("  reshard_after_forward: true", "bool: give gathered weights back after each layer"),
        ("  mixed_precision: DEFAULT", "str: bfloat16 weights, float32 reduction"),
        ("  state_dict_type: sharded", "str: every device saves its part; latest-rank0.pt links to their folder"),
        ("", _NO_COMMENT),
    ]
    size = f"{training.batches} x {training.batch_size} x {job.seq_len} tokens"
    return [
        (f"max_duration: {training.batches}ba", size),
        (f"eval_interval: {training.interval}ba", "must meet every update of the mix"),
        (f"global_train_batch_size: {training.batch_size}", "int: sequences per step over all devices"),
        (f"device_train_microbatch_size: {training.microbatch_size}", "int: sequences per forward pass"),
        (f"device_eval_batch_size: {training.microbatch_size}", "int: sequences per evaluation pass on a device"),
        ("precision: amp_bf16", "str: amp_bf16, or fp32 where the machine does not compute in bfloat16"),
        ("", _NO_COMMENT),
        *(fsdp if training.sharded else []),
        ("save_folder: ${variables.run}/checkpoints", "str"),
        (f"save_interval: {training.save_interval}ba", "time"),
        ("save_num_checkpoints_to_keep: 2", "int: -1 keeps all"),
        ("autoresume: true", "bool: go on from the newest checkpoint in save_folder"),
        ("progress_bar: true", "bool: a line on loss, speed and time left every few seconds"),
    ]


def _quoted(text: str) -> str:
    """As YAML reads it back: plain where that is safe."""
    plain = text and all(letter.isalnum() or letter in "._/-" for letter in text) and not text[0].isdigit()
    if plain and text[0] not in "-." and text.lower() not in _WORDS:
        return text
    beyond = max(text, default="") > "\uffff"  # which JSON escapes as two halves, that YAML does not put together
    return json.dumps(text, ensure_ascii=not beyond)


_WORDS = {"true", "false", "null", "yes", "no", "on", "off", "y", "n"}


def _render(lines: list[_Line]) -> str:
    made = (f"{text:{_COLUMN - 2}}  # {comment}" if comment else text for text, comment in lines)
    return "\n".join(made) + "\n"
