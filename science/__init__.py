"""Proofs in miniature: whether the method's claims hold, on a half-million-parameter model (docs/science.md)."""
