"""Downstream tasks by EleutherAI's ``lm-eval``: suites, local tasks, cached results, tables, and a Composer callback.

``lm-eval`` (``pip install 'llmshearing[eval]'``) evaluates; it is imported only where something is evaluated.
"""
