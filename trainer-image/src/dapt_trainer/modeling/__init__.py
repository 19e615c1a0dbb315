"""Loads, composes, shards and saves models. Knows no data set, no training loop and no checkpoint.

Modules that import DeepSpeed do so in functions: DeepSpeed chooses its accelerator when it is imported, and
`distributed.join_ranks` sets the environment variable that it reads.
"""
