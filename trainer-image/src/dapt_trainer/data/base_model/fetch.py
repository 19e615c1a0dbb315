"""The base model on the work volume: an HF folder in safetensors, whatever it came as. Nothing of it is ever executed.

    file://FOLDER, pvc://CLAIM/FOLDER, s3://, gs://   a Hugging Face folder, or a folder with one .gguf file
    ...FILE.gguf                                      one GGUF file, dequantized to bfloat16
    hf://ORG/NAME@REVISION[/FILE.gguf]                a repository of the hub; a moving revision is resolved

Only safetensors, configuration and tokenizer files are taken. torch is needed for GGUF alone, and transformers for a
tokenizer without tokenizer.json: both in a process of their own (`dapt_trainer.data.base_model.convert`).

Where the profile has a model cache, what comes from the hub stays there as the hub's own client lays it out (blobs by
their checksum, a folder of links for each commit), and the next adaptation copies it instead of downloading it.
"""

from __future__ import annotations

import fnmatch
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dapt_contract.pod import MODEL_CACHE
from dapt_trainer.data.input_problems import first_line
from dapt_trainer.data.reading.sources import filesystem_of, unreachable
from dapt_trainer.data.run_module import run_module
from dapt_trainer.errors import InputError, StageOutOfMemoryError

FIELD = "spec.model.source"
_SMALL_FILES = (
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
    "chat_template.jinja",
    "chat_template.json",
    "model.safetensors.index.json",
)
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_ACCEPTED = "accepted are a folder with config.json and *.safetensors, and one .gguf file"

Beat = Callable[[], None]


def import_model(source: str, folder: Path, scratch: Path, beat: Beat = lambda: None) -> str:
    """Bring the model into `folder`; the folder is complete when this returns.

    Args:
        source: as the user wrote it.
        folder: does not exist yet.
        scratch: for downloads that are converted.
        beat: called while a process is waited for.

    Returns:
        The source with its immutable revision.

    Raises:
        InputError: nothing there, pickled weights only, not a model, remote code.
    """
    if source.startswith("hf://"):
        origin, resolved = _hub_snapshot(source, scratch)
    else:
        origin, resolved = _fetched(source, scratch), source
    folder.mkdir(parents=True)
    gguf = _gguf_file(origin, source)
    if gguf is not None:
        _convert("gguf", gguf, folder, source, beat)
    else:
        _check_folder(origin, source)
        for name in _wanted(sorted(path.name for path in origin.iterdir()), origin, source):
            _link_or_copy(origin / name, folder / name)
        if not (folder / "tokenizer.json").is_file():
            _convert("tokenizer", origin, folder, source, beat)
    return resolved


def check_no_remote_code(folder: Path, source: str) -> None:
    """Refuse what would run code of the repository.

    Raises:
        InputError: a configuration has `auto_map`.
    """
    for name in ("config.json", "tokenizer_config.json"):
        if read_json(folder / name, source).get("auto_map"):
            raise InputError(
                f"{FIELD}: {source}: {name} asks for code from the model's repository (auto_map), which dapt never "
                "runs; use a model of an architecture that transformers knows"
            )


