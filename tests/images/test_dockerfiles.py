"""No image can be built in a test, so what a build would do is checked: the linter's rules, the copied paths, the
wheel that the copied files give, what it would install, and that its entry points start."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest
import yaml
from dockerfile_parse import DockerfileParser
from packaging.requirements import Requirement
from pathspec import GitIgnoreSpec

from dapt_contract.pod import environment as pod

ROOT = Path(__file__).parents[2]
SCRIPTS = Path(sysconfig.get_path("scripts"))
IMAGES = {"operator/Dockerfile": "operator", "trainer-image/Dockerfile": "trainer"}
"""Dockerfile -> the lock that it installs, which pins the extra of the same name."""
LOCKS = {"operator/Dockerfile": ("operator",), "trainer-image/Dockerfile": ("trainer", "gpu")}
"""Dockerfile -> all the extras that it installs, each with its lock."""
OTHER_FLAVOURS = "requirements/trainer-*.txt"
"""Locks for other flavours of CUDA, which a checkout may have and the build argument LOCK may name."""
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
each_image = pytest.mark.parametrize("dockerfile", IMAGES)


def instructions(dockerfile: str) -> list[tuple[str, str]]:
    path = ROOT / dockerfile
    parser = DockerfileParser(path=str(path.parent), cache_content=True)
    return [
        (item["instruction"], item["value"]) for item in parser.structure if item["instruction"] != "COMMENT"
    ]


def stages(dockerfile: str) -> list[list[tuple[str, str]]]:
    found: list[list[tuple[str, str]]] = []
    for instruction, value in instructions(dockerfile):
        if instruction == "FROM":
            found.append([])
        if found:  # before the first stage stands the name of the base
            found[-1].append((instruction, value))
    return found


def last_stage(dockerfile: str) -> dict[str, str]:
    return dict(stages(dockerfile)[-1])


def copied(dockerfile: str) -> list[str]:
    """Sources of COPY from the context."""
    values = [
        with_defaults(dockerfile, value)
        for instruction, value in instructions(dockerfile)
        if instruction == "COPY"
    ]
    return [source for value in values if not value.startswith("--from=") for source in value.split()[:-1]]


def run_lines(dockerfile: str) -> str:
    text = " ".join(value for instruction, value in instructions(dockerfile) if instruction == "RUN")
    return with_defaults(dockerfile, text)


def with_defaults(dockerfile: str, text: str) -> str:
    """Return the text of a build without arguments."""
    for name, default in build_arguments(dockerfile).items():
        text = text.replace(f"${{{name}}}", default)
    return text


def build_arguments(dockerfile: str) -> dict[str, str]:
    """Arguments of the build with their defaults."""
    values = [
        value for instruction, value in instructions(dockerfile) if instruction == "ARG" and "=" in value
    ]
    return dict(value.split("=", 1) for value in values)


@each_image
def test_dockerfile_passes_the_linter(dockerfile: str) -> None:
    done = subprocess.run(
        [SCRIPTS / "hadolint", "--failure-threshold", "style", dockerfile],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_linter_reports_a_bad_dockerfile(tmp_path: Path) -> None:
    bad = tmp_path / "Dockerfile"
    bad.write_text("FROM python\nRUN cd / && sudo pip install x\n")
    done = subprocess.run([SCRIPTS / "hadolint", bad], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert {"DL3006", "DL3004"} <= set(re.findall(r"DL\d{4}", done.stdout))


@each_image
def test_every_copied_path_is_there_and_in_the_context(dockerfile: str) -> None:
    ignored = GitIgnoreSpec.from_lines((ROOT / ".dockerignore").read_text().splitlines())
    sources = copied(dockerfile)
    assert "pyproject.toml" in sources
    for source in sources:
        path = ROOT / source
        assert path.exists(), source
        files = [path] if path.is_file() else list(path.rglob("*.py"))
        # git cannot take a file back out of a folder that is ignored, Docker can: judge by the last pattern that fits.
        patterns = [pattern for pattern in ignored.patterns if pattern.regex]
        for file in files:
            name = file.relative_to(ROOT).as_posix()
            last = [pattern.include for pattern in patterns if pattern.match_file(name)][-1]
            assert last is False, f".dockerignore keeps {name} out of the build"


def test_the_context_is_what_is_copied_and_nothing_more() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert lines[0] == "*"
    assert {line[1:] for line in lines if line.startswith("!")} == {
        *(source for dockerfile in IMAGES for source in copied(dockerfile)),
        OTHER_FLAVOURS,
    }


@each_image
def test_bases_have_a_tag_and_a_python_that_the_project_takes(dockerfile: str) -> None:
    bases = [value.split()[0] for instruction, value in instructions(dockerfile) if instruction == "FROM"]
    assert set(bases) == {"${BASE}"}  # what is built in the one runs in the other
    found = re.fullmatch(r"python:(3\.\d+)-slim-[a-z]+", build_arguments(dockerfile)["BASE"])
    assert found is not None
    assert PROJECT["project"]["requires-python"] == f">={found[1]}"


@each_image
def test_the_image_installs_its_lock_and_no_other(dockerfile: str) -> None:
    locks = [f"requirements/{extra}.txt" for extra in LOCKS[dockerfile]]
    installed = re.findall(r"--requirement (\S+)", run_lines(dockerfile))
    assert sorted(installed) == sorted(["requirements/build.txt", *locks])
    assert set(installed) <= set(copied(dockerfile))
    assert set(LOCKS[dockerfile]) <= PROJECT["project"]["optional-dependencies"].keys()


@each_image
def test_nothing_is_installed_that_has_no_hash_but_our_own_wheel(dockerfile: str) -> None:
    commands = re.findall(r"pip install (.*?)\s*(?:&&|$)", run_lines(dockerfile))
    locked = [command for command in commands if "--requirement" in command]
    assert len(locked) == 1 + len(LOCKS[dockerfile])
    for command in locked:
        assert {"--require-hashes", "--no-deps"} <= set(command.split())
        # A build in isolation would fetch the newest build tools, whose hashes nobody checks.
        assert "--no-build-isolation" in command or "--only-binary :all:" in command
    assert [command for command in commands if command not in locked] == ["--no-deps wheels/*.whl"]


@each_image
def test_image_user_is_not_root_and_has_a_name(dockerfile: str) -> None:
    last = last_stage(dockerfile)
    assert last["USER"] == "1000:1000"  # a number: the node can tell that it is not root
    assert "useradd --uid 1000 --user-group " in last["RUN"]


@each_image
def test_what_is_built_is_found_where_the_path_points(dockerfile: str) -> None:
    last = last_stage(dockerfile)
    assert last["COPY"] == "--from=build /opt/dapt /opt/dapt"
    assert "PATH=/opt/dapt/bin:$PATH" in last["ENV"]


def test_the_trainers_home_is_the_scratch_volume() -> None:
    last = last_stage("trainer-image/Dockerfile")
    assert f"HOME={pod.SCRATCH_MOUNT}" in last["ENV"].split()
    assert last["WORKDIR"] == pod.SCRATCH_MOUNT


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheel that each build makes of the files that it copies, and of nothing else."""
    made = {}
    for dockerfile, extra in IMAGES.items():
        context = tmp_path_factory.mktemp(extra)
        for source in copied(dockerfile):
            target = context / source
            target.parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / source, target)
        command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", "dist"]
        subprocess.run(command, cwd=context, check=True, capture_output=True)
        (made[dockerfile],) = (context / "dist").glob("*.whl")
    return made


