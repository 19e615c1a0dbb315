"""Figures against their bars. `make bench` runs every module here; each prints `NAME VALUE BAR ok|short` lines."""
