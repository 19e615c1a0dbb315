"""Extends a tokenizer by the domain's words, and the model's matrices by the rows of the new tokens."""
