"""Whether a pipeline can be had, before hours of download are tried."""

from __future__ import annotations

from pathlib import Path

from flow_trainer.errors import ConfigError

INDEX = "model_index.json"


def can_load(path: str, revision: str | None) -> str:
    """Where the pipeline comes from: a folder, the cache, or the hub with the present token. Raises
    ConfigError with the fix when it cannot come from anywhere."""
    if Path(path).is_dir():
        if not (Path(path) / INDEX).exists():
            raise ConfigError(f"{path} has no {INDEX}: model.path is the folder of a pipeline")
        return f"the folder {path}"
    from huggingface_hub import (
        get_hf_file_metadata,
        get_token,
        hf_hub_url,
        try_to_load_from_cache,
    )
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    token = "a token" if get_token() else "no token"
    try:
        if isinstance(try_to_load_from_cache(path, INDEX, revision=revision), str):
            return f"{path}, in the local cache at least in part"
        get_hf_file_metadata(hf_hub_url(path, INDEX, revision=revision))
    except GatedRepoError as error:
        raise ConfigError(
            f"{path} is gated and {token} is set that may read it: accept its licence on the "
            "model's page, then run `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise ConfigError(
            f"the hub has no {path}, or it is private ({token} is set): correct model.path, or run "
            "`hf auth login`"
        ) from error
    except Exception as error:  # network errors are those of the hub client's HTTP library
        raise ConfigError(
            f"model.path = {path!r} is no folder, and the hub cannot be asked: "
            f"{str(error).splitlines()[0]}"
        ) from error
    return f"{path} on the hub, readable with {token}"
