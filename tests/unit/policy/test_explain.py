"""What `explain` says, word for word, and that it says all of it."""

from __future__ import annotations

import pytest

from avow.policy import explain, parse_policy
from tests.unit.policy.examples import RULES, head, lines_of, policy_for, rule_text

A = "a1" * 32

POLICY = f"""
version = 1
name = "plant"
unsafe_simulated = true
module = ["sha256:{A}", "{"b2" * 32}"]
runtime = "any"
configuration = "sha256:{A}"
evidence_age_s = {{ min = -60, max = 300 }}

[[any]]
platform = "simulated"
role = "server"

[[any]]
platform = "sgx"
unsafe_debug = true
sgx.mrenclave = "{A}"
tcb.status = {{ accept = ["UpToDate"], grace = ["OutOfDate"], grace_days = 30 }}
tcb.advisories = {{ subset_of = ["A-1"], none_of = ["A-2"], grace = ["A-3"], grace_days = 5 }}
tcb.evaluation_number = {{ min = 17 }}
collateral.crl_checked = true
collateral.age_s = {{ max = 86400 }}
not = {{ sgx.isv_svn = 3, any = [{{ sgx.isv_prod_id = 1 }}, {{ not = {{ role = "server" }} }}] }}
"""

WORDS = f"""\
The policy "plant"
(ID)

WARNING: it accepts simulated evidence. Nothing is protected then.

It accepts evidence in 2 ways, and refuses everything else.

1. Evidence from the simulation, which proves nothing (rule `any[1]`), when
   - `module` (SHA-256 of the WebAssembly module) is {A} or {"b2" * 32}
   - `configuration` (SHA-256 of the configuration) is {A}
   - `evidence_age_s` (Age by the sender's clock, in seconds) is from -60 to 300
   - `role` (server, client, document, certificate or program) is server
   It accepts with a warning, because it does not look at
   - `runtime` (SHA-256 of the runtime's manifest)

2. Evidence from Intel SGX (rule `any[2]`), when
   - `module` (SHA-256 of the WebAssembly module) is {A} or {"b2" * 32}
   - `configuration` (SHA-256 of the configuration) is {A}
   - `evidence_age_s` (Age by the sender's clock, in seconds) is from -60 to 300
   - `sgx.mrenclave` (Measurement of the enclave) is {A}
   - `tcb.status` (Intel's status for the platform's patch level) is UpToDate, or OutOfDate until \
30 days after the date of the TCB level
   - `tcb.advisories` (Intel's advisories that apply) has nothing but [A-1], or A-3 until 5 days \
after the date of the TCB level, has none of [A-2]
   - `tcb.evaluation_number` (tcbEvaluationDataNumber of the collateral) is at least 17
   - `collateral.crl_checked` (A current revocation list was consulted) is true
   - `collateral.age_s` (Seconds since the oldest collateral was issued) is at most 86400
   - and it is not true that `sgx.isv_svn` is 3 and (`sgx.isv_prod_id` is 1 or not \
(`role` is server))
   It accepts with a warning, because it does not look at
   - `runtime` (SHA-256 of the runtime's manifest)
   - `debug` (The platform lets its operator look inside) (`unsafe_debug`)
"""


def test_words() -> None:
    policy = parse_policy(POLICY, name="x")
    assert explain(policy).replace(policy.policy_id, "ID") == WORDS


@pytest.mark.parametrize("name", sorted(RULES))
def test_every_claim_is_mentioned(name: str) -> None:
    text = explain(policy_for(name))
    assert "in one way only" in text
    for claim in lines_of(name):
        assert f"`{claim}`" in text
    assert "warning" not in text
    assert ("Nothing is protected" in text) is (name == "simulated")


def test_leniency_is_told_apart() -> None:
    none = dict.fromkeys(f"tpm.pcr.{n}" for n in range(8))
    rule = rule_text("tpm", {**none, "tpm.pcr": '"any"', "runtime": '"any"'})
    text = explain(parse_policy(head() + rule, name="x"))
    before, after = text.split("It accepts with a warning")
    assert "`tpm.pcr` (all of these registers)" in after
    assert "`runtime`" in after
    assert "`runtime`" not in before
