"""Builds the status, its conditions and the Events from the ledger and the plan. Decides nothing."""
