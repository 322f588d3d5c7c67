"""Files of a data repository on the Hugging Face hub, through its own client.

The client retries, and goes on where a transfer broke off; this adds one commit for all files,
errors in qpack's words, and progress without a bar of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from qpack.errors import DataError, ResourceError, SetupError

Advance = Callable[[float], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Remote:
    """A file of the repository."""

    name: str
    num_bytes: int
    etag: str
    """the SHA-256 of a large file; of others some digest"""


class Hub:
    """A repository of data; the first file asked for decides the commit of all."""

    def __init__(self, repository: str, folder: Path, *, endpoint: str | None = None) -> None:
        """Files go to `folder`. Raises `SetupError` without the package `huggingface_hub`."""
        self.repository, self.commit = repository, "main"
        self._folder, self._endpoint = folder, endpoint
        self._client = _client()

    @property
    def address(self) -> str:
        """Where the hub is."""
        return str(self._endpoint or self._client.constants.ENDPOINT)

    def describe(self, name: str) -> Remote:
        """Size and digest of a file. Raises `DataError` when it is not there or not reached."""
        with self._errors(name):
            url = self._client.hf_hub_url(
                self.repository,
                name,
                repo_type="dataset",
                revision=self.commit,
                endpoint=self._endpoint,
            )
            found = self._client.get_hf_file_metadata(url, endpoint=self._endpoint)
        if found.size is None or found.etag is None or found.commit_hash is None:
            raise DataError(f"{self.address} does not say what {name} is; it is no hub")
        self.commit = found.commit_hash
        return Remote(name=name, num_bytes=found.size, etag=found.etag)

    def fetch(self, remote: Remote, *, advance: Advance | None = None) -> Path:
        """Download a file; `advance` is told of bytes as they come."""
        with self._errors(remote.name):
            path = self._client.hf_hub_download(
                self.repository,
                remote.name,
                repo_type="dataset",
                revision=self.commit,
                endpoint=self._endpoint,
                local_dir=self._folder,
                tqdm_class=_bar(advance or _ignore),
            )
        return Path(path)

    @contextmanager
    def _errors(self, name: str) -> Iterator[None]:
        """The client's errors, and those of the network below it, as qpack's."""
        errors = self._client.errors
        try:
            yield
        except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
            raise DataError(
                f"{self.address} has no data repository {self.repository}",
                hint="check --repo; a private one needs `hf auth login`",
            ) from error
        except errors.EntryNotFoundError as error:
            if isinstance(error, errors.LocalEntryNotFoundError):
                raise self._unreached(name, error) from error
            raise DataError(f"{self.repository} has no file {name}") from error
        except OSError as error:
            if error.errno is None or not error.strerror:
                raise self._unreached(name, error) from error
            raise ResourceError(f"cannot write {name}: {error.strerror}") from error
        except Exception as error:
            # What the network raises is of the client's own HTTP package, which changes.
            known = (errors.FileMetadataError, errors.OfflineModeIsEnabled, errors.HfHubHTTPError)
            if isinstance(error, known) or type(error).__module__.startswith("httpx"):
                raise self._unreached(name, error) from error
            raise

    def _unreached(self, name: str, error: BaseException) -> DataError:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = (str(cause) or type(cause).__name__).splitlines()[0]
        return DataError(
            f"cannot get {name} from {self.address}",
            items=[reason],
            hint="check the connection, HF_ENDPOINT and HF_HUB_OFFLINE; whole files"
            " that were fetched are kept, and the same command goes on with the others",
        )


def _ignore(amount: float) -> None:
    """Take no notice."""


def _client() -> ModuleType:
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
    except ImportError as error:
        raise SetupError(
            "this needs the package huggingface_hub", hint="pip install 'qpack-lm[hub]'"
        ) from error
    return huggingface_hub


def _bar(advance: Advance) -> type[Any]:
    """A progress bar that draws nothing; of a file's bars the first one counts its bytes."""
    from tqdm.std import tqdm

    bars: list[Any] = []

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **(options | {"disable": True}))
            bars.append(self)
            self.update(options.get("initial") or 0)

        def update(self, n: float | None = 1) -> None:
            """Count `n` bytes."""
            if bars[0] is self:
                advance(n or 0)

    return Bar
