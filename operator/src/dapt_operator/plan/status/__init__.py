"""Builds the status, its conditions and the Events from the ledger and the position in the chain. Decides nothing."""
