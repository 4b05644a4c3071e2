"""What heat maps are made of: the records of a file, or the listings or queries of a data set, as documents."""

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from moon_jax.config import DataConfig
from moon_jax.data import sources
from moon_jax.data.documents import Document, item_document, query_document
from moon_jax.data.embed_records import Reader, listed
from moon_jax.data.policy import shown
from moon_jax.data.record_file import RecordFile
from moon_jax.data.records import DataError, Dataset
from moon_jax.evaluation.heat.folder import WITH, WITHOUT

_WINDOW = 256  # records that are read at a time


class Case(NamedTuple):
    """One thing that is shown."""

    number: int  # its place in the input
    id: str
    document: Document

    def conditions(self) -> dict[str, Document]:
        """Returns its documents with and without text: both, unless it lacks its pictures or its texts."""
        bare = dataclasses.replace(self.document, segments=())
        found = {WITHOUT: bare} if self.document.images else {}
        return found | ({WITH: self.document} if self.document.segments else {})


def of_records(path: pathlib.Path, reader: Reader) -> tuple[Iterator[Case], str]:
    """Returns the records of a JSON Lines file, and its sha256.

    Raises:
        DataError: a record cannot be used.
    """
    file = RecordFile(path, reader, _WINDOW)
    scan = file.scan()
    if scan.bad:
        raise DataError(listed(list(scan.bad.values())))

    def cases() -> Iterator[Case]:
        ids = file.ids(scan)
        number = 0
        for window in file.windows(scan, 0):
            for document in window:
                given = next(ids)
                assert document is not None
                yield Case(number, f"record {number}" if given is None else str(given), document)
                number += 1

    return cases(), scan.sha256


def of_dataset(config: DataConfig, data: DataConfig, kind: str) -> tuple[Iterator[Case], str]:
    """Returns the listings or the test queries of a data set, and its fingerprint.

    Args:
        config: where the data set is.
        data: what the model shows of listings.
        kind: "item" = listings in the order of their ids; "query" = queries, of unseen products first.

    Raises:
        DataError: it cannot be read, or has no queries.
    """
    dataset = sources.read(config, triplets=False)
    cases = _queries(dataset) if kind == "query" else _items(dataset, data)
    return cases, f"{dataset.fingerprint} {kind}"


def _items(dataset: Dataset, data: DataConfig) -> Iterator[Case]:
    for number, (key, product) in enumerate(dataset.products.items()):
        yield Case(number, key, dataclasses.replace(item_document(product, data), name=f"listing {shown(key)}"))


def _queries(dataset: Dataset) -> Iterator[Case]:
    triplets = (*dataset.unseen, *dataset.seen)
    if not triplets:
        raise DataError("--kind=query: the data set has no test queries; --kind=item takes its listings")
    for number, triplet in enumerate(triplets):
        query = triplet.query
        modality = "text" if query.image is None else "both" if query.text else "image"
        document = query_document(query, modality)
        yield Case(number, triplet.id, dataclasses.replace(document, name=f"query {shown(triplet.id)}"))


def chosen(cases: Iterator[Case], ids: Sequence[str], limit: int) -> list[Case]:
    """Returns the cases of these ids, in the order of the ids; or the first `limit` of all where no id is given.

    Raises:
        DataError: an id is not there, or there is nothing.
    """
    if not ids:
        found = [case for case, _ in zip(cases, range(limit), strict=False)]
        if not found:
            raise DataError("--input: there is no record in it")
        return found
    wanted, by_id = set(ids), {}
    for case in cases:
        if case.id in wanted:
            by_id.setdefault(case.id, case)
    if missing := [name for name in ids if name not in by_id]:
        raise DataError(f"--ids: the input has no record with the id {', '.join(map(repr, missing[:10]))}")
    return [by_id[name] for name in dict.fromkeys(ids)]
