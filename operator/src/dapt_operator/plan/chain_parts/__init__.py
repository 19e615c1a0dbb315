"""Holds what the chain reads at each state: what is known of a stage, what is settled, where the adaptation stands."""
