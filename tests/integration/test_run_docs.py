"""What the pages about `avow run` show is what happens."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

from pydantic import BaseModel

from avow.sandbox.app_file import AppFile, LimitsTable, ProvisioningTable
from avow.sandbox.grants import KINDS, configuration_digest, parse_grants
from avow.sandbox.limits import Limits
from examples.sandbox import programs
from tests.pages.running import DOCS

GRANTS = (DOCS / "reference/grants.md").read_text()


def test_the_shown_wit_is_that_of_the_example() -> None:
    page = (DOCS / "how-to/programs.md").read_text()
    for each in (programs.WORLD_WIT, programs.RUN_WIT):
        assert f"```text\n{each}```" in page


def test_all_grants_and_keys_are_described() -> None:
    described = re.findall(r"^\| `(\w+)[:`]", GRANTS, re.MULTILINE)
    assert set(KINDS) <= set(described)
    tables: dict[str, type[BaseModel]] = {"limits": LimitsTable, "provisioning": ProvisioningTable}
    for key in AppFile.model_fields.keys() - tables:
        assert f"| `{key}` |" in GRANTS
    for table, model in tables.items():
        for key in model.model_fields:
            assert f"| `{table}.{key}` |" in GRANTS


def test_the_shown_json_has_the_shown_form() -> None:
    shown = re.search(r"```json\n(.*?)```", GRANTS, re.DOTALL)
    assert shown is not None
    content = json.loads(shown[1])
    grants = parse_grants(
        ["sealed:/notes", "env:HOME", "env:TZ=UTC", "clock:realtime", "plain:/in=x"],
        folder=Path("/"),
    )
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    expected = hashlib.sha256(b"avow app configuration v1\n" + text.encode()).digest()
    assert configuration_digest(content["args"], grants, Limits().measured()) == expected
