"""Measures of a model: perplexities, tasks, probes."""
