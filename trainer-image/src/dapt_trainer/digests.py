"""Computes the digests that name models and files on the work volume."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dapt_contract.stages.common import Member, ModelReference, RecordedDigests
from dapt_contract.untrusted.folders import paths_below
from dapt_contract.untrusted.regular_files import IrregularFileError
from dapt_trainer.errors import InfrastructureError, InputError

DIGEST_DIGITS = 12
"""Digits of a weights digest in facts and messages."""
_WEIGHTS = ".safetensors"
SIDE_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "chat_template.jinja",
    "chat_template.json",
    "model.safetensors.index.json",
)
"""Files that may lie beside the weights of a base model and are loaded with them."""
_LOADED = frozenset((*SIDE_FILES, "adapter_config.json"))
"""Files besides the weights that decide what is computed."""
_TEMPLATES = "additional_chat_templates/"
_READ_BLOCK_BYTES = 4 * 1024 * 1024
_THREADS = 4


def sha256_of_file(path: Path, beat: Callable[[], None] | None = None) -> str:
    """Return the hexadecimal SHA-256 of a file's content; call `beat` once a block of it."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_READ_BLOCK_BYTES):
            digest.update(block)
            if beat is not None:
                beat()
    return digest.hexdigest()


def changed_file(path: Path, found: str | None, expected: str) -> InputError:
    """Return the error about a file of the work volume that is not the one which a stage wrote there.

    Args:
        path: of the file.
        found: its SHA-256; None: it is missing.
        expected: SHA-256 of the file that was written, or its first digits.
    """
    shown = min(DIGEST_DIGITS, len(expected))
    finding = "is missing" if found is None else f"has the SHA-256 {found[:shown]}"
    return InputError(
        f"{path}: {finding}, and {expected[:shown]} was written there: the work volume changed since, so the file is "
        "not used; restore it, or create a new DomainAdaptation, which writes it again"
    )


def weights_digest(folder: Path, beat: Callable[[], None] | None = None) -> str:
    """Return the hexadecimal SHA-256 over names and digests of all files that are loaded from a folder of weights.

    Equal tensors are another model under another configuration, and other text to it with another tokenizer.

    Args:
        folder: with the weights.
        beat: called once a block of a file, from several threads.

    Raises:
        InputError: the folder has no safetensors file.
    """
    loaded = loaded_files(folder)
    # Threads are enough: hashlib releases the interpreter's lock while it hashes.
    with ThreadPoolExecutor(_THREADS) as pool:
        digests = pool.map(lambda name: sha256_of_file(folder / name, beat), loaded)
        return digest_of_weights(dict(zip(loaded, digests, strict=True)))


def loaded_files(folder: Path) -> list[str]:
    """Return the files that `weights_digest` covers, relative to the folder.

    Raises:
        InputError: the folder has no safetensors file.
    """
    names = [path.relative_to(folder).as_posix() for path in _paths_below(folder) if path.is_file()]
    if not any(name.endswith(_WEIGHTS) for name in names):
        raise InputError(f"{folder}: no *.safetensors file to name the model by")
    return sorted(name for name in names if is_loaded(name))


def _paths_below(folder: Path) -> list[Path]:
    try:
        return paths_below(folder)
    except IrregularFileError as error:
        raise InputError(
            f"{folder}: no folder of a model ({error.strerror}): the work volume changed since it was written; create"
            " a new DomainAdaptation, which writes it again"
        ) from error


def size_of_folder(folder: Path) -> int:
    """Return the bytes of all files that are loaded from a folder of weights."""
    return sum(size for _, _, _, size, _, _ in _identities(folder))


def size_of_reference(work: Path, reference: ModelReference) -> int:
    """Return the bytes of all files that a recipe is loaded from."""
    return sum(size_of_folder(work / name) for name in _folders_of([reference]))


def is_loaded(path: str) -> bool:
    """Return whether `weights_digest` covers a file of a folder of weights; `path` is relative to the folder."""
    is_at_top = "/" not in path
    return (is_at_top and (path.endswith(_WEIGHTS) or path in _LOADED)) or path.startswith(_TEMPLATES)


def digest_of_weights(sha256_by_name: Mapping[str, str]) -> str:
    """Return `weights_digest` of files whose digests are already known."""
    lines = "".join(f"{name} {sha256_by_name[name]}\n" for name in sorted(sha256_by_name))
    return hashlib.sha256(lines.encode()).hexdigest()


