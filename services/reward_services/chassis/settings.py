"""The service's settings. A field `max_batch_items` is the environment variable
REWARD_MAX_BATCH_ITEMS, the flag --max-batch-items and, where it is a limit, the metadata's
`max_batch_items`. Flags win over the environment, the environment over defaults."""

from __future__ import annotations

import importlib.util
import ipaddress
import re
import sys
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    field_validator,
    model_validator,
)

MIB = 1024 * 1024

SAFE_DIALECTS = ("oip", "flow-factory", "unirl", "get-reward")
DIALECTS = (*SAFE_DIALECTS, "pickle")


def _none_port(value: object) -> object:
    return None if isinstance(value, str) and value.lower() == "none" else value


Port = Annotated[int | None, Field(ge=0, le=65535), BeforeValidator(_none_port)]


class SettingError(Exception):
    """What keeps a reward from loading is a setting; the message says which, and what to do."""


class ServiceSettings(BaseModel):
    """Settings of every reward service. The text under a field is its documentation, also in --help
    and in services/README.md."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    host: str = "127.0.0.1"
    """address both ports bind to"""
    http_port: Port = 8100
    """HTTP port; 0: any free one; none: no HTTP"""
    grpc_port: Port = 9100
    """gRPC port; 0: any free one; none: no gRPC"""
    next_free_port: bool = False
    """where a port is taken, take the next free one above it"""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto: cuda where there is one"""

    token: SecretStr | None = None
    """bearer token that callers must send"""
    token_file: Path | None = None
    """file that holds the token"""
    insecure_no_auth: bool = False
    """allow other machines to call without a token"""
    tls_cert_file: Path | None = None
    """certificate chain (PEM) for both ports"""
    tls_key_file: Path | None = None
    """private key (PEM) of the certificate"""
    tls_client_ca_file: Path | None = None
    """require client certificates signed by this CA (PEM)"""

    max_batch_items: int = Field(default=32, ge=1)
    """most items in one model batch"""
    max_batch_pixels: int = Field(default=0, ge=0)
    """most pixels in one batch; 0: no limit"""
    max_queue_delay_ms: int = Field(default=0, ge=0)
    """wait this long for a fuller batch while the device is idle"""
    max_queue_items: int = Field(default=1024, ge=1)
    """most items accepted and not yet answered, over all callers"""
    max_queue_bytes: int = Field(default=1024 * MIB, ge=1)
    """most request bytes held at a time, over all callers"""
    max_decoded_bytes: int = Field(default=2048 * MIB, ge=1)
    """most bytes of pixels decoded from files and held at a time, over all callers"""
    priority_aging_s: float = Field(default=10.0, ge=0)
    """head start of a priority over the next lower one, seconds"""
    oom_cap_s: float = Field(default=600.0, ge=0)
    """keep batches small this long after memory ran out, seconds"""
    prepare_threads: int = Field(default=0, ge=0, le=256)
    """threads that decode and prepare items; 0: one per core, at most 8"""

    max_request_items: int = Field(default=256, ge=1)
    """most items in one request"""
    max_request_bytes: int = Field(default=64 * MIB, ge=1, le=2**31 - 1)
    """most bytes in one request"""
    max_image_pixels: int = Field(default=16_777_216, ge=1)
    """most pixels in one image"""
    max_image_side: int = Field(default=8192, ge=1)
    """longest side of an image, pixels"""
    max_image_bytes: int = Field(default=32 * MIB, ge=1)
    """most bytes in one image"""
    max_prompt_bytes: int = Field(default=16 * 1024, ge=1)
    """longest prompt, bytes of UTF-8"""
    max_metadata_bytes: int = Field(default=64 * 1024, ge=1)
    """largest metadata of an item, bytes of JSON"""
    max_metadata_depth: int = Field(default=16, ge=1)
    """deepest nesting of an item's metadata"""
    default_timeout_ms: int = Field(default=60_000, ge=1)
    """deadline of calls that name none"""
    max_timeout_ms: int = Field(default=600_000, ge=1)
    """longest deadline a call may have"""

    drain_s: float = Field(default=30.0, ge=0)
    """time to finish accepted work after SIGTERM"""
    readiness_delay_s: float | None = Field(default=None, ge=0)
    """after SIGTERM, stay open this long while readiness says no, so that balancers notice;
    none: 0 on loopback, else 5"""
    dialects: str = ",".join(SAFE_DIALECTS)
    """protocols of other trainers to speak beside our own, with commas between; none: ours alone"""
    page: bool = True
    """serve the page at / on which a person tries the reward"""
    reflection: bool = False
    """serve gRPC reflection (grpcurl)"""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """least severe messages logged"""
    log_format: Literal["text", "json"] = "text"
    """form of the log lines"""
    port_file: Path | None = None
    """write the bound ports there as JSON; readiness comes later"""

    @field_validator("device")
    @classmethod
    def _check_device(cls, device: str) -> str:
        if not re.fullmatch(r"(auto|cpu|(cuda|mps|xpu)(:\d+)?)", device):
            raise ValueError(f"{device!r} is no device: choose auto, cpu, cuda, cuda:1, ...")
        return device

    @model_validator(mode="after")
    def _check(self) -> ServiceSettings:
        if self.http_port is None and self.grpc_port is None:
            raise ValueError("http_port and grpc_port are both none: nothing to serve")
        if self.port_file is not None and (not self.port_file.name or self.port_file.is_dir()):
            raise ValueError(f"port_file {self.port_file} is a folder: name a file")
        if self.token is not None and self.token_file is not None:
            raise ValueError("set token or token_file, not both")
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise ValueError("tls_cert_file and tls_key_file belong together")
        if self.tls_client_ca_file is not None and self.tls_cert_file is None:
            raise ValueError("tls_client_ca_file needs tls_cert_file and tls_key_file")
        has_token = self.token is not None or self.token_file is not None
        has_client_ca = self.tls_client_ca_file is not None
        knows_callers = self.is_loopback or has_token or has_client_ca
        self._check_dialects(knows_callers)
        if not (knows_callers or self.insecure_no_auth):
            raise ValueError(
                f"host {self.host!r} lets other machines call this service: set REWARD_TOKEN_FILE "
                "(or REWARD_TOKEN), or allow it with --insecure-no-auth"
            )
        return self

    def _check_dialects(self, knows_callers: bool) -> None:
        unknown = [name for name in self.enabled_dialects if name not in DIALECTS]
        if unknown:
            raise ValueError(
                f"dialects: there is no {unknown[0]!r}; choose from {', '.join(DIALECTS)}, or none"
            )
        if "pickle" in self.enabled_dialects and not knows_callers:
            raise ValueError(
                f"the dialect pickle is for callers on this machine or with a token: leave "
                f"{self.host}, set REWARD_TOKEN_FILE, or take pickle out of REWARD_DIALECTS"
            )

    @property
    def enabled_dialects(self) -> tuple[str, ...]:
        if self.dialects == "none":
            return ()
        return tuple(dict.fromkeys(name.strip() for name in self.dialects.split(",")))

    @property
    def is_loopback(self) -> bool:
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def effective_readiness_delay_s(self) -> float:
        if self.readiness_delay_s is not None:
            return self.readiness_delay_s
        return 0.0 if self.is_loopback else 5.0

    def read_token(self) -> str | None:
        """The bearer token. Raises ValueError when it is empty, OSError without its file."""
        if self.token_file is not None:
            token = self.token_file.read_text(encoding="utf-8").strip()
        elif self.token is not None:
            token = self.token.get_secret_value()
        else:
            return None
        if not token or not token.isascii():
            raise ValueError("the token is empty or not ASCII")
        return token

    def limits(self) -> dict[str, int]:
        """What the metadata tells callers: the settings that bound their requests."""
        names = [
            *(n for n in type(self).model_fields if n.startswith("max_")),
            "default_timeout_ms",
        ]
        return {name: getattr(self, name) for name in names}


def resolve_device(device: str) -> str:
    """The device "auto" stands for. Imports torch only on machines that have an accelerator."""
    if device != "auto":
        return device
    if sys.platform == "linux" and not any(
        Path(node).exists() for node in ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
    ):
        return "cpu"
    if importlib.util.find_spec("torch") is None:
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
