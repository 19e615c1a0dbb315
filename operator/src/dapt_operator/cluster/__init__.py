"""The only input and output of the operator: a port of five verbs and its adapters."""
