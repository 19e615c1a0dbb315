"""Reports what prepare did and moves what it made to its place. Nothing here reads a source."""