def reference_digest(
    work: Path, reference: ModelReference, folder_digests: dict[str, str] | None = None
) -> str:
    """Return the hexadecimal SHA-256 that names a whole recipe: its parts' digests, their order and shares.

    A plain folder has the digest of its weights; one with adapters that of the weights' and adapters' digests in order.

    Args:
        work: root of the work volume.
        reference: the recipe.
        folder_digests: digests by folder, read and added to: several recipes of the same parts hash each part once.

    Raises:
        InputError: a part has no safetensors file.
    """
    digests = {} if folder_digests is None else folder_digests

    def of_folder(name: str) -> str:
        if name not in digests:
            digests[name] = weights_digest(work / name)
        return digests[name]

    def of_chain(weights: str, adapters: tuple[str, ...]) -> str:
        parts = [of_folder(name) for name in (weights, *adapters)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest() if adapters else parts[0]

    if not reference.averaged_with and reference.interpolation == 1.0:
        return of_chain(reference.weights, (*reference.adapters, *reference.tuned))
    lines = [f"mean {of_chain(reference.weights, reference.adapters)}"]
    lines += [f"mean {of_chain(member.weights, member.adapters)}" for member in reference.averaged_with]
    if reference.interpolation != 1.0:
        lines.append(f"share {reference.interpolation!r} from {of_folder(reference.origin)}")
    lines += [f"tuned {of_folder(adapter)}" for adapter in reference.tuned]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def checked_reference_digest(
    work: Path,
    reference: ModelReference,
    recorded: RecordedDigests,
    folder_digests: dict[str, str] | None = None,
) -> str:
    """Return `reference_digest` of a recipe whose weights are those that were written or measured.

    Args:
        work: root of the work volume.
        reference: the recipe.
        recorded: what is recorded of it; only this is compared.
        folder_digests: as in `reference_digest`.

    Raises:
        InputError: a folder or the recipe has another digest than was recorded, or no safetensors file.
    """
    digests = {} if folder_digests is None else folder_digests
    check_weights(work, reference, recorded, digests)
    return reference_digest(work, reference, digests)


def check_weights(
    work: Path, reference: ModelReference, recorded: RecordedDigests, folder_digests: dict[str, str]
) -> None:
    """Compare the weights of a recipe with what is recorded of them; read nothing where nothing is.

    Raises:
        InputError: as `checked_reference_digest`.
    """
    check_folders(work, recorded, folder_digests)
    if recorded.recipe is None:
        return
    digest = reference_digest(work, reference, folder_digests)
    if not digest.startswith(recorded.recipe):
        newest = (reference.weights, *reference.adapters, *reference.tuned)[-1]
        raise changed_weights(work / newest, digest, recorded.recipe)


def check_folders(work: Path, recorded: RecordedDigests, folder_digests: dict[str, str]) -> None:
    """Compare folders of weights with what is recorded of them.

    Args:
        work: root of the work volume.
        recorded: of the folders.
        folder_digests: gets the digest of each.

    Raises:
        InputError: names every folder that has changed.
    """
    problems: list[str] = []
    for folder, expected in recorded.folders:
        if folder not in folder_digests:
            folder_digests[folder] = weights_digest(work / folder)
        if not folder_digests[folder].startswith(expected):
            problems += changed_weights(work / folder, folder_digests[folder], expected).problems
    if problems:
        raise InputError(*problems)


def changed_weights(folder: Path, found: str, expected: str) -> InputError:
    """Return the error about weights that are not those which were written or measured."""
    return InputError(
        f"{folder}: its weights have the digest {found[:DIGEST_DIGITS]}, and {expected[:DIGEST_DIGITS]} was recorded "
        "of them: the work volume changed since, so they are not used; restore the folder, or create a new "
        "DomainAdaptation, which trains again"
    )


class HeldWeights:
    """Notes what the files of a recipe are before they are hashed, to see afterwards that none has changed since.

    Libraries open weights by their names, long after these were hashed. The change time of a file cannot be set, so a
    file that was swapped in between and put back shows it too.

    Args:
        work: root of the work volume.
        references: recipes that are going to be hashed and loaded.
    """

    def __init__(self, work: Path, references: Iterable[ModelReference]) -> None:
        self._before = {work / name: _identities(work / name) for name in _folders_of(references)}

    def require_unchanged(self) -> None:
        """Raise if a file is another one than before; call it once everything is loaded.

        Raises:
            InfrastructureError: names the folder.
        """
        for folder, before in self._before.items():
            if _identities(folder) != before:
                raise InfrastructureError(
                    f"{folder}: its weights were written to while they were read, so they are not used; the next run"
                    " compares them again"
                )


def _folders_of(references: Iterable[ModelReference]) -> list[str]:
    names: dict[str, None] = {}
    for reference in references:
        parts: tuple[ModelReference | Member, ...] = (reference, *reference.averaged_with)
        names |= dict.fromkeys(name for part in parts for name in (part.weights, *part.adapters))
        names |= dict.fromkeys((reference.origin, *reference.tuned))
    return list(names)


def _identities(folder: Path) -> list[tuple[str, int, int, int, int, int]]:
    found = []
    for path in _paths_below(folder):
        name = path.relative_to(folder).as_posix()
        if is_loaded(name) and path.is_file():
            file = path.stat()
            found.append((name, file.st_dev, file.st_ino, file.st_size, file.st_mtime_ns, file.st_ctime_ns))
    return found
