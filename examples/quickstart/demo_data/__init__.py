"""What the quickstart turns into training text, questions and probes; each module is pure but for its reader."""
