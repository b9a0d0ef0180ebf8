"""What reward-gateway is told: flags, variables, files, and what is wrong with them."""

from __future__ import annotations

import argparse
import os
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from reward_services import __version__

_EPILOG = """\
example:
  reward-gateway --reward pickscore=http://a:8103,http://b:8103 --reward ocr=grpc://c:9101 \\
      --http-port 8200

The names that UniRL and cosmos-rl give to our rewards are known (unified_reward, clip, image_reward,
gen_eval, hps); --alias adds others. Every flag is also a variable:
REWARD_GATEWAY_HTTP_PORT, ...
"""


@dataclass(frozen=True)
class Options:
    rewards: dict[str, list[str]]
    """addresses by name"""
    aliases: dict[str, str]
    host: str
    http_port: int
    timeout: float
    max_request_bytes: int
    max_held_bytes: int
    token: str | None
    upstream_token: str | None
    tls_cert_file: Path | None
    tls_key_file: Path | None
    tls_client_ca_file: Path | None
    upstream_ca_file: Path | None
    upstream_cert_file: Path | None
    upstream_key_file: Path | None


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> Options:
    """Ends the program with status 2 and one line when something is wrong."""
    given = parser.parse_args(argv)
    told = given.reward or os.environ.get("REWARD_GATEWAY_REWARD", "").split()
    if not told:
        parser.error("name the rewards: --reward NAME=URL, once for each")
    rewards = dict(_pair(parser, "--reward", text, "NAME=URL[,URL]") for text in told)
    if len(rewards) < len(told):
        parser.error("--reward: two rewards have the same name")
    _check_files(parser, given)
    token = _token(parser, "--token-file", given.token_file)
    is_loopback = given.host in ("localhost", "::1") or given.host.startswith("127.")
    if not (is_loopback or token or given.tls_client_ca_file or given.insecure_no_auth):
        parser.error(
            f"--host {given.host} lets other machines call: set --token-file, or allow it with "
            "--insecure-no-auth"
        )
    return Options(
        rewards={name: urls.split(",") for name, urls in rewards.items()},
        aliases=dict(
            _pair(parser, "--alias", text, "ALIAS=NAME")
            for text in given.alias or os.environ.get("REWARD_GATEWAY_ALIAS", "").split()
        ),
        token=token,
        upstream_token=_token(parser, "--upstream-token-file", given.upstream_token_file),
        **{
            name: getattr(given, name)
            for name in (
                *("host", "http_port", "timeout", "max_request_bytes", "max_held_bytes"),
                *("tls_cert_file", "tls_key_file", "tls_client_ca_file"),
                *("upstream_ca_file", "upstream_cert_file", "upstream_key_file"),
            )
        },
    )


def make_parser(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="reward-gateway",
        description=description,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument(
        "--reward",
        action="append",
        metavar="NAME=URL[,URL]",
        help="a reward and its replicas; repeat for each reward "
        "(REWARD_GATEWAY_REWARD, with spaces between)",
    )
    parser.add_argument(
        "--alias",
        action="append",
        metavar="ALIAS=NAME",
        help="another name for it (REWARD_GATEWAY_ALIAS)",
    )
    for flag, kind, default, text in (
        ("--host", str, "127.0.0.1", "address to listen on"),
        ("--http-port", _port, 8200, "HTTP port; 0: any free one"),
        ("--timeout", _seconds, 120.0, "seconds for one batch of one reward, retries included"),
        ("--max-request-bytes", _size, 512 * 2**20, "most bytes in one request"),
        ("--max-held-bytes", _size, 2 * 2**30, "most request bytes held at a time"),
        ("--token-file", Path, None, "file with the token that callers must send"),
        ("--tls-cert-file", Path, None, "certificate chain (PEM): the gateway speaks TLS"),
        ("--tls-key-file", Path, None, "private key (PEM) of the certificate"),
        ("--tls-client-ca-file", Path, None, "require client certificates signed by this CA (PEM)"),
        ("--upstream-token-file", Path, None, "file with the token that the rewards want"),
        ("--upstream-ca-file", Path, None, "CA (PEM) of the rewards' https:// and grpcs:// URLs"),
        ("--upstream-cert-file", Path, None, "certificate (PEM) that the rewards ask for"),
        ("--upstream-key-file", Path, None, "private key (PEM) of that certificate"),
    ):
        variable = "REWARD_GATEWAY_" + flag.lstrip("-").replace("-", "_").upper()
        parser.add_argument(
            flag,
            type=kind,
            default=os.environ.get(variable) or default,
            metavar=flag.rpartition("-")[2].upper(),
            help=f"{text} (default {default}; {variable})",
        )
    parser.add_argument(
        "--insecure-no-auth",
        action="store_true",
        default=os.environ.get("REWARD_GATEWAY_INSECURE_NO_AUTH", "").lower() in ("1", "true"),
        help="let other machines call without a token (REWARD_GATEWAY_INSECURE_NO_AUTH)",
    )
    return parser


def _check_files(parser: argparse.ArgumentParser, given: argparse.Namespace) -> None:
    for first, second in (
        ("tls_cert_file", "tls_key_file"),
        ("upstream_cert_file", "upstream_key_file"),
    ):
        if (getattr(given, first) is None) != (getattr(given, second) is None):
            parser.error(f"{_flag(first)} and {_flag(second)} belong together")
    if given.tls_client_ca_file is not None and given.tls_cert_file is None:
        parser.error("--tls-client-ca-file needs --tls-cert-file and --tls-key-file")
    for name, path in vars(given).items():
        if isinstance(path, Path) and not path.is_file():
            parser.error(f"{_flag(name)} {path}: there is no such file; name one that exists")
    for ca, certificate, key in (
        (given.tls_client_ca_file, given.tls_cert_file, given.tls_key_file),
        (given.upstream_ca_file, given.upstream_cert_file, given.upstream_key_file),
    ):
        _check_pem(parser, ca, certificate, key)


def _check_pem(
    parser: argparse.ArgumentParser, ca: Path | None, certificate: Path | None, key: Path | None
) -> None:
    """OpenSSL's own errors name no file, and come only with the first connection."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        if ca:
            context.load_verify_locations(ca)
    except (OSError, ValueError) as error:
        parser.error(f"{ca} holds no certificate in PEM form ({error})")
    try:
        if certificate:
            context.load_cert_chain(certificate, key)
    except (OSError, ValueError) as error:
        parser.error(
            f"{certificate} and {key} are no certificate and its key in PEM form ({error})"
        )


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"{text} is no port from 0 to 65535")
    return port


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no number of seconds above 0")
    return seconds


def _size(text: str) -> int:
    size = int(text)
    if size < 1:
        raise argparse.ArgumentTypeError(f"{text} is no number of bytes above 0")
    return size


_port.__name__, _seconds.__name__, _size.__name__ = "port", "number of seconds", "number of bytes"


def _pair(parser: argparse.ArgumentParser, flag: str, text: str, form: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value) or "/" in name:
        parser.error(f"{flag} {text}: expected {form}")
    return name, value


def _token(parser: argparse.ArgumentParser, flag: str, path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        parser.error(f"{flag} {path}: {getattr(error, 'strerror', None) or error}")
    if not token or not token.isascii():
        parser.error(f"{flag} {path}: the token is empty or not ASCII")
    return token
