"""A thousand resources at rest for ten minutes: what the operator writes, and what it weighs.

python -m bench.quiet [--present 1000] [--seconds 600]
"""

from __future__ import annotations

import argparse
import sys

from bench.operator import fresh_plane, quiet


def main() -> int:
    """Both figures."""
    parser = argparse.ArgumentParser(prog="python -m bench.quiet")
    parser.add_argument("--present", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=600.0)
    options = parser.parse_args()
    with fresh_plane() as plane:
        quiet(plane, options.present, options.seconds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
