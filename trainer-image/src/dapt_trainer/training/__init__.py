"""Trains models: rows and their order, arguments of the libraries, the loop, the loss curve, the penalties."""
