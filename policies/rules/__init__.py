"""The operator's own rules, in CEL: see docs/policies/rules.md."""

from policies.rules.policy import Rule, Rules, RulesOptions

__all__ = ["Rule", "Rules", "RulesOptions"]
