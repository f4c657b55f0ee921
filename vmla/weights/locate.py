"""Where weights are: a folder, a file, or a repository of the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

from plugins.errors import UserError
from vmla.weights.checkpoint import open_checkpoint, shipped_names

HUB_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+?)(@(?P<revision>[\w./-]+))?(:(?P<file>.+))?")
NEEDED = (
    "*.json", "diffusion_pytorch_model*.safetensors",
    "transformer/*", "vae/*", "text_encoder/*", "tokenizer/*",
)  # fmt: skip
"""What of a repository is downloaded when no single file is named."""


def locate(
    source: str, *, revision: str | None = None, offline: bool = False, cache: Path | None = None
) -> Path:
    """The folder or file that `source` names, downloaded once if it is on the hub.

    Args:
        source: a path, the name of a shipped model, or `owner/name`, `owner/name@revision`,
            `owner/name:path/of/a/file`.
        revision: of the hub's repository, if `source` does not name one.
        offline: look only at what was downloaded before; `HF_HUB_OFFLINE=1` says the same.
        cache: where downloads are kept; the hub's own place if not given.

    Raises:
        UserError: if there is nothing of that name.
    """
    if source in shipped_names():
        return open_checkpoint(source).folder
    if Path(source).exists():
        return Path(source)
    named = HUB_ID.fullmatch(source)
    if named is None or source.startswith((".", "/", "~")):
        raise UserError(f"{source} does not exist; give a folder, a file, or a hub id like owner/name")
    wanted = named["revision"] or revision
    return _download(named["repo"], wanted, named["file"], offline=offline, cache=cache)


def _download(
    repo: str, revision: str | None, file: str | None, *, offline: bool, cache: Path | None
) -> Path:
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        if file is not None:
            return Path(
                hf_hub_download(repo, file, revision=revision, local_files_only=offline, cache_dir=cache)
            )
        return Path(
            snapshot_download(
                repo,
                revision=revision,
                local_files_only=offline,
                cache_dir=cache,
                allow_patterns=list(NEEDED),
            )
        )
    except LocalEntryNotFoundError as error:
        raise UserError(f"{repo} was not downloaded before and the hub is out of reach") from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"cannot get {repo} from the hub: {reason}") from error
