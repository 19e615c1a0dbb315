"""Training loops around the libraries: models, schedule, callbacks."""
