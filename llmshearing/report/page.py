"""The HTML page around the pictures."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from llmshearing.downstream.table import table_of
from llmshearing.duration import in_words
from llmshearing.report import charts, training
from llmshearing.report.collect import Run, Stage
from llmshearing.report.maps import kept_maps
from llmshearing.report.style import DOMAIN_COLOURS, FONT, Picture

_CSS = """
:root { color-scheme: light dark; --ink: #1f2328; --muted: #667085; --line: #e4e7ec; --paper: #fff;
  --ground: #f7f8fa; --accent: #0072b2; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --muted: #9aa4b2; --line: #343a43; --paper: #1b1f24;
  --ground: #111418; --accent: #56b4e9; } figure svg { filter: brightness(1.15); } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 16px/1.55 FONT; }
main { max-width: 1240px; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .25rem; letter-spacing: -.015em; }
h2 { font-size: 1.4rem; margin: 3.5rem 0 .1rem; letter-spacing: -.01em; scroll-margin-top: 1rem; }
h3 { font-size: 1.05rem; margin: 2rem 0 .1rem; }
p { max-width: 46rem; margin: .25rem 0 .75rem; }
.facts, .how, figcaption span { color: var(--muted); }
.how { font-size: .92rem; }
.warning { border-left: 3px solid #d55e00; padding: .1rem 0 .1rem .75rem; }
nav { margin: 1rem 0 0; display: flex; flex-wrap: wrap; gap: .4rem 1.2rem; }
a { color: var(--accent); text-decoration: none; }
a:hover { text-decoration: underline; }
.grid { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, var(--column)), 1fr)); }
.row { display: flex; flex-wrap: wrap; gap: 0 2rem; }
figure { margin: 0; padding: .9rem 1rem .8rem; background: var(--paper); border: 1px solid var(--line);
  border-radius: 10px; }
figure svg { display: block; width: 100%; height: auto; }
figure svg text { font-family: FONT !important; }
.point { fill: transparent; }
.point:hover { fill: var(--ink); fill-opacity: .35; }
details { margin: .5rem 0; }
summary { cursor: pointer; color: var(--accent); }
pre { overflow-x: auto; padding: .9rem 1rem; background: var(--paper); border: 1px solid var(--line);
  border-radius: 10px; font-size: .85rem; line-height: 1.4; }
figcaption { font-size: .9rem; line-height: 1.4; margin-bottom: .5rem; }
figcaption strong { display: block; font-weight: 600; font-size: 1rem; }
.dot { display: inline-block; width: .7em; height: .7em; border-radius: 50%; margin-right: .45em; }
.row > div { max-width: 100%; }
.table { overflow-x: auto; background: var(--paper); border: 1px solid var(--line); border-radius: 10px;
  width: fit-content; max-width: 100%; margin: .5rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .95rem; }
