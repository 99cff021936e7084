"""What is acceptable: rules over verified claims, read from TOML."""

from avow.policy.checks import CHECKS
from avow.policy.policy import Policy, denied
from avow.policy.policy_file import load_policy, parse_policy
from avow.policy.words import explain

__all__ = ["CHECKS", "Policy", "denied", "explain", "load_policy", "parse_policy"]
