"""Says which files a source names, in one way for `dapt plan`, `dapt lint` and every stage that reads.

A path is taken as it is written: nothing in it is decoded, so a space is a space and `%20` is three characters. In each
of its names

    *  ?      stand for any characters, and for one; the name of a hidden file must be written with its dot
    [a-z]     stands for one of these characters, unless a file or folder of exactly the written name exists
    **        as a whole name stands for any number of folders, also for none

and `[*]`, `[?]` and `[[]` stand for the characters themselves. A folder stands for all files of a known type below it,
hidden ones left out.

Links are followed inside the folder that holds what the address names up to its first wildcard, where a store of
contents often lies beside the links to it, and into the stores of hub caches, DVC and git-annex. One that leads out is
a problem with its name, since a folder may come from somebody else and a link shows nobody what would be read. So is a
link to nothing, one to itself, and whatever is no file (a named pipe would block its reader for ever). A file that is
reached under two names is read once.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from dapt_contract.inputs.content_stores import content_stores

FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".txt": "text",
    ".text": "text",
    ".md": "text",
}
"""Format of a file by the end of its name."""
COMPRESSIONS = (".gz", ".zst")
ACCEPTED = (
    ".jsonl, .ndjson or .json (one record a line; .json also one array), .parquet, .txt, .md, each but .parquet also "
    ".gz or .zst"
)
_MAX_PROBLEMS = 5
_TEXT_OF_OTHER_TYPES = (
    ".csv", ".tsv", ".xls", ".xlsx", ".ods", ".arrow", ".feather", ".avro", ".orc", ".sqlite", ".db", ".pdf", ".doc",
    ".docx", ".odt", ".rtf", ".epub", ".htm", ".html", ".xml", ".tex", ".rst", ".jsonlines", ".json5", ".bz2", ".xz",
    ".lz4", ".br", ".zip", ".7z", ".rar", ".tar", ".tgz", ".gz", ".zst",
)  # fmt: skip
"""Ends of names of files that may hold text and are not read: a warning names them."""
_DESCRIPTIONS = frozenset({"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"})
"""Files that the `datasets` library and the hub put next to data, and that hold none."""
_ANY_NUMBER_OF_FOLDERS = "**"
_SPECIAL_KINDS = ((stat.S_ISFIFO, "named pipe"), (stat.S_ISSOCK, "socket"))


def file_format(path: str) -> tuple[str, str] | None:
    """Return (format, compression) by the file's name; None when its type is not known."""
    name = _name(path).lower()
    compression = next((ending for ending in COMPRESSIONS if name.endswith(ending)), "")
    name = name[: len(name) - len(compression)]
    format_name = next((format_ for ending, format_ in FORMATS.items() if name.endswith(ending)), None)
    if format_name is None or (format_name == "parquet" and compression):
        return None
    return format_name, compression


