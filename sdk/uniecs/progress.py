"""Progress bars, all made here: on stderr where it is a terminal, none elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any


def progress_bar(items: Iterable[Any] | None = None, **options: Any) -> Any:
    """A tqdm bar, over `items` or to be updated. A process without a stderr, such as a service, has none."""
    from tqdm import tqdm

    return tqdm(items, disable=None if sys.stderr else True, **options)
