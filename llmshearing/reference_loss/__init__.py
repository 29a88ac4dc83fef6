"""Reference losses for dynamic batch loading: measured on a model, or predicted by a scaling law.

Both come as the same JSON, which ``DynamicBatchLoading(reference_losses=PATH)`` reads::

    {"unit": "nats per token", "model": str, "num_parameters": int, "losses": {domain: float}, ...}
"""
