"""The configuration file: YAML to frozen options, each with its line.

*Fails by*: `ConfigError`, which lists every problem with file, line and key.
"""

from gateway.config.load import json_schema, load, octets, parse
from gateway.config.model import Config
from gateway.config.problems import ConfigError, Problem
from gateway.config.recipients import RecipientCheck

__all__ = ["Config", "ConfigError", "Problem", "RecipientCheck", "json_schema", "load", "octets", "parse"]
