"""What an operator decides: one TOML file, and the environment over it.

`load_config` gives a `Config` of frozen sections or raises `ConfigError` with all problems at once.
"""

from bot.config.load import load_config, load_store_config
from bot.config.sections import (
    AdminConfig,
    Config,
    IngestConfig,
    LlmConfig,
    LogConfig,
    MatrixConfig,
    PersonaConfig,
    RoomConfig,
    RuleConfig,
    SledConfig,
    SourceConfig,
    StoreConfig,
)
from bot.errors import ConfigError

__all__ = [
    "AdminConfig",
    "Config",
    "ConfigError",
    "IngestConfig",
    "LlmConfig",
    "LogConfig",
    "MatrixConfig",
    "PersonaConfig",
    "RoomConfig",
    "RuleConfig",
    "SledConfig",
    "SourceConfig",
    "StoreConfig",
    "load_config",
    "load_store_config",
]
