"""Where kexue keeps what it can make again: encoded corpora, compiled loops. A lowest layer."""

import os
from pathlib import Path

__all__ = ["cache_folder"]


def cache_folder() -> Path:
    """$KEXUE_CACHE, or kexue in $XDG_CACHE_HOME, or ~/.cache/kexue; an empty variable is none.

    Raises:
        OSError: there is no home folder, as in some containers.
    """
    try:
        default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "kexue"
        return Path(os.environ.get("KEXUE_CACHE") or default).absolute()
    except RuntimeError as error:
        raise OSError(f"{error} Set KEXUE_CACHE to a folder of your own") from error
