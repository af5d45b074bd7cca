"""Files of a model repository, fetched over HTTP: resumable, and checked against their digests.

huggingface_hub starts an interrupted file anew, which is hours for a large model; so the transfer
is ours. What users know stays: HF_ENDPOINT names another hub, and the token is the one that
huggingface_hub finds (HF_TOKEN, or `hf auth login`). Where the files go is `hub.py`'s.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from huggingface_hub import get_token

from fourbee.foundation.errors import ModelFileError, UsageError
from fourbee.model.checkpoint_files import COMPANIONS, CONFIG_FILE, INDEX_FILE, Progress
from fourbee.model.config import Qwen3Config

_HUB = "https://huggingface.co"
# Fetched beside the *.safetensors; every other file stays where it is: no pickles, no code.
_SMALL_FILES = (CONFIG_FILE, INDEX_FILE, *COMPANIONS)
_TIMEOUT_SECONDS = 30.0
# Attempts in a row that bring not a byte, and the pause between them.
_ATTEMPTS = 5
_PAUSE_SECONDS = 1.0


@dataclass(frozen=True)
class RemoteFile:
    """One file of a repository; the digest is sha256, or git's blob id for a small one."""

    name: str
    size: int
    digest: str


@dataclass(frozen=True)
class Repository:
    """A model on the hub at one commit, and those of its files that we take."""

    id: str
    commit: str
    files: tuple[RemoteFile, ...]


