"""Measures models: perplexities, tasks and probes. It changes no model."""
