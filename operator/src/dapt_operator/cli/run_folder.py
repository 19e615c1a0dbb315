"""Finds and reads the folders of local runs: `RUNS/NAME` with status.yaml, report.html, work/ and stored objects."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dapt_contract.sentences import shortened
from dapt_contract.untrusted.regular_files import read_regular_file
from dapt_operator.api.v1alpha1.status import DomainAdaptationStatus
from dapt_operator.api.validation.yaml_source import MAX_BYTES, ManifestError, load
from dapt_operator.cli.errors import UserError
from dapt_operator.cluster.local.invocations import Invocations, read_invocations

STATUS_FILE = "status.yaml"
REPORT_FILE = "report.html"
WORK_FOLDER = "work"
LOCK_FILE = ".lock"
_MAX_REASON_CHARACTERS = 200


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run on this machine."""

    path: Path

    @property
    def name(self) -> str:
        """Name of the adaptation, which is the folder's."""
        return self.path.name

    @property
    def work(self) -> Path:
        """Folder that stands for the work volume."""
        return self.path / WORK_FOLDER

    @property
    def report(self) -> Path:
        """Path of the HTML report."""
        return self.path / REPORT_FILE

    @property
    def is_in_use(self) -> bool:
        """Whether a `dapt run` holds the folder's lock now."""
        try:
            # Without waiting: in a folder from elsewhere it may be a pipe.
            descriptor = os.open(self.path / LOCK_FILE, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            with os.fdopen(descriptor, "rb", closefd=True) as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except OSError:
            return True
        return False

    @property
    def invocations(self) -> Invocations:
        """What is kept of the invocations of `dapt run`."""
        return read_invocations(self.path)

    def read(self) -> dict[str, Any]:
        """Return the resource as status.yaml has it: everything but the spec.

        Raises:
            UserError: there is no run here, or the file is damaged.
        """
        path = self.path / STATUS_FILE
        try:
            documents = load(read_regular_file(path, MAX_BYTES).decode(), str(path))
        except FileNotFoundError:
            raise UserError(
                f"{self.path}: no run in it ({STATUS_FILE} is missing); start one with dapt run"
            ) from None
        except (OSError, UnicodeDecodeError, ManifestError) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
            raise UserError(f"{path}: cannot be read ({reason}); `dapt run` writes it again") from None
        resource = documents[0].data
        if not isinstance(resource, dict):
            raise UserError(f"{path}: not a status; `dapt run` writes it again")
        return resource

    def status(self) -> DomainAdaptationStatus:
        """Return the status.

        Raises:
            UserError: as `read`.
        """
        try:
            return DomainAdaptationStatus.model_validate(self.read().get("status") or {})
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise UserError(
                f"{self.path / STATUS_FILE}: {place}: {first['msg']}; `dapt run` writes it again"
            ) from None


@contextlib.contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Turn what a file that dapt did not write makes of the block into one sentence.

    Raises:
        UserError: in place of every other error.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        # Of any kind: a folder from elsewhere may hold numbers and texts that no run would write.
        reason = shortened(" ".join(f"{type(error).__name__}: {error}".split()), _MAX_REASON_CHARACTERS)
        raise UserError(
            f"{folder}: cannot be shown ({reason}); a file in it is not as dapt writes it: run it again, or get the"
            " folder again"
        ) from error


def find_run(name: str, runs: Path) -> RunFolder:
    """Return the run of this name below `runs`, or the run in the folder `name`.

    Raises:
        UserError: there is no such run.
    """
    for path in (runs / name, Path(name)):
        if os.path.isfile(
            path / STATUS_FILE
        ):  # False, where Path raises, also for a name that no file can have
            return RunFolder(path)
    names = ", ".join(run.name for run in all_runs(runs))
    existing = f"there are: {names}" if names else f"there is no run in {runs}"
    raise UserError(f"no run {name!r}; {existing}; name one, give its folder, or --runs-dir")


def no_run_text(runs: Path) -> str:
    """Return what to do where no run is below a folder."""
    return f"no run in {runs}; start one with `dapt run MANIFEST`, or give --runs-dir"


def all_runs(runs: Path) -> tuple[RunFolder, ...]:
    """Return every run below a folder, ordered by name."""
    return tuple(RunFolder(path.parent) for path in sorted(runs.glob(f"*/{STATUS_FILE}")))
