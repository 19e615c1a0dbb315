"""The trainer: one program a stage, run by an agent that tells Kubernetes the truth about how it ended."""
