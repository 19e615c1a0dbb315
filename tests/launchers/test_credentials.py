"""What a user's Secret can set in a stage: a closed list of names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dapt_contract.pod.credentials import CREDENTIALS, credentials_table, without_secrets
from dapt_operator.api.v1alpha1.spec_operation import Credential
from dapt_operator.launchers import LAUNCHERS
from support.launch_builders import owner, profile, stage_run

HOSTILE = (
    "PYTHONPATH",
    "PYTHONSTARTUP",
    "LD_PRELOAD",
    "LD_LIBRARY_PATH",
    "HF_ENDPOINT",
    "AWS_ENDPOINT_URL",
    "AWS_CONFIG_FILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "GOOGLE_APPLICATION_CREDENTIALS",
    "STORAGE_EMULATOR_HOST",
    "HTTPS_PROXY",
    "https_proxy",
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "PATH",
    "FSSPEC_S3_ENDPOINT_URL",
    "HF_HUB_OFFLINE",
    "DAPT_WORK",
    "TRANSFORMERS_CACHE",
)


def trainer(*secrets: str, **container: Any) -> dict[str, Any]:
    given = {"spec": {"containers": [{"name": "trainer"} | container]}}
    run = stage_run("done", secret_names=secrets)
    *_, job = LAUNCHERS["IndexedJob"].render(run, profile(podTemplate=given), owner())
    found: dict[str, Any] = job["spec"]["template"]["spec"]["containers"][0]
    return found


def environment(container: dict[str, Any], secrets: dict[str, dict[str, str]]) -> dict[str, str]:
    """The variables of the trainer, whose container a kubelet has started with the Secrets of its namespace."""
    variables: dict[str, str] = {}
    for source in container.get("envFrom", []):
        data = secrets[source["secretRef"]["name"]]
        variables |= {source.get("prefix", "") + key: value for key, value in data.items()}
    for item in container["env"]:
        reference = item.get("valueFrom", {}).get("secretKeyRef")
        if reference is None:
            variables[item["name"]] = item.get("value", "")
        elif reference["key"] in secrets[reference["name"]]:
            variables[item["name"]] = secrets[reference["name"]][reference["key"]]
        else:
            assert reference["optional"] is True
    return without_secrets(variables)


@pytest.mark.parametrize("name", HOSTILE)
def test_other_entries_of_a_secret_set_no_variable(name: str) -> None:
    container = trainer("dapt-s3")
    without = environment(container, {"dapt-s3": {}})
    assert environment(container, {"dapt-s3": {name: "hostile"}}) == without


def test_credentials_arrive_under_their_names_and_of_two_secrets_the_later_wins() -> None:
    container = trainer("dapt-s3", "dapt-hub")
    secrets = {"dapt-s3": dict.fromkeys(CREDENTIALS, "first"), "dapt-hub": {"HF_TOKEN": "second"}}
    found = environment(container, secrets)
    assert {name: found[name] for name in CREDENTIALS} == dict.fromkeys(CREDENTIALS, "first") | {
        "HF_TOKEN": "second"
    }


def test_no_variable_has_two_values() -> None:
    names = [item["name"] for item in trainer("dapt-s3", "dapt-hub", "dapt-more")["env"]]
    assert len(names) == len(set(names))  # the schema of JobSets refuses it


def test_of_many_secrets_the_latest_that_has_an_entry_counts() -> None:
    secrets = [f"dapt-{number}" for number in range(12)]
    data = {name: {"HF_TOKEN": name} for name in secrets[:11]} | {secrets[11]: {"AWS_SESSION_TOKEN": "x"}}
    assert environment(trainer(*secrets), data)["HF_TOKEN"] == "dapt-10"


def test_a_missing_secret_still_keeps_the_pod_from_starting() -> None:
    required = [
        item["secretRef"] for item in trainer("dapt-s3")["envFrom"] if not item["secretRef"].get("optional")
    ]
    assert required == [{"name": "dapt-s3"}]


def test_a_credential_that_the_profile_sets_is_the_profiles() -> None:
    container = trainer("dapt-hub", env=[{"name": "HF_TOKEN", "value": "platform"}])
    assert environment(container, {"dapt-hub": {"HF_TOKEN": "tenant"}})["HF_TOKEN"] == "platform"


@pytest.mark.parametrize("name", ["dapt-clinical-01234567-signing", "dapt--89abcdef-signing"])
def test_a_signing_key_is_no_credential(name: str) -> None:
    with pytest.raises(ValueError, match="holds the key that signs checkpoints, which is no credential"):
        Credential.model_validate({"secretName": name, "use": "read"})


@pytest.mark.parametrize("name", ["dapt-git-signing", "dapt-s3", "dapt-clinical-01234567-signing-2"])
def test_secrets_of_other_names_are_credentials(name: str) -> None:
    assert Credential.model_validate({"secretName": name, "use": "read"}).secret_name == name


def test_no_process_of_a_pod_imports_from_its_working_folder() -> None:
    container = trainer(env=[{"name": "PYTHONSAFEPATH", "value": ""}])
    values = [item["value"] for item in container["env"] if item["name"] == "PYTHONSAFEPATH"]
    assert values == ["1"]


def test_the_documented_table_of_credentials_is_this_one() -> None:
    page = (Path(__file__).parents[2] / "docs/security.md").read_text()
    table = page.split("<!-- table of credentials.py -->\n")[1].split("<!-- end -->")[0]
    assert table == credentials_table(), "write credentials_table() into docs/security.md"