th, td { padding: .45rem 1rem; text-align: right; white-space: nowrap; border-top: 1px solid var(--line); }
thead th { border-top: 0; color: var(--muted); font-weight: 500; }
th:first-child { text-align: left; font-weight: 500; }
tr.total > * { font-weight: 650; }
.texts th, .texts td { text-align: left; vertical-align: top; white-space: normal; min-width: 9rem; }
@media (max-width: 560px) { th, td { padding: .4rem .45rem; } table { font-size: .8rem; } }
""".replace("FONT", FONT)


def render(run: Run) -> str:
    """The whole page as HTML that refers to nothing outside itself."""
    domains = run.domains()
    colours = {domain: DOMAIN_COLOURS[index % len(DOMAIN_COLOURS)] for index, domain in enumerate(domains)}
    overview = _group("", "", training.compared(run.stages), column=560)
    if run.summary:
        overview = _summary(run.summary, colours) + overview
    sections = [("Summary", overview)] if overview else []
    if run.downstream:
        sections.append(("Downstream tasks", _downstream(run.downstream)))
    if samples := run.summary.get("samples"):
        sections.append(("What they write", _samples(samples)))
    sections += [(stage.name, _stage(stage, colours)) for stage in run.stages]
    for folders, shearing in run.shearings:
        places = ", ".join(folder for folder in folders if folder != ".")
        sections.append((f"What was kept ({places})" if places else "What was kept", _kept(shearing)))
    links = body = ""
    for number, (heading, content) in enumerate(sections):
        heading = html.escape(heading)
        links += f'<a href="#section-{number}">{heading}</a>'
        body += f'<h2 id="section-{number}">{heading}</h2>\n{content}'
    title = html.escape(f"Run {run.name}")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{title}</h1>\n<nav>{links}</nav>\n{body}</main>\n</body>\n</html>\n"
    )


def _stage(stage: Stage, colours: Mapping[str, str]) -> str:
    facts = [f"{stage.num_batches:,} batches"]
    if "tokens" in stage.series and np.isfinite(stage.series["tokens"].last):
        facts.append(f"{_short(stage.series['tokens'].last)} tokens")
    if "time" in stage.series and len(times := stage.series["time"].finite):
        facts.append(f"{in_words(times.max() - times.min())} from the first to the last record")
    parts = [f'<p class="facts">{" · ".join(facts)}</p>\n']
    for name, (count, first) in stage.not_finite().items():
        parts.append(
            f'<p class="warning"><b>{html.escape(name)}</b> is NaN or infinite in {count} records, first at batch '
            f"{first}; its curve has gaps there.</p>\n"
        )
    mix, losses = charts.proportions(stage, colours), charts.domain_losses(stage, colours)
    reading = "Domain losses are on held-out text. Each picture has its own scale." if losses else ""
    if losses and stage.group("data/reference_loss/"):
        reading += " The dashed line is the reference loss: a domain gets more data while its curve is above it."
    lines = charts.training_loss(stage) + charts.mean_loss(stage) + mix + losses
    parts += [
        _group("Losses and data mix" if mix else "Losses", reading, lines),
        _group(
            "Towards the target shape",
            "Above: the size that the masks now expect (mean over layers where each layer has its own) should follow "
            "the dashed target down and stay on it. Middle: masks whose chance of being kept is neither near 0 nor "
            "near 1; few should be left at the end. Below: the multipliers that press on the constraint, as means.",
            charts.dimensions(stage) + charts.constraint(stage),
        ),
        _group("Downstream tasks", "", training.downstream(stage)),
        _group("How it ran", "", training.training(stage, colours)),
        _settings(stage),
    ]
    return "".join(parts)


def _settings(stage: Stage) -> str:
    """What the stage ran on, and its recipe, folded away."""
    parts = []
    for entry in stage.environments:
        facts = " · ".join(f"{name} {value}" for name, value in entry.items())
        parts.append(f'<p class="facts">{html.escape(facts)}</p>\n')
    if stage.recipe:
        recipe = html.escape(stage.recipe)
        parts.append(f"<details><summary>The recipe, as it was resolved</summary>\n<pre>{recipe}</pre></details>\n")
    return f"<h3>Settings</h3>\n{''.join(parts)}" if parts else ""


def _kept(shearing: dict[str, Any]) -> str:
    return _group(
        "",
        "Blue units of the source model stay, grey ones go. A layer that is grey throughout is dropped whole.",
        kept_maps(shearing),
        column=440,
    )


def _group(title: str, how: str, pictures: Iterable[Picture], *, column: int = 330) -> str:
    """Pictures in a grid under a heading and a line on how to read them; nothing where there are none."""
    figures = "".join(
        f"<figure><figcaption><strong>{html.escape(picture.title)}</strong><span>{html.escape(picture.note)}</span>"
        f"</figcaption>{picture.svg}</figure>\n"
        for picture in pictures
    )
    if not figures:
        return ""
    heading = f"<h3>{title}</h3>\n" if title else ""
    reading = f'<p class="how">{how}</p>\n' if how else ""
    return f'{heading}{reading}<div class="grid" style="--column: {column}px">\n{figures}</div>\n'


#: Tables of a summary by key: title, and rows of name, entry and format.
_MEASURED: dict[str, tuple[str, list[tuple[str, str, str]]]] = {
    "quality": (
        "On held-out text",
        [
            ("agreement with the source on the next token", "agreement", ".1%"),
            ("true continuation found among four", "choices", ".1%"),
        ],
    ),
    "speed": (
        "Generation",
        [
            ("tokens of a prompt per second", "prefill_tokens_per_s", ",.0f"),
            ("new tokens per second", "decode_tokens_per_s", ",.1f"),
            ("seconds for both", "latency_s", ".2f"),
        ],
    ),
}


def _samples(samples: Mapping[str, Mapping[str, str]]) -> str:
    """Texts side by side, a row for each prompt."""
    models = list(next(iter(samples.values())))
    head = "".join(f"<th>{html.escape(model)}</th>" for model in models)
    body = ""
    for prompt, texts in samples.items():
        cells = "".join(f"<td>{html.escape(texts.get(model, '').removeprefix(prompt))}</td>" for model in models)
        body += f"<tr><th>{html.escape(prompt)}</th>{cells}</tr>\n"
    return (
        '<div class="table texts"><table><thead><tr><th></th>'
        f"{head}</tr></thead><tbody>\n{body}</tbody></table></div>\n"
    )


def _summary(summary: dict[str, Any], colours: Mapping[str, str]) -> str:
    facts = [f"Seed {summary['seed']}."] if "seed" in summary else []
    tables = []
    if losses := summary.get("eval_loss"):
        if "final" in losses and "control" in losses:
            gain = losses["control"]["mean"] - losses["final"]["mean"]
            control = html.escape(str(summary.get("control", "")))
            facts.append(
                f"The final model's mean loss is {abs(gain):.3f} nats per token {'below' if gain > 0 else 'above'} "
                f"that of the control{': ' * bool(control)}{control}."
            )
        names = [*colours, "mean"]
        rows = {name: [_number(by_domain.get(name), ".3f") for by_domain in losses.values()] for name in names}
        if parameters := summary.get("parameters"):
            rows["parameters"] = [_short(parameters[model]) if model in parameters else "" for model in losses]
        tables.append(_table("Evaluation loss, nats per token", list(losses), rows, colours))
    for key, (title, measures) in _MEASURED.items():
        if found := summary.get(key):
            rows = {
                name: [_number(entry.get(column), form) for entry in found.values()] for name, column, form in measures
            }
            tables.append(_table(title, list(found), rows, {}))
    if proportions := summary.get("proportions"):
        rows = {name: [_number(mix.get(name), ".1%") for mix in proportions.values()] for name in colours}
        tables.append(_table("Proportions at the end of a stage", list(proportions), rows, colours))
    columns = {"tokens": _short, "wall_s": in_words}
    if present := [key for key in columns if summary.get(key)]:
        stages = list(dict.fromkeys(stage for key in reversed(present) for stage in summary[key]))
        rows = {
            stage: [columns[key](summary[key][stage]) if stage in summary[key] else "" for key in present]
            for stage in stages
        }
        headings = [{"tokens": "tokens", "wall_s": "wall time"}[key] for key in present]
        tables.append(_table("Cost of a stage", headings, rows, {}))
    return f'<p class="facts">{" ".join(facts)}</p>\n<div class="row">\n{"".join(tables)}</div>\n'


def _downstream(found: Mapping[str, Any]) -> str:
    """The table of the command, a row for each model."""
    header, rows, notes = table_of(found)
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    body = "".join(
        "<tr>" + "".join(_cell(cell, not place) for place, cell in enumerate(row)) + "</tr>\n" for row in rows
    )
    how = f"In percent, by lm-eval {found['lm_eval']}, suite {found['suite']}; shots in parentheses. {' '.join(notes)}"
    table = f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table>"
    return f'<p class="how">{html.escape(how)}</p>\n<div class="table">{table}</div>\n'


def _cell(text: str, heads: bool) -> str:
    return f"<th>{html.escape(text)}</th>" if heads else f"<td>{html.escape(text)}</td>"


def _table(title: str, columns: list[str], rows: Mapping[str, list[str]], colours: Mapping[str, str]) -> str:
    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    body = ""
    for name, cells in rows.items():
        dot = f'<span class="dot" style="background:{colours[name]}"></span>' if name in colours else ""
        total = ' class="total"' if name == "mean" else ""
        body += f"<tr{total}><th>{dot}{html.escape(name)}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>\n"
    table = f"<table><thead><tr><th></th>{head}</tr></thead><tbody>\n{body}</tbody></table>"
    return f'<div><h3>{title}</h3>\n<div class="table">{table}</div></div>\n'


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _short(number: float) -> str:
    """A count in three or so digits: 1.35 B, 24.6 M, 812."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= 0.9995 * size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f}"