@each_image
def test_the_copied_files_give_a_whole_wheel(dockerfile: str, wheels: dict[str, Path]) -> None:
    with zipfile.ZipFile(wheels[dockerfile]) as wheel:
        names = set(wheel.namelist())
    expected = {
        path.relative_to(source).as_posix()
        for source in (ROOT / "operator/src", ROOT / "trainer-image/src")
        for path in source.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert expected <= names


@each_image
def test_the_entry_point_is_what_is_installed_and_starts(
    dockerfile: str, wheels: dict[str, Path], tmp_path: Path
) -> None:
    with zipfile.ZipFile(wheels[dockerfile]) as wheel:
        wheel.extractall(tmp_path)
    (entry_points,) = tmp_path.glob("*.dist-info/entry_points.txt")
    last = last_stage(dockerfile)
    command = json.loads(last["ENTRYPOINT"])
    if command == ["dapt"]:
        assert "dapt = dapt_operator.cli:main" in entry_points.read_text()
        program = "from dapt_operator.cli import main; main()"
        started = [sys.executable, "-c", program, *json.loads(last["CMD"]), "--help"]
        usage = "Usage: dapt operator"
    else:
        assert command == ["python", "-m", "dapt_trainer"]
        started = [sys.executable, *command[1:], *json.loads(last["CMD"])]
        usage = "usage: python -m dapt_trainer"
    done = subprocess.run(
        started,
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert usage in done.stdout


@pytest.mark.parametrize(("extra", "has_torch"), [("operator", False), ("trainer", True)])
def test_only_the_trainers_image_gets_torch(extra: str, has_torch: bool, wheels: dict[str, Path]) -> None:
    dockerfile = next(name for name, installed in IMAGES.items() if installed == extra)
    with zipfile.ZipFile(wheels[dockerfile]) as wheel:
        (metadata,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        message = HeaderParser().parsestr(wheel.read(metadata).decode())
    required = [Requirement(line) for line in message.get_all("Requires-Dist", [])]
    names = {item.name for item in required if not item.marker or item.marker.evaluate({"extra": extra})}
    assert ("torch" in names) is has_torch
    assert ("kopf" in names) is not has_torch


def test_the_launchers_command_is_the_trainers_entry_point() -> None:
    job = next(
        document
        for document in yaml.safe_load_all(
            (ROOT / "tests" / "golden" / "IndexedJob-one-cpu-pod.yaml").read_text()
        )
        if document["kind"] == "Job"
    )
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert json.loads(last_stage("trainer-image/Dockerfile")["ENTRYPOINT"]) == container["command"]
