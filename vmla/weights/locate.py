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
from vmla.weights.checkpoint import SHIPPED, Checkpoint, make_one_of, open_checkpoint, shipped_names
from vmla.weights.formats.files import INDEX, PIPELINE, read_json
from vmla.weights.published.families import refuse_pipeline, refuse_repository

HUB_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+?)(@(?P<revision>[\w./-]+))?(:(?P<file>.+))?")
NEEDED = (
    "*.json", "diffusion_pytorch_model*.safetensors",
    "transformer/*", "vae/*", "text_encoder/*", "tokenizer/*", "scheduler/*",
    "Wan*_VAE.pth", "models_t5_*.pth", "google/*",
)  # fmt: skip
"""Patterns of the files that are downloaded when no file is named: diffusers' folders, ours and Wan's own."""
TRANSFORMER = ("transformer*/*.safetensors", "transformer*/*.bin", "diffusion_pytorch_model*")
"""Patterns of the transformer's files, which are not downloaded where only the other parts are needed."""
PATIENCE = 3.0
"""Seconds to wait for the hub's first answer; its own client would retry for half a minute."""
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Hub:
    """Where downloads come from and where they are stored.

    By default `huggingface_hub` decides, which reads `HF_HOME`, `HF_ENDPOINT` and `HF_HUB_OFFLINE` itself."""

    offline: bool = False
    """Look only at files that were downloaded before."""
    cache: Path | None = None
    endpoint: str | None = None

    def download(
        self, repo: str, revision: str | None, file: str | None, *, leave: Sequence[str] = ()
    ) -> Path:
        """A repository's folder, or one file of it, with a line of progress for files that are not here yet.

        Of a folder, files that match one of `leave` are not downloaded.

        Raises:
            UserError: if it cannot be had.
        """
        from huggingface_hub import hf_hub_download, snapshot_download

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

    def announce(self, repo: str) -> None:
        """Print that the hub is asked, before a wait that is visible."""
        if not self.offline:
            log.info("nothing here is called %s: asking %s for it", repo, self._endpoint)

    def files(self, repo: str, revision: str | None) -> list[str]:
        """Names of a repository's files; none if the hub is not asked, or does not answer.

        Raises:
            UserError: if there is no such repository.
        """
        from huggingface_hub import HfApi, get_session

        if not self._reachable:
            return []
        with refusals(repo, revision):
            try:
                told = HfApi(endpoint=self.endpoint).model_info(repo, revision=revision)
            except _silence(get_session()):
                return []
        return [file.rfilename for file in told.siblings or ()]

    @property
    def _endpoint(self) -> str:
        from huggingface_hub import constants

        return self.endpoint or constants.ENDPOINT

    @cached_property
    def _reachable(self) -> bool:
        """Whether the hub answers within seconds; its client would try for half a minute."""
        from huggingface_hub import get_session

        if self.offline:
            return False
        session: Any = get_session()
        try:
            session.head(self._endpoint, timeout=PATIENCE)
        except _silence(session) as error:
            log.info("%s does not answer: %s", self._endpoint, error)
            return False
        return True


def _silence(session: Any) -> tuple[type[Exception], ...]:
    """The exceptions of an unreachable server: the client is httpx, whose name depends on its version."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    package = import_module(type(session).__module__.partition(".")[0])
    return (OfflineModeIsEnabled, OSError, package.TransportError)


@contextmanager
def refusals(repo: str, revision: str | None = None, file: str | None = None) -> Iterator[None]:
    """Inside, errors of the hub become one line.

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
            `owner/name:path/of/a/file`. A local path of that name wins.
        revision: of the hub's repository, if `source` does not name one.
        hub: where to look.
        leave: files that need not be downloaded with a folder.

    Raises:
        UserError: if there is nothing of that name, or a revision of it cannot be chosen; and for a
            repository without a text-to-video model, before it is downloaded, unless some of it is left,
            because its other parts are wanted.
    """
    here = open_checkpoint(source).folder if source in shipped_names() else Path(source)
    if here.exists():
        if revision is not None:
            raise UserError(f"{source} lies here, where it has no revision {revision}; leave that out")
        return here
    named = _hub_id(source)
    if named is None:
        raise UserError(f"{source} does not exist; give a folder, a file, or a hub id like owner/name")
    if revision is not None and named["revision"] not in (None, revision):
        raise UserError(f"{source} names another revision than {revision}; give one of them")
    hub, repo, revision = hub or Hub(), named["repo"], named["revision"] or revision
    hub.announce(repo)
    if named["file"] is None and not leave:
        _refuse_unread(hub, repo, revision)
    return hub.download(repo, revision, named["file"], leave=leave)


def _refuse_unread(hub: Hub, repo: str, revision: str | None) -> None:
    """Refuse a repository by its list of files and by its index, before gigabytes are downloaded."""
    files = hub.files(repo, revision)
    if not files:  # the hub does not answer: a downloaded copy is checked when it is opened
        return
    refuse_repository(files, repo)
    if INDEX in files:
        refuse_pipeline(read_json(hub.download(repo, revision, INDEX)), repo)


def find_checkpoint(name: str | Path = SHIPPED, *, hub: Hub | None = None) -> Checkpoint:
    """Open a checkpoint; `owner/name[@revision]` is downloaded from the hub once, unless it is a folder here.

    Raises:
        UserError: if there is none, or the repository holds a model of another kind, of which nothing but
            the index is downloaded.
    """
    named = None if Path(name).exists() or str(name) in shipped_names() else _hub_id(str(name))
    if named is None or named["file"] is not None:
        return open_checkpoint(name)
    hub, repo, revision = hub or Hub(), named["repo"], named["revision"]
    hub.announce(repo)
    if (files := hub.files(repo, revision)) and INDEX not in files:
        raise UserError(f"{name} is not a VideoMLA checkpoint: it has no {INDEX}; {make_one_of(str(name))}")
    kind = read_json(hub.download(repo, revision, INDEX)).get("_class_name")
    if kind != PIPELINE:
        raise UserError(f"{name} is a {kind}, not a checkpoint of VideoMLA; {make_one_of(str(name))}")
    return open_checkpoint(hub.download(repo, revision, None))


def _hub_id(source: str) -> re.Match[str] | None:
    return None if source.startswith((".", "/", "~")) else HUB_ID.fullmatch(source)
