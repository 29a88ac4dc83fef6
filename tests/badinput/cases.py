"""Bad arguments of commands, a line each: what is typed, and what the one line of error must name."""

from __future__ import annotations

# Other commands: words; then what the message must name. Files are those of
# tests/badinput/conftest.py, GOOD are good options of prepare.
COMMANDS = """
train => RECIPE
train nowhere.yaml => nowhere.yaml
train runs => runs
shear => checkpoint
shear nowhere.pt out => nowhere.pt
shear debug.yaml out => debug.yaml
shear empty out => empty
shear runs/debug out => runs/debug
shear nowhere.pt out --dtype float8 => float8 | float32
shear nowhere.pt out --max-shard-size big => big | 500MB
shear nowhere.pt out --max-shard-size 5 => '5' | 500MB
shear nowhere.pt out --max-shard-size -5GB => --max-shard-size
shear nowhere.pt out --max-shard-size=-5GB => -5GB
shear nowhere.pt out --max-shard-size nanGB => nanGB
shear nowhere.pt out --max-shard-size infGB => infGB
shear nowhere.pt out --overwritten => overwritten
export nowhere.pt out => nowhere.pt
export empty out => empty
export debug.yaml out => debug.yaml
export runs/debug out => runs/debug
export nowhere.pt debug.yaml => debug.yaml
rotate => model
rotate runs/nowhere out --data runs/debug/data => runs/nowhere
rotate model out => --data
rotate model out --data runs/nowhere => runs/nowhere
rotate model out --data runs/debug/data --sequences 0 => 0
rotate model out --data runs/debug/data --sequences -3 => -3
rotate model out --data runs/debug/data --sequences some => some
rotate model out --data runs/debug/data --dtype int8 => int8
rotate model runs --data runs/debug/data => runs
rotate model model --data runs/debug/data => model
rotate runs/debug/tokenizer out --data runs/debug/data => runs/debug/tokenizer
reference => command
reference eval => MODEL
reference eval runs/nowhere runs/debug/data => runs/nowhere
reference eval model runs/nowhere => runs/nowhere
reference eval model debug.yaml => debug.yaml
reference eval model runs/debug/data --batch-size 0 => 0
reference eval model runs/debug/data --batch-size -1 => -1
reference eval model runs/debug/data --batch-size some => some
reference eval model runs/debug/data --dtype float8 => float8
reference eval model runs/debug/data --out runs => runs
reference eval runs/debug/tokenizer runs/debug/data => runs/debug/tokenizer
score model => --data
score model out => --data
score runs/nowhere out --data runs/debug/data => runs/nowhere
score model out --data runs/nowhere => runs/nowhere
score model out --data runs/debug/data --sequences 0 => 0
score model out --data runs/debug/data --sequences some => some
score model runs --data runs/debug/data => runs
quality --source model --data runs/debug/data => MODEL
quality model --data runs/debug/data => --source
quality model --source model => --data
quality runs/nowhere --source model --data runs/debug/data => runs/nowhere
quality model --source runs/nowhere --data runs/debug/data => runs/nowhere
quality model --source model --data runs/nowhere => runs/nowhere
quality model --source model --data debug.yaml => debug.yaml
quality model --source model --data runs/debug/data --dtype float8 => float8
quality model --source model --data runs/debug/data --out runs => runs
downstream --suite runs/debug/data => MODEL
downstream model => --suite
downstream model --suite papr => papr | paper
downstream model --suite nowhere.yaml => nowhere.yaml
downstream model --suite empty => empty | list of tasks
downstream model --suite debug.yaml => debug.yaml | list of tasks
downstream model --suite list.json => list.json | list of tasks
downstream model --suite folder => folder | no prepared domain
downstream runs/nowhere --suite runs/debug/data => runs/nowhere
downstream runs/debug/tokenizer --suite runs/debug/data => runs/debug/tokenizer
downstream model runs/nowhere --suite runs/debug/data => runs/nowhere
downstream model --suite runs/debug/data --limit 0 => --limit | 0
downstream model --suite runs/debug/data --limit some => some
downstream model --suite runs/debug/data --batch-size 0 => --batch-size | 0
downstream model --suite runs/debug/data --batch-size many => --batch-size | many
downstream model --suite runs/debug/data --dtype int8 => int8
downstream model --suite runs/debug/data --tokens 1 2 => --tokens | 2 numbers for 1 models
downstream model --suite runs/debug/data --tokens nan => --tokens | nan
downstream model --suite runs/debug/data --out runs => runs
reference fit => LOSSES
reference fit nowhere.json --num-parameters 5 => nowhere.json
reference fit debug.yaml --num-parameters 5 => debug.yaml
reference fit empty --num-parameters 5 => empty
reference fit runs --num-parameters 5 => runs
reference fit list.json --num-parameters 5 => list.json
reference fit nan.json --num-parameters 5 => nan.json
reference fit text.json --num-parameters 5 => text.json
reference fit debug.yaml --num-parameters big => big
reference fit debug.yaml => --num-parameters
prepare => INPUT
prepare nowhere out GOOD => nowhere
prepare debug.yaml out GOOD => debug.yaml
prepare corpus out GOOD --tokenizer runs/nowhere => runs/nowhere
prepare corpus out GOOD --tokenizer debug.yaml => debug.yaml
prepare corpus out GOOD --seq-len 0 => seq-len | 0
prepare corpus out GOOD --seq-len -128 => seq-len | -128
prepare corpus out GOOD --seq-len long => seq-len | long
prepare corpus out GOOD --eval-sequences -1 => eval-sequences | -1
prepare corpus out GOOD --eval-sequences many => eval-sequences | many
prepare corpus out GOOD --eval-sequences 99999999 => --eval-sequences | 'code'
prepare corpus out GOOD --workers 0 => workers | 0
prepare corpus out GOOD --workers -1 => workers | -1
prepare corpus out GOOD --max-bad-share nan => bad-share | nan
prepare corpus out GOOD --max-bad-share 2 => bad-share | 2
prepare corpus out GOOD --max-bad-share -1 => bad-share | -1
prepare corpus out GOOD --token-type int8 => int8
prepare corpus out GOOD --text-key none => none
prepare corpus debug.yaml GOOD => debug.yaml
prepare folder out GOOD => folder
prepare corpus out --seq-len 128 --eval-sequences 16 => --tokenizer
tokenizer => CORPUS
tokenizer nowhere out => nowhere
tokenizer debug.yaml out => debug.yaml
tokenizer folder out => folder
tokenizer corpus out --vocab-size 0 => 0
tokenizer corpus out --vocab-size -5 => -5
tokenizer corpus out --vocab-size big => big
tokenizer corpus out --vocab-size 99999999 => 99999999
tokenizer corpus out --bytes-per-domain 0 => 0
tokenizer corpus out --bytes-per-domain much => much
tokenizer corpus debug.yaml => debug.yaml
tokenizer corpus runs => runs
report => RUN_DIR
report nowhere => nowhere
report debug.yaml => debug.yaml
report folder => folder
report runs/debug/data => runs/debug/data
"""


def table(text: str) -> list[tuple[str, list[str]]]:
    """The lines of a table: what is typed, and what the message must name."""
    lines = [line.split(" => ") for line in text.strip().splitlines()]
    return [(typed, names.split(" | ")) for typed, names in lines]
