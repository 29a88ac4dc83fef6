"""The evaluations at the ends of a run's rounds, as far as later rounds depend on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class LossHistory:
    """One row per round, in plain types: some 16 bytes per domain and round.

    Args:
        prior: proportions in the first round of all, (domains,).
        samples: samples the run had trained on at each round's end, (rounds,).
        losses: nats per token, (rounds, domains).
        preferences: what ADO preferred then, (rounds, domains); empty rows for other rules.
    """

    prior: list[float] = field(default_factory=list)
    samples: list[int] = field(default_factory=list)
    losses: list[list[float]] = field(default_factory=list)
    preferences: list[list[float]] = field(default_factory=list)

    def add(self, sample: int, losses: Sequence[float], proportions: Sequence[float]) -> None:
        """Take a round's end; of the first round also the ``proportions`` that it held."""
        if not self.samples:
            self.prior = list(proportions)
        self.samples.append(sample)
        self.losses.append(list(losses))
        self.preferences.append([])

    def cut(self, sample: int) -> None:
        """Forget what lies beyond ``sample``: another run begins, or this one again from an earlier place."""
        rounds = sum(known <= sample for known in self.samples)
        for rows in (self.samples, self.losses, self.preferences):
            del rows[rounds:]

    def state_dict(self) -> dict[str, Any]:
        """In plain types."""
        return {
            "prior": list(self.prior),
            "samples": list(self.samples),
            "losses": [list(row) for row in self.losses],
            "preferences": [list(row) for row in self.preferences],
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> LossHistory:
        """Of a :meth:`state_dict`."""
        return cls(**{name: list(state[name]) for name in ("prior", "samples", "losses", "preferences")})
