"""Bad recipes, a line each: what is typed, and what the one line of error must name."""

from __future__ import annotations

# Overrides of tests.badinput's recipe, `|` between several; then what the message must name, `|` between several.
RECIPE = """
run_name= => run_name
run_name=[a] => run_name | ['a']
seed=abc => seed | 'abc'
seed=-1 => seed | -1
seed=1e20 => seed | 1e+20
seed=1.5 => seed | 1.5
seed= => seed
seed=true => seed | True
seed=[1] => seed | [1]
max_seq_len=abc => max_seq_len | 'abc'
max_seq_len=0 => max_seq_len | 0
max_seq_len=-5 => max_seq_len | -5
max_seq_len=128.5 => max_seq_len | 128.5
max_seq_len=256 => max_seq_len | 256 | 128
max_seq_len=64 => max_seq_len | 64 | 128
max_seq_len={a: 1} => max_seq_len
tokenizer=runs/debug/tokenizer => tokenizer | name
tokenizer=5 => tokenizer | 5
tokenizer.name=5 => tokenizer | 5
tokenizer.names=a => tokenizer | names | name
tokenizer.kwargs=5 => tokenizer.kwargs | 5
model=composer_llama => model | name
model.name=composer_lama => model | composer_lama | composer_llama
model.name=5 => model | 5 | composer_llama
model.pretrainedd=x => pretrainedd | pretrained
model.config=5 => model.config | 5
model.config.model_type=llamaa => llamaa
model.config.model_type=bert => bert
model.config.hidden_size=big => hidden_size | big
model.config.hidden_size=-64 => hidden_size | -64
model.config.hidden_size=0 => hidden_size | 0
model.config.num_hidden_layers=0 => num_hidden_layers | 0
model.config.num_hidden_layers=two => num_hidden_layers | two
model.config.num_attention_heads=0 => num_attention_heads | 0
model.config.num_key_value_heads=3 => num_key_value_heads | 3
model.config.head_dim=15 => head_dim | 15
model.config.vocab_size=10 => vocab | 10
model.config.max_position_embeddings=64 => max_seq_len | 128 | 64
model.config=null => model | config
model.config=null | model.pretrained=runs/nowhere => runs/nowhere
model.config=null | model.pretrained=5 => model.pretrained | 5
model.attn_implementation=flash => attn_implementation | flash
model.init_device=gpu7 => init_device | gpu7
train_loader=5 => train_loader | name
train_loader.name=dynamic => train_loader | dynamic | dynamic_streaming
train_loader.num_worker=1 => num_worker | num_workers
train_loader.num_workers=-1 => num_workers | -1
train_loader.num_workers=many => num_workers | 'many'
train_loader.num_workers=1.5 => num_workers | 1.5
train_loader.prefetch_factor=-2 => prefetch_factor | -2
train_loader.timeout=-1 => timeout | -1
train_loader.dataset=5 => dataset | 5
train_loader.dataset=null => dataset
train_loader.dataset.locl=x => locl | local
train_loader.dataset.local=5 => local | 5
train_loader.dataset.local=[] => local | []
train_loader.dataset.proportions=[0.5, 0.5] => proportions | [0.5, 0.5]
train_loader.dataset.proportions.code=half => proportions | code | 'half'
train_loader.dataset.proportions.code=-0.5 => proportions | -0.5
train_loader.dataset.proportions.code=nan => proportions | nan
train_loader.dataset.proportions.code=.inf => proportions | inf
train_loader.dataset.proportions.code=0.7 => proportions | 1.2
train_loader.dataset.proportions.books=0.0 => books
train_loader.dataset.update_interval=2ba => update_interval | '2ba'
train_loader.dataset.update_interval=0 => update_interval | 0
train_loader.dataset.update_interval=-5 => update_interval | -5
train_loader.dataset.update_interval=2.5 => update_interval | 2.5
train_loader.dataset.shuffle_seed=abc => shuffle_seed | 'abc'
train_loader.dataset.shuffle_seed=-1 => shuffle_seed | -1
train_loader.dataset.shuffle_block_size=0 => shuffle_block_size | 0
train_loader.dataset.shuffle_block_size=big => shuffle_block_size | 'big'
train_loader.dataset.predownload=-1 => predownload | -1
train_loader.dataset.download_retry=-1 => download_retry | -1
train_loader.dataset.download_timeout=soon => download_timeout | 'soon'
train_loader.dataset.cache_limit=lots => cache_limit | 'lots'
eval_loader=5 => eval_loader | name
eval_loader=[] => eval_loader | [] | label
eval_loader=[code] => eval_loader | code | label
eval_loader=[{name: one_domain, local: x}] => eval_loader[0].label | None
eval_loader=[{label: code, local: x}] => eval_loader[0] | name | one_domain
eval_loader=[{label: code, name: one_domian}] => eval_loader[0] | one_domian | one_domain
eval_loader=[{label: code, name: per_domain}] => eval_loader[0] | per_domain | one_domain
eval_loader=[{label: code, name: one_domain}] => code | local
eval_loader=[{label: code, name: one_domain, local: 5}] => code | local | 5
eval_loader=[{label: code, name: one_domain, local: []}] => code | local | []
eval_loader=[{label: code, name: one_domain, local: runs/debug/data/eval/code}] => manual | evaluator
eval_loader=[{label: code, name: one_domain, locla: x}] => code | locla | local
eval_loader=[{label: a, name: one_domain}, {label: a, name: one_domain}] => eval_loader | 'a'
eval_loader={name: per_domian} => per_domian | per_domain
eval_loader={name: one_domain, local: x} => one_domain | per_domain
eval_loader={name: per_domain, local: 5} => local | 5
eval_loader={name: per_domain, locla: x} => locla | local
eval_loader={name: per_domain, local: runs, num_workers: -1} => num_workers | -1
optimizer=adamw => optimizer | name
optimizer=null => optimizer
optimizer.name=adam => adam | adamw
optimizer.lr=-1 => optimizer | lr | -1
optimizer.lr=abc => optimizer | lr | abc
optimizer.lr=nan => optimizer | lr | nan
optimizer.lr=null => optimizer | lr
optimizer.betas=[2, 3] => optimizer | betas | 2
optimizer.betas=[0.9] => optimizer | betas | [0.9]
optimizer.betas=0.9 => optimizer | betas | 0.9
optimizer.betas=[a, b] => optimizer | betas | a
optimizer.eps=-1 => optimizer | eps | -1
optimizer.eps=small => optimizer | eps | small
optimizer.weight_decay=-1 => optimizer | weight_decay | -1
optimizer.weight_decay=much => optimizer | weight_decay | much
optimizer.weightdecay=0.1 => optimizer | weightdecay | weight_decay
scheduler=linear => scheduler | name
scheduler.name=cosine => scheduler | cosine_with_warmup
scheduler.t_warmup=ten => scheduler.t_warmup | 'ten'
scheduler.t_warmup=4 => scheduler.t_warmup | 4
scheduler.t_warmup=-5ba => scheduler.t_warmup | '-5ba'
scheduler.t_warmup=1.5ba => scheduler.t_warmup | '1.5ba'
scheduler.t_warmup=70ba => scheduler.t_warmup | 70 | 60
scheduler.t_warmup=[1] => scheduler.t_warmup | [1]
scheduler.alpha_f=low => scheduler | alpha_f | low
scheduler.alphaf=0.1 => scheduler | alphaf | alpha_f
algorithms=5 => algorithms | 5
algorithms=[targeted_pruning] => algorithms | targeted_pruning
algorithms.pruning={} => pruning | targeted_pruning
algorithms.targeted_pruning=5 => targeted_pruning | 5
algorithms.targeted_pruning.target=2.7b => target | '2.7b'
algorithms.targeted_pruning.target=[1] => target | [1]
algorithms.targeted_pruning.target.hidden=32 => hidden | hidden_size
algorithms.targeted_pruning.target.hidden_size=big => hidden_size | 'big'
algorithms.targeted_pruning.target.hidden_size=0 => hidden_size | 0
algorithms.targeted_pruning.target.hidden_size=-32 => hidden_size | -32
algorithms.targeted_pruning.target.hidden_size=32.5 => hidden_size | 32.5
algorithms.targeted_pruning.target.hidden_size=65 => hidden_size | 65 | 64
algorithms.targeted_pruning.target.num_hidden_layers=5 => num_hidden_layers | 5 | 4
algorithms.targeted_pruning.target.num_hidden_layers=true => num_hidden_layers | True
algorithms.targeted_pruning.target.num_attention_heads=3 => num_attention_heads | 3
algorithms.targeted_pruning.target.num_key_value_heads=null => num_key_value_heads
algorithms.targeted_pruning.lr=-1 => targeted_pruning | lr | -1
algorithms.targeted_pruning.lr=fast => targeted_pruning | lr | 'fast'
algorithms.targeted_pruning.lr=nan => targeted_pruning | lr | nan
algorithms.targeted_pruning.warmup=soon => targeted_pruning | warmup | 'soon'
algorithms.targeted_pruning.warmup=-5ba => targeted_pruning | warmup | '-5ba'
algorithms.targeted_pruning.warmup=70ba => targeted_pruning | warmup | 70 | 60
algorithms.targeted_pruning.warmup=5 => targeted_pruning | warmup | 5
algorithms.targeted_pruning.warmup=0.2dur | max_duration=81920tok => targeted_pruning.warmup | '0.2dur' | '81920tok'
algorithms.targeted_pruning.search=0.5dur | max_duration=640sp => targeted_pruning.search | '0.5dur' | '640sp'
algorithms.targeted_pruning.warmupp=5ba => warmupp | warmup
algorithms.targeted_pruning.seed=abc => targeted_pruning | seed | 'abc'
algorithms.targeted_pruning.compat=old => targeted_pruning | compat | 'old'
algorithms.gradient_clipping.clipping_type=norms => gradient_clipping | clipping_type | norms | norm
algorithms.gradient_clipping.clipping_threshold=-1 => gradient_clipping | clipping_threshold | -1
algorithms.gradient_clipping.clipping_threshold=high => gradient_clipping | clipping_threshold | high
algorithms.gradient_clipping=null => gradient_clipping
algorithms.source_distillation={} => source_distillation
algorithms.source_distillation.teacher=5 => source_distillation | 5
algorithms.source_distillation={teacher: runs/nowhere, weight: half} => source_distillation | weight | 'half'
callbacks=5 => callbacks | 5
callbacks=[nan_monitor] => callbacks | nan_monitor
callbacks.nan_monitr={} => nan_monitr | nan_monitor
callbacks.speed_monitor=5 => speed_monitor | 5
callbacks.speed_monitor.window=5 => speed_monitor | window | window_size
callbacks.speed_monitor.window_size=many => speed_monitor | window_size | many
callbacks.downstream_evaluation={} => downstream_evaluation | suite
callbacks.downstream_evaluation.suite=5 => downstream_evaluation | suite | 5
callbacks.downstream_evaluation.suite=papr => suite 'papr' | paper
callbacks.downstream_evaluation.suite=debug.yaml => debug.yaml | list of tasks
callbacks.downstream_evaluation={suite: quick, interval: often} => downstream_evaluation.interval | 'often' | 100ba
callbacks.downstream_evaluation={suite: quick, interval: 0ba} => downstream_evaluation.interval | '0ba'
callbacks.downstream_evaluation={suite: quick, limit: 0} => downstream_evaluation.limit | 0
callbacks.downstream_evaluation={suite: quick, eval_batch_size: many} => downstream_evaluation.eval_batch_size | 'many'
callbacks.downstream_evaluation={suite: quick, shots: 5} => downstream_evaluation | shots
callbacks.dynamic_batch_loading=5 => dynamic_batch_loading | 5
callbacks.dynamic_batch_loading.reference_losses=5 => reference_losses | 5
callbacks.dynamic_batch_loading.reference_losses.code=low => reference | code | 'low'
callbacks.dynamic_batch_loading.reference_losses.code=nan => reference | code | nan
callbacks.dynamic_batch_loading.reference_losses.code=-1 => reference | code | -1
callbacks.dynamic_batch_loading.reference_losses.extra=1 => reference | extra
callbacks.dynamic_batch_loading.eta=big => dynamic_batch_loading | eta | 'big'
callbacks.dynamic_batch_loading.eta=-1 => dynamic_batch_loading | eta | -1
callbacks.dynamic_batch_loading.floor=2 => dynamic_batch_loading | floor | 2
callbacks.dynamic_batch_loading.floor=low => dynamic_batch_loading | floor | 'low'
callbacks.dynamic_batch_loading.max_change=-1 => dynamic_batch_loading | max_change | -1
callbacks.dynamic_batch_loading.update_type=doremy => update_type | 'doremy' | doremi
callbacks.dynamic_batch_loading.predict_references=perhaps => dynamic_batch_loading | predict_references | 'perhaps'
callbacks.dynamic_batch_loading={update_type: ado, eta: 2} => dynamic_batch_loading | eta | 2 | ado
callbacks.dynamic_batch_loading={update_type: ado, floor: 0.6} => floor | 0.6
callbacks.dynamic_batch_loading={update_type: constant, predict_references: true} => predict_references | constant
callbacks.dynamic_batch_loading.floor=0.6 => floor | 0.6
callbacks.dynamic_batch_loading.floor={cod: 0.1} => floor | cod | code
callbacks.dynamic_batch_loading.reference_losses=null => dynamic_batch_loading | reference_losses | predict_references
callbacks.dynamic_batch_loading.clip=perhaps => dynamic_batch_loading | clip | 'perhaps'
loggers=5 => loggers | 5
loggers.wandbb={} => wandbb | wandb
loggers.wandb={} => wandb | install
loggers.mlflow={} => mlflow | install
max_duration=ten => max_duration | 'ten'
max_duration=4 => max_duration | 4
max_duration=0ba => max_duration | '0ba'
max_duration=-5ba => max_duration | '-5ba'
max_duration=1.5ba => max_duration | '1.5ba'
max_duration=xdur => max_duration | 'xdur'
max_duration=1dur => max_duration | '1dur'
max_duration=[20ba] => max_duration | ['20ba']
max_duration=null => max_duration
eval_interval=never => eval_interval | 'never'
eval_interval=0ba => eval_interval | '0ba'
eval_interval=xdur => eval_interval | 'xdur'
eval_interval=7ba => eval_interval | 7 | 5
eval_interval=5 => eval_interval | 5
eval_interval=true => eval_interval | True
save_interval=often => save_interval | 'often'
save_interval=-1ba => save_interval | '-1ba'
save_interval=xdur => save_interval | 'xdur'
save_interval=5 => save_interval | 5
global_train_batch_size=many => global_train_batch_size | 'many'
global_train_batch_size=0 => global_train_batch_size | 0
global_train_batch_size=-4 => global_train_batch_size | -4
global_train_batch_size=4.5 => global_train_batch_size | 4.5
global_train_batch_size=true => global_train_batch_size | True
device_train_microbatch_size=0 => device_train_microbatch_size | 0
device_train_microbatch_size=-2 => device_train_microbatch_size | -2
device_train_microbatch_size=some => device_train_microbatch_size | 'some'
device_train_microbatch_size=8 => device_train_microbatch_size | 8 | 4
device_eval_batch_size=0 => device_eval_batch_size | 0
device_eval_batch_size=few => device_eval_batch_size | 'few'
precision=fp8 => precision | 'fp8'
precision=bf17 => precision | 'bf17'
precision=amp_fp16 => precision | amp_fp16
precision=32 => precision | 32
fsdp_config=5 => fsdp_config | 5
fsdp_config.sharding=FULL => fsdp_config | sharding
compile_config=5 => compile_config | 5
compile_config.modus=x => compile_config | modus | mode
save_folder=5 => save_folder | 5
save_folder=null => save_folder
save_folder=debug.yaml/checkpoints => debug.yaml
save_num_checkpoints_to_keep=many => save_num_checkpoints_to_keep | 'many'
save_num_checkpoints_to_keep=-2 => save_num_checkpoints_to_keep | -2
save_overwrite=perhaps => save_overwrite | 'perhaps'
load_path=5 => load_path | 5
load_weights_only=2 => load_weights_only | 2
autoresume=yes_please => autoresume | 'yes_please'
device=tpuu => device | 'tpuu'
device=5 => device | 5
dist_timeout=soon => dist_timeout | 'soon'
dist_timeout=-1 => dist_timeout | -1
dist_timeout=nan => dist_timeout | nan
progress_bar=maybe => progress_bar | 'maybe'
log_to_console=maybe => log_to_console | 'maybe'
console_log_interval=often => console_log_interval | 'often'
console_log_interval=0ba => console_log_interval | '0ba'
python_log_level=loud => python_log_level | 'loud'
python_log_level=5 => python_log_level | 5
variables=5 => variables
seed.x=1 => seed
train_loader.dataset.local.x=1 => local
run_name=${variables.nothing} => nothing
run_name=??? => run_name
sede=1 => sede | seed
noequals => noequals | key=value
=5 => =5
"""

