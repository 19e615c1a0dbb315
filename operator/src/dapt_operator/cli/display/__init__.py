"""Draws on the terminal what the status says. Computes no figure that the status does not hold."""
