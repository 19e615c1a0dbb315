"""Renders conversations with the base model's chat template and tells responses from context, token by token.

Templates come from strangers: they run in processes of their own, within limits. Nothing here imports torch or
transformers.
"""