def read_json(path: Path, source: str) -> dict[str, Any]:
    """A JSON object from the model's folder; empty when there is no such file.

    Raises:
        InputError: the file is damaged.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InputError(
            f"{FIELD}: {source}: {path.name} is not readable JSON ({first_line(error)}); download the model again"
        ) from error
    return value if isinstance(value, dict) else {}


def _fetched(source: str, scratch: Path) -> Path:
    """The model as a local path: where it lies, or a copy of the files that are wanted."""
    filesystem, path, _ = filesystem_of(source, FIELD)
    if source.startswith(("file://", "pvc://")):
        local = Path(path)
        if not local.exists():
            raise InputError(f"{FIELD}: {source}: no such file or folder; {_ACCEPTED}")
        return local
    try:
        single = filesystem.isfile(path)
        found = [path] if single else [str(item) for item in filesystem.ls(path, detail=False)]
    except Exception as error:
        raise InputError(unreachable(source, FIELD, error)) from error
    target = scratch / "model-download"
    target.mkdir(parents=True, exist_ok=True)
    names = [item.rsplit("/", 1)[-1] for item in found]
    for item, name in zip(found, names, strict=True):
        if name.endswith((".safetensors", ".gguf")) or name in _SMALL_FILES:
            filesystem.get_file(item, str(target / name))
    if any(fnmatch.fnmatch(name, pattern) for name in names for pattern in _PICKLED) and not _weights(names):
        raise InputError(_pickled_sentence(source))
    return target / names[0] if single else target


def _hub_snapshot(source: str, scratch: Path) -> tuple[Path, str]:
    parts = source.removeprefix("hf://").split("/")
    if len(parts) < 2 or parts[0] == "datasets":
        raise InputError(
            f"{FIELD}: {source}: a model on the hub is hf://ORG/NAME@REVISION, also with /FILE.gguf"
        )
    name, _, revision = parts[1].partition("@")
    repository, file = f"{parts[0]}/{name}", "/".join(parts[2:])
    try:
        from huggingface_hub import HfApi, snapshot_download

        info = HfApi().model_info(repository, revision=revision or None)
        names = [item.rfilename for item in info.siblings or ()]
        patterns = [file] if file else ["*.safetensors", *_SMALL_FILES]
        if not file and not _weights(names):
            if any(fnmatch.fnmatch(item, pattern) for item in names for pattern in _PICKLED):
                raise InputError(_pickled_sentence(source))
            patterns = ["*.gguf"]
        cache = os.environ.get(MODEL_CACHE)
        place = {"cache_dir": cache} if cache else {"local_dir": str(scratch / "model-download")}
        target = Path(snapshot_download(repository, revision=info.sha, allow_patterns=patterns, **place))
    except InputError:
        raise
    except Exception as error:
        raise InputError(unreachable(source, FIELD, error)) from error
    resolved = f"hf://{repository}@{info.sha}" + (f"/{file}" if file else "")
    return (target / file if file else target), resolved


def _gguf_file(origin: Path, source: str) -> Path | None:
    if origin.is_file():
        if origin.suffix != ".gguf":
            raise InputError(f"{FIELD}: {source}: not a model file; {_ACCEPTED}")
        return origin
    found = sorted(origin.glob("*.gguf"))
    if (origin / "config.json").is_file() or not found:
        return None
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise InputError(f"{FIELD}: {source} has {len(found)} GGUF files ({names}); name one of them")
    return found[0]


def _check_folder(origin: Path, source: str) -> None:
    if not (origin / "config.json").is_file():
        raise InputError(f"{FIELD}: {source}: no config.json there; {_ACCEPTED}")
    check_no_remote_code(origin, source)
    names = [path.name for path in origin.iterdir()]
    if not any(name.endswith(".safetensors") for name in names):
        if any(fnmatch.fnmatch(name, pattern) for name in names for pattern in _PICKLED):
            raise InputError(_pickled_sentence(source))
        raise InputError(f"{FIELD}: {source}: no *.safetensors file there; {_ACCEPTED}")


def _pickled_sentence(source: str) -> str:
    return (
        f"{FIELD}: {source} has pickled weights only (.bin, .pt), which can run code when they are read; "
        "use a revision with safetensors, or convert the model"
    )


def _weights(names: list[str]) -> list[str]:
    return [name for name in names if name.endswith(".safetensors") and "/" not in name]


def _wanted(names: list[str], origin: Path, source: str) -> list[str]:
    """The files to take: of several sets of weights the one that transformers would load."""
    small = [name for name in names if name in _SMALL_FILES]
    if "model.safetensors.index.json" in names:
        index = read_json(origin / "model.safetensors.index.json", source)
        weights = sorted(set(index.get("weight_map", {}).values()))
        missing = [name for name in weights if name not in names]
        if missing:
            raise InputError(f"{FIELD}: {source}: {missing[0]} is missing; download the model again")
        return small + weights
    weights = _weights(names)
    if len(weights) > 1 and "model.safetensors" in weights:
        weights = ["model.safetensors"]
    return small + weights


def _link_or_copy(origin: Path, target: Path) -> None:
    """Weights are linked where the volume allows it; the rest is small."""
    origin = origin.resolve()
    if origin.suffix == ".safetensors":
        try:
            os.link(origin, target)
            return
        except OSError:
            pass
    shutil.copyfile(origin, target)


def _convert(what: str, origin: Path, folder: Path, source: str, beat: Beat) -> None:
    """Run the converter, which needs torch or transformers, in a process of its own."""
    quiet = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    done = run_module("dapt_trainer.data.base_model.convert", [what, str(origin), str(folder)], quiet, beat)
    if done.returncode in (-9, 137):
        raise StageOutOfMemoryError(
            f"{FIELD}: {source}: memory ran out while it was converted; give prepare more memory"
        )
    if done.returncode:
        kind = "this GGUF file" if what == "gguf" else "its tokenizer"
        raise InputError(
            f"{FIELD}: {source}: transformers cannot read {kind} ({done.last_error}); "
            "use the model's safetensors version"
        )
