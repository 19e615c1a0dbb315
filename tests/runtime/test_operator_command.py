"""`dapt operator` at the command line: its help, and mistakes in one sentence each."""

from __future__ import annotations

from pathlib import Path

import pytest

from dapt_operator.cli import main


@pytest.fixture(autouse=True)
def outside_a_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("KUBECONFIG", f"{tmp_path}/none")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["operator", *arguments])
    said = capsys.readouterr()
    return int(ended.value.code or 0), said.out, said.err


def test_help_names_every_option_with_its_variable(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--help")
    assert code == 0
    options = ("namespace", "instance", "lease-namespace", "lease-name", "port", "workers", "resync-seconds")
    for option in (*options, "log-format", "log-level"):
        assert f"--{option} " in out
    assert "DAPT_NAMESPACES" in out
    assert "DAPT_RESYNC_SECONDS" in out


def test_operator_command_reports_all_bad_values_and_starts_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, out, err = run(capsys, "--workers", "0", "--namespace", "Team", "--log-format", "xml")
    assert (code, out) == (2, "")
    assert err.splitlines() == [
        "dapt: --namespace 'Team': not a namespace; give the name of one, and the option again for each further one",
        "dapt: --workers 0: give a number from 1 to 64",
        "dapt: --log-format 'xml': give json or text",
    ]


def test_an_unknown_option_is_a_mistake_of_usage(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "--leader-elect")
    assert code == 2
    assert err == (
        "dapt: operator: no such option: --leader-elect (Possible options: --lease-name);"
        " `dapt operator -h` says what is accepted\n"
    )


def test_operator_command_without_a_cluster_reports_the_next_step(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, out, err = run(capsys)
    assert (code, out) == (1, "")
    assert err == (
        "dapt: no cluster to work in: this is not a pod with a service account, and the kubeconfig cannot be used"
        f" (there is no kubeconfig at {tmp_path}/none); set KUBECONFIG to one that can\n"
    )
