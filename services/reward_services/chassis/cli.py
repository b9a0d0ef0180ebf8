"""`reward-serve NAME --flags`: settings from flags and environment, help, warnings about typos."""

from __future__ import annotations

import argparse
import difflib
import types
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from reward_services.chassis.scorer import ScorerSettings
from reward_services.chassis.settings import ServiceSettings

PREFIX = "REWARD_"
NO_DEFAULTS: Mapping[str, Any] = {}
M = TypeVar("M", bound=BaseModel)
S = TypeVar("S", bound=ScorerSettings)


class SettingsError(ValueError):
    """A setting is wrong; the message names it and says what it takes."""


def env_name(field: str, reward: str = "") -> str:
    """`max_batch_items` -> REWARD_MAX_BATCH_ITEMS; `score` of reward `ocr` -> REWARD_OCR_SCORE."""
    parts = [reward, field] if reward else [field]
    return PREFIX + "_".join(parts).upper()


def flag_name(field: str) -> str:
    return "--" + field.replace("_", "-")


def parse_settings(
    reward: str,
    own: type[S],
    argv: Sequence[str],
    environ: Mapping[str, str],
) -> tuple[ServiceSettings, S]:
    """The service's and the reward's settings. Raises SettingsError; --help and bad flags exit."""
    clash = ServiceSettings.model_fields.keys() & own.model_fields.keys()
    if clash:
        raise SettingsError(f"reward {reward} reuses names of service settings: {sorted(clash)}")
    flags = vars(_parser(reward, own).parse_args(argv))
    return (
        _build(ServiceSettings, "", flags, environ, own.service_defaults),
        _build(own, reward, flags, environ),
    )


def unknown_variables(
    reward: str,
    own: type[ScorerSettings],
    environ: Mapping[str, str],
    other_rewards: Collection[str] = (),
) -> dict[str, str | None]:
    """REWARD_* variables that set nothing here, with the nearest name that would. Those of other
    rewards are left alone: one environment may configure many services."""
    known = [env_name(field) for field in ServiceSettings.model_fields]
    known += [env_name(field, reward) for field in own.model_fields]
    foreign = tuple(env_name("", other) for other in other_rewards if other != reward)
    unknown = [
        name
        for name in environ
        if name.startswith(PREFIX) and name not in known and not name.startswith(foreign)
    ]
    return {name: _nearest(name, known) for name in unknown}


def _nearest(name: str, known: Sequence[str]) -> str | None:
    # Without the prefix, which would make everything alike.
    by_rest = {other.removeprefix(PREFIX): other for other in known}
    close = difflib.get_close_matches(name.removeprefix(PREFIX), by_rest, n=1)
    return by_rest[close[0]] if close else None


def _parser(reward: str, own: type[ScorerSettings]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"reward-serve {reward}",
        usage=f"reward-serve {reward} [settings]",
        description=f"Serves the reward {reward!r} over HTTP and gRPC.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    if own.model_fields:
        _add_flags(parser.add_argument_group(f"settings of {reward}"), own, reward)
    service = parser.add_argument_group("settings of the service")
    _add_flags(service, ServiceSettings, "", own.service_defaults)
    return parser


def _add_flags(
    group: Any, model: type[BaseModel], reward: str, defaults: Mapping[str, Any] = NO_DEFAULTS
) -> None:
    for name, field in model.model_fields.items():
        default = defaults.get(name, field.default)
        default = "none" if default is None else default
        text = f"{_one_line(field.description)} [{env_name(name, reward)}; default: {default}]"
        options: dict[str, Any] = {"help": text.strip().replace("%", "%%"), "dest": name}
        if field.annotation is bool:
            options["action"] = argparse.BooleanOptionalAction
        else:
            options["metavar"] = _metavar(field.annotation)
        group.add_argument(flag_name(name), **options)


def _one_line(description: str | None) -> str:
    return " ".join((description or "").split())


def _metavar(annotation: Any) -> str:
    if get_origin(annotation) in (Union, types.UnionType):
        annotation = next(a for a in get_args(annotation) if a is not type(None))
    choices = get_args(annotation)
    if choices and all(isinstance(choice, str) for choice in choices):
        return "{" + ",".join(choices) + "}"
    return getattr(annotation, "__name__", "VALUE").upper()


def _build(
    model: type[M],
    reward: str,
    flags: Mapping[str, Any],
    environ: Mapping[str, str],
    defaults: Mapping[str, Any] = NO_DEFAULTS,
) -> M:
    values: dict[str, Any] = dict(defaults)
    for field in model.model_fields:
        if field in flags:
            values[field] = flags[field]
        elif environ.get(env_name(field, reward), "") != "":
            values[field] = environ[env_name(field, reward)]
    # "none" clears a setting that has a default, in files where a variable cannot be left out.
    for field, value in values.items():
        if value == "none" and model.model_fields[field].default is None:
            values[field] = None
    try:
        return model(**values)
    except ValidationError as error:
        raise SettingsError(_explain(error, reward)) from None


def _explain(error: ValidationError, reward: str) -> str:
    lines = []
    for problem in error.errors(include_url=False, include_input=False):
        message = problem["msg"].removeprefix("Value error, ")
        if problem["loc"]:
            field = str(problem["loc"][0])
            message = f"{flag_name(field)} ({env_name(field, reward)}): {message}"
        lines.append(message)
    return "; ".join(lines)
