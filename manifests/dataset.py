"""A dataset folder: dataset.json and the store around it."""

from __future__ import annotations

import json
from typing import Any

from manifests.errors import DatasetError
from manifests.records import FORMAT_VERSION
from manifests.store import Store

DATASET_FILE = "dataset.json"


def load(root: str) -> tuple[Store, dict[str, Any]]:
    """The store and dataset.json of the dataset at `root`.

    Raises DatasetError when there is none or it is of another format version.
    """
    store = Store(root)
    found = facts(store)
    if found is None:
        raise DatasetError(
            f"{root} is no dataset (no {DATASET_FILE}); make one with: xstreamer curate SOURCE -o {root}"
        )
    return store, found


def facts(store: Store) -> dict[str, Any] | None:
    """dataset.json, None when there is none. Raises DatasetError when it is damaged or of another version."""
    try:
        found = json.loads(store.read(DATASET_FILE))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise DatasetError(
            f"{store.url(DATASET_FILE)} is damaged ({error}); restore it or choose another folder"
        ) from None
    version = found.get("format_version") if isinstance(found, dict) else None
    if version != FORMAT_VERSION:
        raise DatasetError(
            f"{store.root} has format version {version}, this xstreamer writes {FORMAT_VERSION}; "
            "use the xstreamer that made it or choose another folder"
        )
    return dict(found)


def save(store: Store, content: dict[str, Any]) -> None:
    """Writes dataset.json."""
    text = json.dumps({"format_version": FORMAT_VERSION, **content}, indent=1, sort_keys=True)
    store.write(DATASET_FILE, text.encode() + b"\n")
