"""What one module of a model is: its axes, what it reads, and what masks scale.

Mixture-of-experts will be an axis ``num_experts`` and one more axis in front of ``rows`` and ``columns``: a stack of
expert matrices is (experts, rows, columns), a router has experts as rows, an expert's neurons are an axis of their own
width. A mask on an expert scales what the router gives it, as the scale ``heads`` scales what o_proj reads.
"""

from __future__ import annotations

from dataclasses import dataclass

from llmshearing.architecture.axes import HEAD_DIM, HEADS, HIDDEN, Axis, Scale


@dataclass(frozen=True)
class NormKind:
    """How a family's RMSNorm computes, to the last bit.

    Args:
        offset: the weight is added to one.
        wide: the weight multiplies in float32, before the result gets the dtype of the input.
        eps: the attribute that holds epsilon.
    """

    offset: bool = False
    wide: bool = False
    eps: str = "variance_epsilon"


LLAMA_NORM = NormKind()


@dataclass(frozen=True)
class Module:
    """A module with a weight and perhaps a bias.

    Args:
        name: inside its decoder layer, or in the whole model.
        rows: axes of the weight's rows and of the bias; several for matrices fused into one, in their order.
        columns: axis of the weight's columns; ``None`` for a norm, whose weight is a vector.
        scale_rows: what multiplies the rows.
        scale_columns: what multiplies the columns.
        reads: the norm of the residual stream that feeds the columns, named as ``name`` is; ``None`` if none does.
        bias: the field of :class:`~llmshearing.architecture.shapes.ModelShape` that says whether there is one.
        present: the field that says whether the module itself is there.
    """

    name: str
    rows: tuple[Axis, ...]
    columns: Axis | None = None
    scale_rows: Scale | None = None
    scale_columns: Scale | None = None
    reads: str | None = None
    bias: str | None = None
    present: str | None = None

    @property
    def is_norm(self) -> bool:
        """Whether this is a norm, of the residual stream or of queries or keys."""
        return self.columns is None

    @property
    def is_hidden_norm(self) -> bool:
        """Whether this is a norm over the hidden dimensions."""
        return self.is_norm and self.rows == (HIDDEN,)


def reader(name: str, *rows: Axis, reads: str | None, bias: str | None = None) -> Module:
    """A matrix that reads the residual stream, through the norm ``reads`` where there is one."""
    return Module(name, rows, HIDDEN, reads=reads, bias=bias)


def writer(name: str, columns: Axis, *, normed: bool = False, bias: str | None = None) -> Module:
    """A matrix whose output is added to the residual stream; where a norm comes between, that one is scaled."""
    scale_columns: Scale = "heads" if columns == HEADS else "intermediate"
    scale_rows: Scale | None = None if normed else "residual"
    return Module(name, (HIDDEN,), columns, scale_rows, scale_columns, bias=bias)


def norm(name: str) -> Module:
    """A norm of the residual stream, in front of what reads it."""
    return Module(name, (HIDDEN,), scale_rows="hidden")


def post_norm(name: str) -> Module:
    """A norm of what a layer is about to add to the residual stream."""
    return Module(name, (HIDDEN,), scale_rows="residual")


def head_norm(name: str, axis: Axis = HEAD_DIM) -> Module:
    """A norm of queries or keys: of each head for itself, or over all heads at once."""
    return Module(name, (axis,), present="qk_norm")