def without_descriptions(paths: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the files of a folder that hold data, and those that only describe it.

    READMEs are cards of data sets where there is no other text but files of records.
    """
    formats = [format_[0] for path in paths if (format_ := file_format(path)) and not _is_card(path)]
    has_cards = bool(formats) and "text" not in formats
    data: list[str] = []
    descriptions: list[str] = []
    for path in paths:
        is_description = _name(path) in _DESCRIPTIONS or (has_cards and _is_card(path))
        (descriptions if is_description else data).append(path)
    return data, descriptions


def _is_card(path: str) -> bool:
    return _name(path).lower() == "readme.md"


def _name(path: str) -> str:
    return path.rsplit("/", 1)[-1]


def may_hold_text(path: str) -> bool:
    """Return whether a file of a type that is not read may hold text all the same, by its name."""
    return file_format(path) is None and path.lower().endswith(_TEXT_OF_OTHER_TYPES)


def has_wildcards(name: str) -> bool:
    """Return whether one name of a path has a wildcard; a name with brackets alone may still be the name of a file."""
    return any(character in name for character in "*?[")


def always_has_wildcards(name: str) -> bool:
    """Return whether one name of a path has `*` or `?`, which are wildcards whatever exists."""
    return "*" in name or "?" in name


def escaped(path: str) -> str:
    """Return a pattern that stands for this path alone; brackets need no escape where the path exists."""
    return path.replace("*", "[*]").replace("?", "[?]")


def name_matches(name: str, pattern: str) -> bool:
    """Return whether one name of a path fits a pattern."""
    return fnmatchcase(name, pattern) and (not name.startswith(".") or pattern.startswith("."))


def names_match(names: Sequence[str], patterns: Sequence[str]) -> bool:
    """Return whether the names of a path fit the names of a pattern."""
    if not patterns:
        return not names
    if patterns[0] == _ANY_NUMBER_OF_FOLDERS:
        if names_match(names, patterns[1:]) or (len(patterns) == 1 and len(names) == 1):
            return not names or not names[0].startswith(".")
        return bool(names) and not names[0].startswith(".") and names_match(names[1:], patterns)
    return bool(names) and name_matches(names[0], patterns[0]) and names_match(names[1:], patterns[1:])


@dataclass(frozen=True)
class LocalFile:
    """Describes a file of a source on this machine."""

    path: str
    """As it is reached from the source's path, through links."""
    size_bytes: int
    modified_ns: int


@dataclass(frozen=True)
class LocalFiles:
    """Holds what a path names on this machine."""

    files: tuple[LocalFile, ...] = ()
    """Sorted by path; also files of other types where a name or a wildcard names them."""
    problems: tuple[str, ...] = ()
    """A sentence for each thing that cannot be read, without the field of the manifest."""
    notes: tuple[str, ...] = ()
    """What is read once though it has two names."""
    others: tuple[str, ...] = ()
    """Files of other types below the folders that it names, sorted; none that a name or a wildcard names."""


def local_files(path: str, *, root: str | None = None) -> LocalFiles:
    """Find the files that an absolute path names.

    Args:
        path: may have wildcards.
        root: folder that no link may leave, such as a claim's mount; None: the folder that holds the one that
            the path names.
    """
    names = tuple(name for name in path.split("/") if name)
    search = _Search.of_claim(root) if root is not None else _Search.of_folder(named_folder(path))
    search.expand("/", names, ())
    return search.result()


def named_folder(path: str) -> str:
    """Return the last folder of an absolute path before its first wildcard."""
    folder = "/"
    for name in filter(None, path.split("/")):
        entry = os.path.join(folder, name)
        if not _is_literal(folder, name) or not os.path.isdir(entry):
            break
        folder = entry
    return folder


def _is_literal(folder: str, name: str) -> bool:
    if not has_wildcards(name):
        return True
    return not always_has_wildcards(name) and os.path.lexists(os.path.join(folder, name))


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


@dataclass
class _Search:
    """Collects the files of one path."""

    root: str
    """Folder that no link may leave, as messages name it."""
    homes: tuple[str, ...]
    """Where what is read may lie, free of links: the root, and its stores of contents."""
    remedy: str
    """What to do about a link that leads out."""
    found: dict[str, tuple[LocalFile, str]] = field(default_factory=dict)
    """File and real path, by path."""
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    others: set[str] = field(default_factory=set)
    real_folders: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of_claim(cls, root: str) -> _Search:
        """Return a search of a claim, which has its stores inside."""
        return cls(root, (os.path.realpath(root),), "copy what it leads to into the claim")

    @classmethod
    def of_folder(cls, folder: str) -> _Search:
        """Return a search of a folder of this machine, beside which its contents may lie."""
        real = os.path.realpath(folder)
        parent = os.path.dirname(real)
        holder = real if os.path.dirname(parent) == parent else parent  # not all that this machine has
        remedy = "write that address yourself if it is what you want to read, or copy it there"
        return cls(holder, (holder, *content_stores(real)), remedy)

    def expand(self, folder: str, names: tuple[str, ...], ancestors: tuple[tuple[int, int], ...]) -> None:
        """Take everything below a folder that the names of a pattern name."""
        if not names:
            self._take(folder, is_wildcard=False)
            return
        name, rest = names[0], names[1:]
        if name == _ANY_NUMBER_OF_FOLDERS and not rest:
            self._walk(folder, ())
        elif name == _ANY_NUMBER_OF_FOLDERS:
            self.expand(folder, rest, ())
            for entry, ancestors_of_entry in self._folders(folder, ancestors):
                self.expand(entry, names, ancestors_of_entry)
        elif _is_literal(folder, name):
            entry = os.path.join(folder, name)
            # A folder on the way may be a link to nothing, which the rest of the path would not show.
            if not rest or os.path.exists(entry) or self._status(entry) is not None:
                self.expand(entry, rest, ())
        else:
            for entry_name in self._names(folder):
                entry = os.path.join(folder, entry_name)
                if not name_matches(entry_name, name):
                    continue
                if not rest:
                    self._take(entry, is_wildcard=True)
                elif os.path.isdir(entry):
                    self.expand(entry, rest, ())

    def result(self) -> LocalFiles:
        """Return each file once, under the first of its names."""
        first_names: dict[str, str] = {}
        files, repeats = [], []
        for path in sorted(self.found):
            file, real = self.found[path]
            if real in first_names:
                repeats.append((path, first_names[real]))
            else:
                first_names[real] = path
                files.append(file)
        notes = list(dict.fromkeys(self.notes))
        if repeats:
            notes.append(
                f"{len(repeats)} file(s) have a second name through links and are read once; "
                f"{repeats[0][0]} is {repeats[0][1]}"
            )
        problems = list(dict.fromkeys(self.problems))
        left = len(problems) - _MAX_PROBLEMS
        more = [f"and {left} more files and links that cannot be read"] if left > 0 else []
        problems = [*problems[:_MAX_PROBLEMS], *more]
        return LocalFiles(tuple(files), tuple(problems), tuple(notes), tuple(sorted(self.others)))

    def _names(self, folder: str) -> list[str]:
        try:
            return sorted(os.listdir(folder))
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            self.problems.append(_unreadable(folder, error))
            return []

    def _folders(
        self, folder: str, ancestors: tuple[tuple[int, int], ...]
    ) -> Iterator[tuple[str, tuple[tuple[int, int], ...]]]:
        """Yield the folders in a folder that are not hidden, and do not lead back to one that they lie in."""
        own = _identity(folder)
        ancestors = (*ancestors, own) if own else ancestors
        for name in self._names(folder):
            entry = os.path.join(folder, name)
            if name.startswith(".") or not os.path.isdir(entry):
                continue
            if _identity(entry) in ancestors:
                self.notes.append(f"{entry} leads back to a folder that it lies in and is not read again")
            elif self._is_inside(entry):
                yield entry, ancestors

    def _take(self, path: str, *, is_wildcard: bool) -> None:
        """Take one path that the source names."""
        status = self._status(path)
        if status is None:
            return
        is_known = file_format(path) is not None
        if stat.S_ISDIR(status.st_mode):
            # A folder of a known type's name is how Spark writes one table; others are no match of a wildcard.
            if is_known or not is_wildcard:
                before = len(self.found)
                self._walk(path, ())
                if is_known and len(self.found) == before and not self.problems:
                    self.problems.append(
                        f"{path}: a folder without any file of a known type; remove it, or fill it"
                    )
        elif stat.S_ISREG(status.st_mode):
            self._add(path, status)
        else:
            self.problems.append(_special(path, status))

    def _walk(self, folder: str, ancestors: tuple[tuple[int, int], ...]) -> None:
        """Take all files of a known type below a folder, hidden ones left out."""
        if not os.path.isdir(folder) or not self._is_inside(folder):
            return
        own = _identity(folder)
        ancestors = (*ancestors, own) if own else ancestors
        for name in self._names(folder):
            path = os.path.join(folder, name)
            # A link to nothing may have been a folder of data when its name has no suffix.
            is_data = file_format(name) is not None or (os.path.islink(path) and "." not in name)
            if name.startswith("."):
                continue
            status = self._status(path, is_reported=is_data)
            if status is None:
                continue
            if stat.S_ISDIR(status.st_mode):
                if (status.st_dev, status.st_ino) in ancestors:
                    self.notes.append(f"{path} leads back to a folder that it lies in and is not read again")
                else:
                    self._walk(path, ancestors)
            elif is_data and stat.S_ISREG(status.st_mode):
                if file_format(name) is not None:
                    self._add(path, status)
            elif is_data:
                self.problems.append(_special(path, status))
            elif stat.S_ISREG(status.st_mode):
                self.others.add(path)

    def _add(self, path: str, status: os.stat_result) -> None:
        if self._is_inside(path):
            file = LocalFile(path, status.st_size, status.st_mtime_ns)
            self.found[path] = (file, self._real_path(path))

    def _real_path(self, path: str) -> str:
        """Return a path without links; that of a folder is computed once for all of its files."""
        if os.path.islink(path):
            return os.path.realpath(path)
        folder, name = os.path.split(path)
        if folder not in self.real_folders:
            self.real_folders[folder] = os.path.realpath(folder)
        return os.path.join(self.real_folders[folder], name)

    def _status(self, path: str, *, is_reported: bool = True) -> os.stat_result | None:
        """Return the status of what a path leads to; None when it leads nowhere, which is reported for a link."""
        try:
            return os.stat(path)
        except FileNotFoundError:
            if os.path.islink(path) and is_reported:
                self.problems.append(
                    f"{path}: a link to {os.readlink(path)}, which does not exist; fetch the file (by the hub's "
                    "client, dvc pull or git annex get), or remove the link"
                )
        except NotADirectoryError:
            pass
        except OSError as error:
            if is_reported:
                self.problems.append(_unreadable(path, error))
        return None

    def _is_inside(self, path: str) -> bool:
        """Return whether a path lies below the root when its links are followed; report one that does not."""
        real = self._real_path(path)
        if any(_is_below(real, home) for home in self.homes):
            return True
        self.problems.append(f"{path}: leads to {real}, outside of {self.root}; {self.remedy}")
        return False


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _special(path: str, status: os.stat_result) -> str:
    kind = next((name for is_kind, name in _SPECIAL_KINDS if is_kind(status.st_mode)), "device")
    return f"{path}: a {kind}, not a file; give a file, or remove it"


def _unreadable(path: str, error: OSError) -> str:
    if error.errno == errno.ELOOP:
        return f"{path}: a link that leads back to itself; let it lead to a file, or remove it"
    return f"{path}: cannot be read ({error.strerror}); check its permissions"
