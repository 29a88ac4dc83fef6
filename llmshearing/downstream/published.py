"""Figures of public models from Table 2 of Sheared LLaMA (Xia et al., ICLR 2024, arXiv 2310.06694), in percent.

The parameters and tokens are those by which the paper names the models. Left out: LLaMA2-7B, of which the paper's first
version has the columns LAMBADA and NQ the wrong way round, and TinyLlama-1.1B, which that version does not have.
"""

from __future__ import annotations

from dataclasses import dataclass

SOURCE = "Sheared LLaMA, Table 2 (arXiv 2310.06694)"
_COLUMNS = ("SciQ", "PIQA", "WinoGrande", "ARC-E", "ARC-C", "HellaSwag", "LogiQA", "BoolQ", "LAMBADA", "NQ", "MMLU")


@dataclass(frozen=True)
class Published:
    """A row: by task in percent, and the printed average."""

    model: str
    num_parameters: float
    tokens: float
    scores: dict[str, float]
    average: float


def _row(model: str, num_parameters: float, tokens: float, figures: str) -> Published:
    *scores, average = map(float, figures.split())
    return Published(model, num_parameters, tokens, dict(zip(_COLUMNS, scores, strict=True)), average)


PUBLISHED = (
    _row("OPT-1.3B", 1.3e9, 300e9, "84.3 71.7 59.6 57.0 29.7 54.5 26.9 57.5 58.0 6.9 24.7 48.2"),
    _row("Pythia-1.4B", 1.4e9, 300e9, "86.4 70.9 57.4 60.7 31.2 53.0 27.3 57.4 61.6 6.2 25.7 48.9"),
    _row("Sheared-LLaMA-1.3B", 1.3e9, 50e9, "87.3 73.4 57.9 61.5 33.5 60.7 26.9 64.0 61.0 9.6 25.7 51.0"),
    _row("OPT-2.7B", 2.7e9, 300e9, "85.8 73.7 60.8 60.8 34.0 61.5 26.0 63.4 63.6 10.1 25.9 51.4"),
    _row("Pythia-2.8B", 2.8e9, 300e9, "88.3 74.0 59.7 64.4 36.4 60.8 28.0 66.0 64.7 9.0 26.9 52.5"),
    _row("INCITE-Base-3B", 3e9, 800e9, "90.7 74.6 63.5 67.7 40.2 64.8 27.7 65.9 65.3 14.9 27.0 54.7"),
    _row("Open-LLaMA-3B-v1", 3e9, 1e12, "91.3 73.7 61.5 67.6 39.6 62.6 28.4 70.0 65.4 18.6 27.0 55.1"),
    _row("Open-LLaMA-3B-v2", 3e9, 1e12, "91.8 76.2 63.5 66.5 39.0 67.6 28.1 69.6 66.5 17.1 26.9 55.7"),
    _row("Sheared-LLaMA-2.7B", 2.7e9, 50e9, "90.8 75.8 64.2 67.0 41.2 70.8 28.9 73.7 68.4 16.5 26.4 56.7"),
)