def open_client() -> httpx.Client:
    """A client for the hub; redirects to another host do not carry the token there."""
    endpoint = os.environ.get("HF_ENDPOINT") or _HUB
    token = get_token()
    # Compressed answers have no byte ranges to go on from.
    headers = {"Accept-Encoding": "identity", "User-Agent": "fourbee"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    try:
        return httpx.Client(
            base_url=endpoint, headers=headers, timeout=_TIMEOUT_SECONDS, follow_redirects=True
        )
    except httpx.InvalidURL:
        raise UsageError(f"HF_ENDPOINT = {endpoint!r}: expected a URL such as {_HUB}") from None


def find_repository(client: httpx.Client, model_id: str, revision: str) -> Repository:
    """What the hub has of this id; UsageError when it is unknown, gated or no model of ours."""
    url = f"/api/models/{model_id}/revision/{revision.replace('/', '%2F')}"
    try:
        response = client.get(url, params={"blobs": "true"})
    except httpx.HTTPError as error:
        raise _interrupted(client, model_id, _reason(error)) from None
    _refuse_denied(response, model_id, revision)
    if response.is_error:
        raise _interrupted(client, model_id, f"status {response.status_code}")
    try:
        values = response.json()
        commit = re.fullmatch(r"[0-9a-f]{7,64}", values["sha"])
        files = [_remote_file(entry) for entry in values["siblings"] if _wanted(entry["rfilename"])]
    except (ValueError, LookupError, TypeError, AttributeError):
        commit = None
    if commit is None:
        raise _interrupted(client, model_id, "not the answer of a model hub")
    names = {file.name for file in files}
    if CONFIG_FILE not in names or not any(name.endswith(".safetensors") for name in names):
        raise UsageError(
            f"model {model_id!r}: not a model of ours; expected {CONFIG_FILE} and safetensors in "
            "its repository",
            "model",
        )
    # The configuration comes first: a model that we cannot run is refused before its weights.
    files.sort(key=lambda file: (file.name != CONFIG_FILE, file.size))
    return Repository(model_id, commit.group(), tuple(files))


def fetch_files(
    client: httpx.Client, repository: Repository, folder: Path, progress: Progress | None
) -> None:
    """Fills `folder` with what it lacks of the repository's files."""
    total = sum(file.size for file in repository.files)
    done = 0
    for file in repository.files:
        if not (folder / file.name).exists():
            for count in _fetch(client, repository, file, folder):
                if progress is not None:
                    progress(file.name, done + count, total)
        done += file.size
        if file.name == CONFIG_FILE:
            Qwen3Config.load(folder)


def _fetch(
    client: httpx.Client, repository: Repository, file: RemoteFile, folder: Path
) -> Iterator[int]:
    """Downloads one file, from where an earlier attempt ended; yields the bytes that it has."""
    part = folder / f"{file.name}.part"
    part.touch()
    url = f"/{repository.id}/resolve/{repository.commit}/{file.name}"
    stalled = 0
    while (before := part.stat().st_size) < file.size:
        problem = yield from _transfer(client, url, part, repository)
        stalled = 0 if part.stat().st_size > before else stalled + 1
        if stalled == _ATTEMPTS:
            raise _interrupted(client, repository.id, problem)
        if stalled:
            time.sleep(_PAUSE_SECONDS)
    found = _digest(part, file.digest)
    if found != file.digest:
        part.unlink()
        raise ModelFileError(
            f"model {repository.id!r}: {file.name} arrived damaged and was deleted (digest "
            f"{found[:12]}, expected {file.digest[:12]}); run the same command again"
        )
    os.replace(part, folder / file.name)


def _transfer(
    client: httpx.Client, url: str, part: Path, repository: Repository
) -> Generator[int, None, str]:
    """Adds what one connection brings, yielding the file's bytes so far; returns why it ended."""
    headers = {"Range": f"bytes={part.stat().st_size}-"}
    try:
        with client.stream("GET", url, headers=headers) as response:
            _refuse_denied(response, repository.id, repository.commit)
            if response.is_error:
                return f"status {response.status_code}"
            # A server that knows no ranges sends the whole file again.
            mode = "ab" if response.status_code == httpx.codes.PARTIAL_CONTENT else "wb"
            with part.open(mode) as out:
                for chunk in response.iter_bytes():
                    out.write(chunk)
                    yield out.tell()
    except httpx.HTTPError as error:
        return _reason(error)
    return "the file ended early"


def _digest(path: Path, like: str) -> str:
    """The digest of a file in the form of `like`: 64 digits of sha256, or git's blob id."""
    with path.open("rb") as file:
        if len(like) == 64:
            return hashlib.file_digest(file, "sha256").hexdigest()
        header = b"blob %d\0" % path.stat().st_size
        return hashlib.sha1(header + file.read(), usedforsecurity=False).hexdigest()


def _wanted(name: str) -> bool:
    """Files of the top folder alone; a name with a slash would leave ours."""
    return name in _SMALL_FILES or re.fullmatch(r"\w[\w.-]*\.safetensors", name) is not None


def _remote_file(entry: Mapping[str, Any]) -> RemoteFile:
    large = entry.get("lfs")
    digest = large["sha256"] if large else entry["blobId"]
    return RemoteFile(entry["rfilename"], int(entry["size"]), str(digest))


def _refuse_denied(response: httpx.Response, model_id: str, revision: str) -> None:
    kind, status = response.headers.get("X-Error-Code"), response.status_code
    if kind == "RevisionNotFound":
        raise UsageError(f"model {model_id!r}: no revision {revision!r} on the hub", "revision")
    if kind == "GatedRepo" or status == httpx.codes.FORBIDDEN:
        raise UsageError(
            f"model {model_id!r}: gated; ask for access on its page, and set HF_TOKEN", "model"
        )
    # The hub answers 401 for an id that does not exist to those who come without a token.
    if status in (httpx.codes.UNAUTHORIZED, httpx.codes.NOT_FOUND):
        raise UsageError(
            f"model {model_id!r}: not on the hub, or private; check the id, or set HF_TOKEN",
            "model",
        )


def _interrupted(client: httpx.Client, model_id: str, reason: str) -> ModelFileError:
    return ModelFileError(
        f"model {model_id!r}: no download from {client.base_url.host}: {reason}; "
        "run the same command again to go on"
    )


def _reason(error: httpx.HTTPError) -> str:
    return str(error) or type(error).__name__