# Files that are not there: a dry run, which may be on another machine, says so and goes on; training refuses.
ABSENT = """
tokenizer.name=runs/nowhere => 'runs/nowhere'
train_loader.dataset.proportions=half => 'half'
algorithms.source_distillation.teacher=runs/nowhere => 'runs/nowhere'
callbacks.dynamic_batch_loading.reference_losses=runs/no.json => 'runs/no.json'
callbacks.downstream_evaluation={suite: runs/nowhere} => 'runs/nowhere'
load_path=runs/nowhere.pt => 'runs/nowhere.pt'
variables.data=runs/nowhere => 'runs/nowhere
"""

# Settings of the dry run alone.
DRY_RUN = """
dry_run=8 => dry_run | 8
dry_run=perhaps => dry_run | 'perhaps'
dry_run.num_devices=0 => num_devices | 0
dry_run.num_devices=many => num_devices | 'many'
dry_run.num_devices=3 => 4 | 3
dry_run.device_tflops=-1 => device_tflops | -1
dry_run.device_tflops=fast => device_tflops | 'fast'
dry_run.devices=8 => devices | num_devices
"""

# What is in the recipe's file, as Python writes bytes, and what the message must name besides the file.
FILES: list[tuple[bytes, str]] = [
    (b"", "run_name"),
    (b"5\n", "mapping"),
    (b"- a\n- b\n", "mapping"),
    (b"a: [1\n", "line 2"),
    (b"a: 1\n\tb: 2\n", "line 2"),
    (b"a: \x00\n", "bad.yaml"),
    (b"\xff\xfe\xfa", "bad.yaml"),
    (b"seed: 1\nseed: 2\n", "seed"),
    (b"a: !!python/object/apply:os.system ['true']\n", "python"),
    (b"a: *missing\n", "missing"),
    (b"a: ${a\n", "bad.yaml"),
    (b"a: ${oc.env:NOT_THERE}\n", "NOT_THERE"),
    (b"1: 2\n", "1"),
    (b"a: 'unclosed\n", "bad.yaml"),
]
