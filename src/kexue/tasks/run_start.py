"""Whether a command may write its run into a folder: a new one, the same one again, or none.

A run is known by its config.json, which holds the settings it was started with. Going on with it
needs the same settings; replacing it needs the user's word; anything else in the folder is safe.
"""

from typing import Any

from kexue.report import RunFolder

__all__ = ["may_write"]


def may_write(run: RunFolder, config: dict[str, Any], *, resume: bool, overwrite: bool) -> bool:
    """Whether the run in this folder goes on; if not, a new one may be written there.

    Raises:
        ValueError: the folder holds something else.
    """
    if is_run(run):
        if resume:
            old = run.read_json("config.json")
            changed = differences(plain({**old, "command": ""}), plain({**config, "command": ""}))
            if changed:
                raise ValueError(
                    f"{run.path}: cannot resume, the run was started with other settings "
                    f"({'; '.join(changed)}); give the same ones or another --out"
                )
            return True
        if not overwrite:
            raise ValueError(
                f"{run.path}: holds a run already; give --resume to go on with it, "
                "--overwrite to replace it, or another --out"
            )
    elif run.path.is_file() or (run.path.is_dir() and any(run.path.iterdir())):
        raise ValueError(f"{run.path}: is not empty and not a run; give another --out")
    return False


def is_run(run: RunFolder) -> bool:
    """Whether a run's config stands there, and not, say, a model's."""
    if not run.exists("config.json"):
        return False
    found = run.read_json("config.json")
    return isinstance(found, dict) and {"command", "settings"} <= found.keys()


def differences(old: Any, new: Any, name: str = "") -> list[str]:
    """What differs between two configs, as "name: old, now new"."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [k for k in {**old, **new} if k not in MAY_CHANGE]
        return [d for k in keys for d in differences(old.get(k), new.get(k), k)]
    return [] if old == new else [f"{name}: {old}, now {new}"]


MAY_CHANGE = ("checkpoint_minutes", "tracker")
"""Settings that leave the weights as they are."""


def plain(value: Any) -> Any:
    """As JSON has it: lists where Python has tuples."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, list | tuple) else value
