"""Every key of the configuration: its type, its default and what it allows.

Rules for the next editor. A field's `description` is the "allowed" half of the message about a wrong value, so each
field has one. A check that spans fields stands on the last of them and looks back through `info.data`: pydantic then
runs it even when other fields are wrong, and all problems are told at once. A field that failed is absent there.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_core import InitErrorDetails

from bot.config.values import (
    Duration,
    FilePath,
    HeaderSecret,
    Host,
    HttpUrl,
    JmesPath,
    PersonaName,
    Port,
    PositiveDuration,
    RoomId,
    Secret,
    SledId,
    Text,
    UserId,
    UserPattern,
    WebhookSecret,
    Whole,
    is_whsec,
    not_empty,
    share_an_address,
    user_matches,
    wrong,
)

DEFAULT_PERSONA: Final = "default"
_NEEDED_BY: Final = {"openai": ("base_url", "model"), "anthropic": ("model", "api_key")}
"""The keys of [llm] that each provider can't do without."""


class Section(BaseModel):
    """The base of every section: frozen, and with no room for keys that nobody reads."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


def _problem_at(place: tuple[str | int, ...], problem: str) -> ValidationError:
    """Build the error for a place below the field that is being checked."""
    return ValidationError.from_exception_data("config", [InitErrorDetails(type=wrong(problem), loc=place, input=None)])


def _may_talk(admin: str, info: ValidationInfo) -> str:
    patterns = info.data.get("allowed_users")
    if patterns is not None and not any(user_matches(pattern, admin) for pattern in patterns):
        raise wrong("is not among allowed_users")
    return admin


class MatrixConfig(Section):
    """The homeserver, the bot's account there, and the people whom it serves."""

    homeserver: HttpUrl = Field(description="the homeserver's address, like https://matrix.example.org")
    user_id: UserId = Field(description="the bot's user id, like @musher:example.org")
    device_id: Text | None = Field(default=None, description="the device that access_token belongs to")
    access_token: HeaderSecret | None = Field(
        default=None, validate_default=True, description="an access token, together with device_id and without password"
    )
    password: Secret | None = Field(
        default=None, validate_default=True, description="either password, or access_token with device_id"
    )
    pickle_key: Secret | None = Field(
        default=None, description="a secret of any length that encrypts the bot's encryption keys at rest"
    )
    allowed_users: Annotated[tuple[UserPattern, ...], AfterValidator(not_empty)] = Field(
        description="a list of user ids or patterns of them, at least one, like @*:example.org"
    )
    admins: tuple[Annotated[UserId, AfterValidator(_may_talk)], ...] = Field(
        default=(), description="a list of user ids that allowed_users covers"
    )
    allowed_rooms: tuple[RoomId, ...] = Field(default=(), description='a list of room ids, like "!room:example.org"')
    respond_to: Literal["all", "mentions"] = Field(default="all", description="all or mentions")
    answer_backlog: Duration = Field(
        default=timedelta(hours=24), description="a number and a unit (s, m, h, d), like 90m, 24h or 7d"
    )
    max_parallel_rooms: Whole = Field(default=8, ge=1, le=256, description="a whole number from 1 to 256")

    def allows(self, user_id: str) -> bool:
        """Tell whether this person may invite the bot and talk to it."""
        return any(user_matches(pattern, user_id) for pattern in self.allowed_users)

    @field_validator("access_token")
    @classmethod
    def _names_its_device(cls, token: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if token is not None and info.data.get("device_id", "") is None:
            raise wrong("is given without device_id")
        return token

    @field_validator("password")
    @classmethod
    def _one_way_in(cls, password: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        has_token = info.data.get("access_token", "") is not None
        if password is None and not has_token:
            raise wrong("is missing, and so is access_token")
        if password is not None and has_token:
            raise wrong("is given together with access_token")
        if password is not None and info.data.get("device_id") is not None:
            raise wrong("is given together with device_id (a device logged in by password is kept by Musher itself)")
        return password


class StoreConfig(Section):
    """The database, and how long it keeps events."""

    path: FilePath = Field(
        default=Path("data/musher.db"), description="a file's path; its folder is made when it is missing"
    )
    segment_events: Whole = Field(default=4_000, ge=1, le=100_000, description="a whole number from 1 to 100000")
    retention_events: Whole = Field(default=1_000_000, ge=1, description="a whole number, at least 1")
    retention_days: Whole = Field(default=90, ge=1, le=36_500, description="a whole number from 1 to 36500")


class SledConfig(Section):
    """This node's name in every event that it records."""

    id: SledId | None = Field(default=None, description="1-100 visible characters without spaces")


class LlmConfig(Section):
    """The language model, or none."""

    provider: Literal["openai", "anthropic", "digest"] = Field(
        "openai", description="openai (any OpenAI-compatible server), anthropic, or digest (no model)"
    )
    base_url: HttpUrl | None = Field(
        default=None,
        validate_default=True,
        description="the server's address up to /v1, like http://127.0.0.1:11434/v1 (anthropic: its own by default)",
    )
    model: Text | None = Field(
        default=None, validate_default=True, description="the model's name, as its server calls it"
    )
    api_key: HeaderSecret | None = Field(
        default=None, validate_default=True, description="the server's key, or nothing if it needs none"
    )
    context_tokens: Whole = Field(default=8192, ge=256, le=100_000_000, description="a whole number, at least 256")
    max_reply_tokens: Whole = Field(
        default=1024, ge=1, validate_default=True, description="a whole number, at least 1 and less than context_tokens"
    )
    timeout: PositiveDuration = Field(
        default=timedelta(seconds=120), description="a number and a unit (s, m, h, d), more than zero, like 120s"
    )
    temperature: float | None = Field(default=None, ge=0, le=2, allow_inf_nan=False, description="a number from 0 to 2")
    check_model: bool = Field(default=True, description="true or false")

    @field_validator("base_url", "model", "api_key")
    @classmethod
    def _needed_to_ask_a_model(cls, value: str | SecretStr | None, info: ValidationInfo) -> str | SecretStr | None:
        provider = info.data.get("provider")
        if value is None and info.field_name in _NEEDED_BY.get(str(provider), ()):
            raise wrong(f'is missing, and the provider "{provider}" needs it')
        return value

    @field_validator("temperature")
    @classmethod
    def _where_one_is_taken(cls, temperature: float | None, info: ValidationInfo) -> float | None:
        if temperature is not None and info.data.get("provider") == "anthropic":
            raise wrong('is given, and the provider "anthropic" takes none')
        return temperature

    @field_validator("max_reply_tokens")
    @classmethod
    def _fits_the_context(cls, tokens: int, info: ValidationInfo) -> int:
        if tokens >= info.data.get("context_tokens", tokens + 1):
            raise wrong(f"leaves nothing of context_tokens ({info.data['context_tokens']}) for the conversation")
        return tokens


class PersonaConfig(Section):
    """Who the model is to be, in its own words."""

    instructions: Text = Field(description="the system prompt, not empty")


class RoomConfig(Section):
    """What a new session of one room starts with, and which events that room is given."""

    persona: PersonaName = Field(
        default=DEFAULT_PERSONA, description="the name of a persona: default, or a [personas.…] table"
    )
    filter: JmesPath | None = Field(default=None, description="a JMESPath expression over the event")


class RuleConfig(Section):
    """How one kind of webhook becomes an event: JMESPath over `{event, headers, body}`."""

    when: JmesPath | None = Field(default=None, description="a JMESPath condition; absent: always")
    story_id: JmesPath = Field(description="a JMESPath expression that gives a string")
    from_stage: JmesPath = Field(default="''", description="a JMESPath expression that gives a string")
    to_stage: JmesPath = Field(default="''", description="a JMESPath expression that gives a string")
    pipeline_event: JmesPath = Field(description="a JMESPath expression that gives a string")


class SourceConfig(Section):
    """One sender of webhooks: its address `/v1/hooks/<name>`, its kind and its secrets."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9_-]{1,64}$", description="1-64 letters, digits, - or _, not used by another source"
    )
    kind: Literal["github", "gitlab", "forgejo", "gitea", "jira", "linear", "standard", "bearer"] = Field(
        description="github, gitlab, forgejo, gitea, jira, linear, standard or bearer"
    )
    secrets: Annotated[tuple[WebhookSecret, ...], AfterValidator(not_empty)] = Field(
        description='a list of at least one; for gitlab all start with "whsec_" or none does'
    )
    rules: tuple[RuleConfig, ...] = Field(default=(), description="a list of tables; empty: the preset of the kind")

    @field_validator("secrets")
    @classmethod
    def _not_mixed(cls, secrets: tuple[SecretStr, ...], info: ValidationInfo) -> tuple[SecretStr, ...]:
        # A GitLab with a signing token never falls back to the plain one, so a mix would weaken the signed half.
        if info.data.get("kind") == "gitlab" and len({is_whsec(secret) for secret in secrets}) > 1:
            raise wrong('mixes signing tokens ("whsec_…") with plain ones')
        return secrets


class IngestConfig(Section):
    """The public HTTP listener, where events come in."""

    host: Host = Field(default="127.0.0.1", description="the address to listen on, like 127.0.0.1 or 0.0.0.0")
    port: Port = Field(default=8080, description="a port from 0 to 65535; 0: any that is free")
    tokens: tuple[HeaderSecret, ...] = Field(
        default=(), description="a list of bearer tokens, visible ASCII characters each"
    )
    sources: tuple[SourceConfig, ...] = Field(default=(), description="a list of tables, [[ingest.sources]]")

    @field_validator("sources")
    @classmethod
    def _one_address_each(cls, sources: tuple[SourceConfig, ...]) -> tuple[SourceConfig, ...]:
        names = [source.name for source in sources]
        for i, name in enumerate(names):
            if name in names[:i]:
                raise _problem_at((i, "name"), f'"{name}" is the name of another source')
        return sources


class AdminConfig(Section):
    """The private HTTP listener: metrics and status, with all details."""

    host: Host = Field(default="127.0.0.1", description="the address to listen on; other people should not reach it")
    port: Port = Field(default=9090, description="a port from 0 to 65535 other than ingest.port; 0: any that is free")


class LogConfig(Section):
    """How the service tells what it does."""

    format: Literal["json", "console"] = Field(default="json", description="json or console")
    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="debug, info, warning or error"
    )


def _persona_exists(room: RoomConfig, info: ValidationInfo) -> RoomConfig:
    personas = info.data.get("personas")
    if personas is not None and room.persona not in (DEFAULT_PERSONA, *personas):
        known = ", ".join(sorted({DEFAULT_PERSONA, *personas}))
        raise _problem_at(("persona",), f'"{room.persona}" is not a persona (there are: {known})')
    return room


class Config(Section):
    """All that an operator decides."""

    matrix: MatrixConfig = Field(description="a table, [matrix]")
    store: StoreConfig = Field(default=StoreConfig(), description="a table, [store]")
    sled: SledConfig = Field(default=SledConfig(), description="a table, [sled]")
    llm: LlmConfig = Field(description="a table, [llm]")
    personas: dict[PersonaName, PersonaConfig] = Field(
        default_factory=dict, description="tables [personas.<name>], 1-100 visible characters"
    )
    rooms: dict[RoomId, Annotated[RoomConfig, AfterValidator(_persona_exists)]] = Field(
        default_factory=dict, description='tables [rooms."!room:example.org"], named by room id'
    )
    ingest: IngestConfig = Field(default=IngestConfig(), description="a table, [ingest]")
    admin: AdminConfig = Field(default=AdminConfig(), validate_default=True, description="a table, [admin]")
    log: LogConfig = Field(default=LogConfig(), description="a table, [log]")

    @field_validator("admin")
    @classmethod
    def _listens_apart(cls, admin: AdminConfig, info: ValidationInfo) -> AdminConfig:
        ingest = info.data.get("ingest")
        if ingest is None or admin.port == 0 or admin.port != ingest.port:
            return admin
        if share_an_address(admin.host, ingest.host):
            raise _problem_at(("port",), f"{admin.port} is ingest.port as well")
        return admin
