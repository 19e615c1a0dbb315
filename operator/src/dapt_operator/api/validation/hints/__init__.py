"""Proposes what a field or a value may have meant. A hint is no verdict: it adds words to a problem or a warning."""
