"""The vocabulary of the table: what the rows and columns of a tensor belong to, and what scales them.

Literals rather than enums: they are keys of checkpoints, which hold plain types only, and a typo fails type checking.
"""

from __future__ import annotations

from typing import Final, Literal, get_args

# The dimensions that can be pruned, in the names of the Hugging Face config.
Dimension = Literal[
    "num_hidden_layers", "hidden_size", "intermediate_size", "num_key_value_heads", "num_attention_heads"
]
DIMENSIONS: Final[tuple[Dimension, ...]] = get_args(Dimension)
# What an axis of a tensor counts; of heads it has head_dim entries for each.
Axis = Literal[Dimension, "head_dim", "vocab_size"]

LAYERS: Final = "num_hidden_layers"
HIDDEN: Final = "hidden_size"
INTERMEDIATE: Final = "intermediate_size"
KV_HEADS: Final = "num_key_value_heads"
HEADS: Final = "num_attention_heads"
HEAD_DIM: Final = "head_dim"
VOCABULARY: Final = "vocab_size"

# The vectors that masks become (llmshearing.pruning.fold): ``residual`` is hidden times the layer's mask, for what a
# layer adds to the residual stream; ``heads`` has a query head's mask times that of its key-value head.
Scale = Literal["hidden", "residual", "heads", "intermediate"]
