"""Where weights are: a folder, a file, or a repository of the Hugging Face hub."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

from plugins.errors import UserError
from vmla.weights.checkpoint import SHIPPED, Checkpoint, open_checkpoint, shipped_names
from vmla.weights.formats.files import read_json

HUB_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+?)(@(?P<revision>[\w./-]+))?(:(?P<file>.+))?")
NEEDED = (
    "*.json", "diffusion_pytorch_model*.safetensors",
    "transformer/*", "vae/*", "text_encoder/*", "tokenizer/*", "scheduler/*",
    "Wan*_VAE.pth", "models_t5_*.pth", "google/*",
)  # fmt: skip
"""What of a repository is downloaded where no file is named: of diffusers' folders, ours and Wan's own."""
TRANSFORMER = ("transformer*/*.safetensors", "transformer*/*.bin", "diffusion_pytorch_model*")
"""What is left there by whoever needs the other parts alone."""
OURS = "VideoMLAPipeline"
PATIENCE = 3.0
"""Seconds that the hub has for its first answer."""
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Hub:
    """Where downloads come from and are kept: by default where `huggingface_hub` says, which asks `HF_HOME`,
    `HF_ENDPOINT` and `HF_HUB_OFFLINE` of its own."""

    offline: bool = False
    """Look only at what was downloaded before."""
    cache: Path | None = None
    endpoint: str | None = None

    def download(
        self, repo: str, revision: str | None, file: str | None, *, leave: Sequence[str] = ()
    ) -> Path:
        """A repository's folder, or one file of it, with a line of progress for what is not here yet.

        Of a folder, files that match one of `leave` are not downloaded.

        Raises:
            UserError: if it cannot be had.
        """
        from huggingface_hub import hf_hub_download, snapshot_download

        if not self.offline:
            log.info("nothing here is called %s: asking %s for it", repo, self._endpoint)
        how: dict[str, Any] = {
            "revision": revision, "local_files_only": not self._reachable, "cache_dir": self.cache,
            "endpoint": self.endpoint,
        }  # fmt: skip
        with refusals(repo, revision, file):
            if file is not None:
                return Path(hf_hub_download(repo, file, **how))
            return Path(
                snapshot_download(repo, allow_patterns=list(NEEDED), ignore_patterns=list(leave), **how)
            )

    @property
    def _endpoint(self) -> str:
        from huggingface_hub import constants

        return self.endpoint or constants.ENDPOINT

    @cached_property
    def _reachable(self) -> bool:
        """Whether the hub answers within seconds; its client would try for half a minute."""
        from huggingface_hub import get_session
        from huggingface_hub.errors import OfflineModeIsEnabled

        if self.offline:
            return False
        session: Any = get_session()
        silence: tuple[type[Exception], ...] = (OfflineModeIsEnabled, OSError, *_transport_errors(session))
        try:
            session.head(self._endpoint, timeout=PATIENCE)
        except silence as error:
            log.info("%s does not answer: %s", self._endpoint, error)
            return False
        return True


def _transport_errors(session: Any) -> tuple[type[Exception], ...]:
    """What the HTTP client of `huggingface_hub`, which is httpx under one name or another, raises."""
    package = import_module(type(session).__module__.partition(".")[0])
    return (package.TransportError,)


@contextmanager
def refusals(repo: str, revision: str | None = None, file: str | None = None) -> Iterator[None]:
    """What the hub refuses inside, in one line.

    Raises:
        UserError: in place of the hub's errors.
    """
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise UserError(f"{repo} is gated: ask for access on its page, then log in: hf auth login") from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"there is no {repo}, neither here nor on the hub, or it is private: log in with hf auth login"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{repo} has no revision {revision}; name a branch, a tag or a commit") from error
    except errors.LocalEntryNotFoundError as error:
        raise UserError(
            f"{repo} is nothing here, it was not downloaded before, and the hub is out of reach"
        ) from error
    except errors.EntryNotFoundError as error:
        raise UserError(f"{repo} has no file {file}; look at its list of files") from error
    except (errors.HfHubHTTPError, errors.HFValidationError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"cannot get {repo} from the hub: {reason}") from error


def locate(
    source: str, *, revision: str | None = None, hub: Hub | None = None, leave: Sequence[str] = ()
) -> Path:
    """The folder or file that `source` names, downloaded once if it is on the hub.

    Args:
        source: a path, the name of a shipped model, or `owner/name`, `owner/name@revision`,
            `owner/name:path/of/a/file`. What lies here under that name wins.
        revision: of the hub's repository, if `source` does not name one.
        hub: where to look.
        leave: files that need not be downloaded with a folder.

    Raises:
        UserError: if there is nothing of that name.
    """
    if source in shipped_names():
        return open_checkpoint(source).folder
    if Path(source).exists():
        return Path(source)
    named = _hub_id(source)
    if named is None:
        raise UserError(f"{source} does not exist; give a folder, a file, or a hub id like owner/name")
    return (hub or Hub()).download(named["repo"], named["revision"] or revision, named["file"], leave=leave)


def find_checkpoint(name: str | Path = SHIPPED, *, hub: Hub | None = None) -> Checkpoint:
    """As `open_checkpoint`; `owner/name` and `owner/name@revision` are downloaded once, unless they lie here.

    Raises:
        UserError: if there is none, or the repository holds a model of another kind; of such a one nothing
            but its index is downloaded.
    """
    named = None if Path(name).exists() or str(name) in shipped_names() else _hub_id(str(name))
    if named is None or named["file"] is not None:
        return open_checkpoint(name)
    hub, repo, revision = hub or Hub(), named["repo"], named["revision"]
    kind = read_json(hub.download(repo, revision, "model_index.json")).get("_class_name")
    if kind != OURS:
        raise UserError(
            f"{name} is a {kind}, not a checkpoint of VideoMLA; make one of it: "
            f"vmla-train convert --from {name} -o FOLDER"
        )
    return open_checkpoint(hub.download(repo, revision, None))


def _hub_id(source: str) -> re.Match[str] | None:
    return None if source.startswith((".", "/", "~")) else HUB_ID.fullmatch(source)
