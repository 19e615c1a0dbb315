"""Records of runs: in the cache folder under the name of the run, and by experiment in `science/results/`."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from science.bed import cache_folder

RESULTS = Path(__file__).parent / "results"
_SIGNIFICANT_DIGITS = 6


def cached(key: str) -> dict[str, Any] | None:
    """The record of a run that was done before."""
    path = cache_folder() / "runs" / f"{key}.json"
    return json.loads(path.read_text()) if path.is_file() else None


def keep(key: str, record: Mapping[str, Any]) -> None:
    """Keep a finished run; a file that exists is whole."""
    path = cache_folder() / "runs" / f"{key}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    written = path.with_suffix(".new")
    written.write_text(json.dumps(record))
    written.replace(path)


def name_of(settings: Any) -> str:
    """Equal for equal settings: the dataclass, or what its record says of it."""
    plain = settings if isinstance(settings, Mapping) else asdict(settings)
    return json.dumps(plain, sort_keys=True)


def write_results(
    folder: Path, experiment: str, facts: Mapping[str, Any], records: Iterable[Mapping[str, Any]]
) -> None:
    """One file an experiment, one line a run, numbers to six digits."""
    folder.mkdir(parents=True, exist_ok=True)
    head = json.dumps(rounded(facts), indent=1, sort_keys=True)
    lines = ",\n".join(f"  {json.dumps(rounded(record), sort_keys=True)}" for record in records)
    (folder / f"{experiment}.json").write_text(f'{{"facts": {head},\n"runs": [\n{lines}\n]}}\n')


def read_results(folder: Path, experiment: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(facts, records) of an experiment; empty where it was never run."""
    path = folder / f"{experiment}.json"
    if not path.is_file():
        return {}, []
    content = json.loads(path.read_text())
    return content["facts"], content["runs"]


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record as a file of its own, numbers to six digits; a file that exists is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = path.with_suffix(".new")
    written.write_text(json.dumps(rounded(record), indent=1, sort_keys=True) + "\n")
    written.replace(path)


def read_record(path: Path) -> dict[str, Any]:
    """Return what `write_record` wrote."""
    return dict(json.loads(path.read_text()))


def rounded(value: Any) -> Any:
    """Numbers to six significant digits, in whatever they stand in."""
    if isinstance(value, float):
        return float(f"{value:.{_SIGNIFICANT_DIGITS}g}")
    if isinstance(value, Mapping):
        return {name: rounded(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    return value


def machine() -> str:
    """Processor, cores and libraries in a line."""
    import os

    import torch
    import transformers

    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return (
        f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores; Python {platform.python_version()}, "
        f"torch {torch.__version__}, transformers {transformers.__version__}"
    )
