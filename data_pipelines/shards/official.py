"""An official archive that someone has laid beside a data set, compared with what its publisher has."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data_pipelines.common.errors import UserError
from data_pipelines.common.files import file_digest
from data_pipelines.sources.archives import ARCHIVES, local_copy


@contextmanager
def compared_with_published(source: str, from_: str | Path | None, to: Path) -> Iterator[None]:
    """Adds to a refusal what to do with an archive of another digest than the published one.

    It looks at the archive that the data set `to` is made of where `from_` is left out.

    Raises:
        UserError: what is raised within, and both digests where they differ.
        OSError: the archive cannot be read.
    """
    path = local_copy(ARCHIVES[source], to) if source in ARCHIVES and from_ is None else None
    try:
        yield
    except UserError as error:
        if path is None or not path.is_file():
            raise
        published = ARCHIVES[source].file
        if (digest := file_digest(path, "md5")) == published.md5:
            raise
        why = f"{path} has md5 {digest}, expected {published.md5}: remove it and it is fetched"
        raise UserError(f"{error}; {why}") from None
