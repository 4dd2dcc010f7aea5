"""Command that shows and clears what `jit` keeps on disk: `funcnets cache`."""

import json as json_format
from collections import Counter
from typing import Annotated

import typer

from funcnets.cli import options

KINDS = {".so": "compiled C++", ".program": "programs"}


def cache_command(
    clear: Annotated[bool, typer.Option("--clear", help="Remove all of its files.")] = False,
    json: options.Json = False,
) -> None:
    """Show the cache of compiled code: where it is, its size, and what is in it.

    It can be cleared at any time: what is missing is compiled again. Files that are unused longest
    go by themselves when it is larger than its limit.
    """
    from funcnets.compiler import disk_cache

    place = str(disk_cache.directory())
    found = disk_cache.entries()
    size = sum(size for _, size in found)
    counts = Counter(KINDS.get(path.suffix, "others") for path, _ in found)
    removed = disk_cache.clear() if clear else 0
    if json:
        row = {"location": place, "bytes": size, "limit": disk_cache.MAX_BYTES, "files": counts}
        print(json_format.dumps({**row, "removed": removed}))
        return
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())) or "no files"
    megabytes, limit = size / 1e6, disk_cache.MAX_BYTES / 1e6
    print(f"{place}\n{kinds}, {megabytes:.1f} MB of at most {limit:.0f} MB")
    if clear:
        print(f"{removed} files removed")
