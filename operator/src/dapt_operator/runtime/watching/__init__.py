"""Watches the API server with kopf, and passes what it sees to the store and the work queue."""
