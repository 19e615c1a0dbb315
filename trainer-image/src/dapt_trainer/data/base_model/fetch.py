"""Brings the base model to the work volume as a Hugging Face folder in safetensors. Nothing of it is ever executed.

    file://FOLDER, pvc://CLAIM/FOLDER, s3://, gs://   a Hugging Face folder, or a folder with one .gguf file
    ...FILE.gguf                                      one GGUF file, dequantized to bfloat16
    hf://ORG/NAME@REVISION[/FILE.gguf]                a repository of the hub; a moving revision is resolved

Only safetensors, configuration, tokenizer and licence files are taken, byte for byte: the published model has them
again. A GGUF file, and a tokenizer without tokenizer.json, are converted with transformers in a process of its own
(`dapt_trainer.data.base_model.convert`).

Where the profile has a model cache, files from the hub stay there in the layout of the hub's own client (blobs by their
checksum, a folder of links for each commit), and the next adaptation copies them instead of downloading them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from dapt_contract.inputs.other_layouts import other_layout
from dapt_contract.pod.environment import MODEL_CACHE
from dapt_trainer.data.base_model.files import FIELD, files_to_take, is_small_file, read_json
from dapt_trainer.data.base_model.gguf_header import gguf_problem
from dapt_trainer.data.reading.hub_revision import look_up
from dapt_trainer.data.reading.sources import check_files, filesystem_of, unreachable
from dapt_trainer.data.reading.unpacked import LARGEST_POINTER_BYTES, pointer_owner
from dapt_trainer.data.run_module import OFFLINE, Limits, run_module
from dapt_trainer.errors import InputError, StageOutOfMemoryError
from dapt_trainer.limited_time import while_beating
from dapt_trainer.modeling.stored_models.code_settings import code_problems
from dapt_trainer.modeling.stored_models.weight_files import leading_out

_TOKENIZER_FILES = (
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
)
"""Files that tokenizer.json can be made of."""
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_COPY_BLOCK_BYTES = 16 * 2**20
_ACCEPTED = "accepted are a folder with config.json and *.safetensors, and one .gguf file"

Beat = Callable[[], None]


def import_model(source: str, folder: Path, scratch: Path, beat: Beat = lambda: None) -> str:
    """Import the model into `folder`, which is complete when this returns.

    Args:
        source: as the user wrote it.
        folder: does not exist yet.
        scratch: for downloads.
        beat: called during downloads, copies and conversions.

    Returns:
        The source with its immutable revision.

    Raises:
        InputError: there is no model, or one with pickled weights only or with code of its own.
    """
    # 1. Bring the files to this machine.
    if source.startswith("hf://"):
        origin, resolved = while_beating(lambda: _download_from_hub(source, scratch), beat)
    else:
        origin, resolved = while_beating(lambda: _fetch(source, scratch), beat), source
    # 2. Convert them, or take those that the other stages need.
    folder.mkdir(parents=True)
    gguf = _gguf_file(origin, source)
    if gguf is not None:
        if problem := gguf_problem(gguf):
            raise InputError(
                f"{FIELD}: {source}: {gguf.name} is damaged or no model ({problem}); download it again, or use the "
                "model's safetensors version"
            )
        _convert("gguf", _alone(gguf, scratch), folder, source, beat)
        return resolved
    _check_folder(origin, source)
    for name in files_to_take(origin, source):
        (folder / name).parent.mkdir(exist_ok=True)
        _link_or_copy(origin / name, folder / name, beat)
    if not (folder / "tokenizer.json").is_file():
        _convert_tokenizer(folder, scratch, source, beat)
    return resolved


def check_no_remote_code(folder: Path, source: str) -> None:
    """Refuse a model whose configurations name code that is not transformers' own.

    Raises:
        InputError: with a sentence for each such setting.
    """
    if problems := code_problems(folder, allows_quantization=True):
        raise InputError(*(f"{FIELD}: {source}: {problem}" for problem in problems))


def _fetch(source: str, scratch: Path) -> Path:
    """Return a local path of the model: its own, or that of a copy of the files that are needed."""
    filesystem, path, _ = filesystem_of(source, FIELD)
    if source.startswith(("file://", "pvc://")):
        local = Path(path)
        if not local.exists():
            raise InputError(f"{FIELD}: {source}: no such file or folder; {_ACCEPTED}")
        files = [local] if local.is_file() else [local / name for name in sorted(os.listdir(local))]
        if local.is_dir():
            _refuse_other_layout([path.name for path in files], source)
        check_files((str(path) for path in files if _is_taken(path.name)), source, FIELD)
        return local
    try:
        is_file = filesystem.isfile(path)
        paths = [path] if is_file else [str(entry) for entry in filesystem.ls(path, detail=False)]
    except Exception as error:  # every object store raises exceptions of its own
        raise InputError(unreachable(source, FIELD, error)) from error
    target = scratch / "model-download"
    target.mkdir(parents=True, exist_ok=True)
    names = [entry.rstrip("/").rsplit("/", 1)[-1] for entry in paths]
    if not is_file:
        _refuse_other_layout(names, source)
    for entry, name in zip(paths, names, strict=True):
        if _is_taken(name):
            filesystem.get_file(entry, str(target / name))
    if _has_pickled(names) and not _weights(names):
        raise InputError(_pickled_message(source))
    return target / names[0] if is_file else target


def _download_from_hub(source: str, scratch: Path) -> tuple[Path, str]:
    """Return the local path of a model of the hub, and its URI with an immutable revision."""
    parts = source.removeprefix("hf://").split("/")
    if len(parts) < 2 or parts[0] == "datasets":
        raise InputError(
            f"{FIELD}: {source}: a model on the hub is hf://ORG/NAME@REVISION, also with /FILE.gguf"
        )
    name, _, revision = parts[1].partition("@")
    repository = f"{parts[0]}/{name}"
    try:
        from huggingface_hub import HfApi, snapshot_download

        info, rest = look_up(
            revision, parts[2:], lambda revision: HfApi().model_info(repository, revision=revision)
        )
        file = "/".join(rest)
        names = [sibling.rfilename for sibling in info.siblings or ()]
        if not file:
            _refuse_other_layout([name.split("/", 1)[0] for name in names], source)
        patterns = [file] if file else ["*.safetensors", *(name for name in names if is_small_file(name))]
        if not file and not _weights(names):
            if _has_pickled(names):
                raise InputError(_pickled_message(source))
            patterns = ["*.gguf"]
        cache = os.environ.get(MODEL_CACHE)
        folder = {"cache_dir": cache} if cache else {"local_dir": str(scratch / "model-download")}
        # By the commit: a branch may move between the two requests, and the commit is what gets recorded.
        target = Path(snapshot_download(repository, revision=info.sha, allow_patterns=patterns, **folder))
    except InputError:
        raise
    except Exception as error:  # the hub's client raises exceptions of many libraries
        raise InputError(unreachable(source, FIELD, error)) from error
    resolved = f"hf://{repository}@{info.sha}" + (f"/{file}" if file else "")
    return (target / file if file else target), resolved


def _gguf_file(origin: Path, source: str) -> Path | None:
    """Return the GGUF file to convert; None for a folder in safetensors."""
    if origin.is_file():
        if origin.suffix != ".gguf":
            raise InputError(f"{FIELD}: {source}: not a model file; {_ACCEPTED}")
        return origin
    files = sorted(origin.glob("*.gguf"))
    if (origin / "config.json").is_file() or not files:
        return None
    if len(files) > 1:
        names = ", ".join(path.name for path in files)
        raise InputError(f"{FIELD}: {source} has {len(files)} GGUF files ({names}); name one of them")
    if found := leading_out(origin, [files[0].name]):
        raise InputError(
            f"{FIELD}: {source}: {found[0]} leads to {found[1]}, outside of the model's folder; name that file itself, "
            "or copy it into the folder"
        )
    return files[0]


def _check_folder(origin: Path, source: str) -> None:
    if not (origin / "config.json").is_file():
        raise InputError(f"{FIELD}: {source}: no config.json there; {_ACCEPTED}")
    _refuse_pointers(origin, source)
    check_no_remote_code(origin, source)
    names = [path.name for path in origin.iterdir()]
    if not _weights(names):
        if _has_pickled(names):
            raise InputError(_pickled_message(source))
        raise InputError(f"{FIELD}: {source}: no *.safetensors file there; {_ACCEPTED}")


def _refuse_other_layout(names: list[str], source: str) -> None:
    if finding := other_layout(names):
        raise InputError(f"{FIELD}: {source}: {finding}")


def _refuse_pointers(origin: Path, source: str) -> None:
    """Refuse a clone without the content of its large files."""
    for path in sorted(origin.iterdir()):
        if not _is_taken(path.name) or not path.is_file() or path.stat().st_size > LARGEST_POINTER_BYTES:
            continue
        owner = pointer_owner(path.read_bytes())
        if owner is not None:
            raise InputError(f"{FIELD}: {source}: {path.name} is a pointer of {owner}")


def _has_pickled(names: list[str]) -> bool:
    return any(name.endswith(_PICKLED) for name in names)


def _pickled_message(source: str) -> str:
    return (
        f"{FIELD}: {source} has pickled weights only (.bin, .pt), which can run code when they are read; "
        "use a revision with safetensors, or convert the model"
    )


def _weights(names: list[str]) -> list[str]:
    return [name for name in names if name.endswith(".safetensors") and "/" not in name]


def _is_taken(name: str) -> bool:
    return name.endswith((".safetensors", ".gguf")) or is_small_file(name)


def _link_or_copy(origin: Path, target: Path, beat: Beat) -> None:
    """Link weights where the volume allows it, and copy everything else."""
    origin = origin.resolve()  # a model cache holds symbolic links to its blobs
    if origin.suffix == ".safetensors":
        try:
            # Some volumes have no hard links, and none leads to another file system.
            os.link(origin, target)
            return
        except OSError:
            pass
    with origin.open("rb") as read, target.open("wb") as written:
        while block := read.read(_COPY_BLOCK_BYTES):
            written.write(block)
            beat()


def _alone(gguf: Path, scratch: Path) -> Path:
    """Return a link to a GGUF file in a folder of its own.

    transformers would read configurations that lie beside the file.
    """
    folder = scratch / "gguf"
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / "model.gguf"
    link.unlink(missing_ok=True)
    link.symlink_to(gguf.resolve())
    return link


def _convert_tokenizer(folder: Path, scratch: Path, source: str, beat: Beat) -> None:
    """Add tokenizer.json; all other files of the tokenizer stay as they came, where they are enough."""
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise InputError(
            f"{FIELD}: {source}: no tokenizer there; add tokenizer.json, or the file that the model's tokenizer is in "
            f"({', '.join(_TOKENIZER_FILES)})"
        )
    converted = scratch / "converted-tokenizer"
    # From the imported folder, which holds checked files alone.
    _convert("tokenizer", folder, converted, source, beat)
    shutil.copyfile(converted / "tokenizer.json", folder / "tokenizer.json")
    # Old tokenizers leave their special tokens to the defaults of a class, which only the converter knows.
    names = ("tokenizer_config.json", "special_tokens_map.json")
    if not any(read_json(folder / name, source).get("eos_token") for name in names):
        shutil.copyfile(converted / "tokenizer_config.json", folder / "tokenizer_config.json")


def _conversion_limits(origin: Path) -> Limits:
    """Return what a conversion may take: a file of a few bits a weight becomes numbers of 32 bits on the way."""
    size = origin.stat().st_size if origin.is_file() else 0
    return Limits(cpu_seconds=1800 + size // 5_000_000, data_bytes=(8 << 30) + 16 * size)


def _convert(conversion: str, origin: Path, folder: Path, source: str, beat: Beat) -> None:
    """Run the converter, which needs torch or transformers, in a process of its own."""
    process = run_module(
        "dapt_trainer.data.base_model.convert",
        [conversion, str(origin), str(folder)],
        OFFLINE,
        beat,
        _conversion_limits(origin),
    )
    if process.is_out_of_time:
        raise InputError(
            f"{FIELD}: {source}: converting it takes more than {_conversion_limits(origin).cpu_seconds:,} seconds; use "
            "the model's safetensors version"
        )
    if process.is_out_of_memory:
        raise StageOutOfMemoryError(
            f"{FIELD}: {source}: memory ran out while it was converted; give prepare more memory"
        )
    if process.returncode:
        unreadable, advice = "this GGUF file", "use the model's safetensors version"
        if conversion == "tokenizer":
            unreadable, advice = "its tokenizer", "use a version of the model with tokenizer.json"
        raise InputError(
            f"{FIELD}: {source}: transformers cannot read {unreadable} ({process.last_error}); {advice}"
        )
