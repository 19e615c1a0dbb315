"""The planner: facts in, plan out. Pure: no clock, no client, no files, no environment, no randomness.

Read in this order: `observed` (what is known), `history` (what the ledger learns from it), `blueprint` (what is
wanted), `transitions` (what may follow what), `decide` (the plan), `status` (what is told).
"""
