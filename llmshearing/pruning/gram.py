"""Ridge regression from sums over tokens.

Letters: n tokens, i inputs of a map, o outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llmshearing.errors import InputError

NOISE = 2.0  # of a ridge, for each input per token


class Gram:
    """Sums over tokens for a ridge regression of outputs (n, o) on inputs (n, i), in float64."""

    def __init__(self) -> None:
        self.inputs: Tensor | None = None  # (i, i)
        self.products: Tensor | None = None  # (i, o)
        self.tokens = 0

    def add(self, x: Tensor, y: Tensor, weights: Tensor | None = None) -> None:
        """Count a batch: ``x`` (n, i), ``y`` (n, o), ``weights`` (n, 1) of the squared errors' roots."""
        x, y = x.double(), y.double()
        if weights is not None:
            x, y = x * weights, y * weights
        self.tokens += len(x)
        inputs, products = x.T @ x, x.T @ y
        self.inputs = inputs if self.inputs is None else self.inputs.add_(inputs)
        self.products = products if self.products is None else self.products.add_(products)

    def solve(self, weight: Tensor, ridge: float, name: str) -> Tensor:
        """The map (o, i) of least squared error with a ridge towards ``weight`` (o, i), in its dtype.

        The ridge is ``ridge`` and what few tokens ask for, :data:`NOISE` times i / n, of the inputs' mean square: the
        best one grows with the number of inputs per observation (Hoerl, Kennard and Baldwin, 1975, "Ridge regression:
        some simulations").

        Raises:
            InputError: what was counted is not finite, or zero; ``name`` says of what.
        """
        assert self.inputs is not None
        assert self.products is not None
        if not (torch.isfinite(self.inputs).all() and torch.isfinite(self.products).all()):
            raise InputError(f"Activations at {name} are not finite. Take other text or another model, or float32.")
        pull = (ridge + NOISE * len(self.inputs) / self.tokens) * self.inputs.diagonal().mean()
        if not pull:
            raise InputError(f"Activations at {name} are all zero. Take other text.")
        eye = torch.eye(len(self.inputs), dtype=self.inputs.dtype, device=self.inputs.device)
        # The change of the weight rather than the weight: exact where there is nothing to change.
        missing = self.products - self.inputs @ weight.double().T
        return weight + torch.linalg.solve(self.inputs + pull * eye, missing).T.to(weight.dtype)
