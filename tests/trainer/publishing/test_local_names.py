"""What is published names no path of the machine that wrote it."""

from __future__ import annotations

import pytest

from dapt_trainer.publishing.older_transformers import published_config


@pytest.mark.parametrize("name", ["./out", "../base", ".", "/models/base", "~/base", "C:\\base"])
def test_a_local_path_is_not_published(name: str) -> None:
    assert published_config({"_name_or_path": name}) == {}


@pytest.mark.parametrize("name", ["org/base-1.0", "gpt2", ""])
def test_a_name_of_the_hub_is_kept(name: str) -> None:
    assert published_config({"_name_or_path": name}) == {"_name_or_path": name}
