"""Ray, as much of it as a shuffle needs: start, stop, and tasks as they end."""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kexue.data.shuffle_ray import tasks

__all__ = ["Cluster", "connected"]


@contextmanager
def connected(address: str | None) -> Iterator[Any]:
    """Ray: of this process, of an address, or started for this run alone.

    Raises:
        ImportError: Ray is not installed.
        OSError: nothing answers at the address.
    """
    try:
        import ray
    except ImportError:
        raise ImportError('the Ray engine needs Ray: pip install "kexue[ray]"') from None
    if ray.is_initialized():
        yield ray
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    if address is None:
        options["include_dashboard"] = False
    terminated = signal.getsignal(signal.SIGTERM)
    try:
        try:
            ray.init(address=address or "local", **options)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise OSError(
                f"no Ray cluster at {address or 'this machine'}: {brief(error)}"
            ) from None
        except SystemExit:  # SIGTERM, for which Ray has a handler of its own by then
            if callable(terminated):
                terminated(signal.SIGTERM, None)
            raise
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, terminated)  # Ray has put its own there
        yield ray
    finally:
        ray.shutdown()  # also of what an interrupted start has left


class Cluster:
    """Runs tasks, no more at once than the nodes have room for and as many waiting.

    Args:
        ray: the package, connected.
        memory: of a task.
        num_cpus: of a task.
        max_retries: of a task whose worker or node dies.

    Raises:
        ValueError: no node has so much.
    """

    def __init__(self, ray: Any, memory: int, num_cpus: float | int, max_retries: int) -> None:
        self.ray = ray
        self.nodes = [node for node in ray.nodes() if node["Alive"]]
        self.options = {"memory": memory, "num_cpus": num_cpus, "max_retries": max_retries}
        self.slots, stores = 0, [1 << 60]
        for node in self.nodes:
            has = node["Resources"]
            here = min(has.get("memory", 0) // memory, has.get("CPU", 0) // num_cpus)
            self.slots += int(here)
            stores.append(int(has.get("object_store_memory", 1 << 60)) if here else 1 << 60)
        self.store = min(stores)
        if not self.slots:
            raise ValueError(
                f"no node of the Ray cluster has {num_cpus} CPUs and {memory / 1e6:,.0f} MB for a "
                "task; give less memory, or start nodes with more"
            )

    def start(self, function: Callable[..., Any], *arguments: Any, results: int = 1) -> list[Any]:
        """References to the results of a task."""
        made = self.ray.remote(function).options(num_returns=results, **self.options)
        found = made.remote(*arguments)
        return [found] if results == 1 else list(found)

    def each(
        self, calls: Sequence[Callable[[], list[Any]]]
    ) -> Iterator[tuple[int, Any, list[Any]]]:
        """Runs tasks; yields number, last result and references of each as it ends.

        Raises:
            Exception: that of a task, as it was raised there.
            OSError: a task died too often, or an object is lost.
        """
        waiting: dict[Any, tuple[int, list[Any]]] = {}
        following = 0
        try:
            while waiting or following < len(calls):
                while following < len(calls) and len(waiting) < 2 * self.slots:
                    references = calls[following]()
                    waiting[references[-1]] = following, references
                    following += 1
                ready, _ = self.ray.wait(list(waiting), num_returns=1)
                number, references = waiting.pop(ready[0])
                yield number, self.get(ready[0]), references[:-1]
                del references, ready
        finally:
            for reference in waiting:
                self.ray.cancel(reference, force=True)
            if waiting:  # files are removed only when nobody writes them
                self.ray.wait(list(waiting), num_returns=len(waiting), timeout=30)

    def get(self, reference: Any) -> Any:
        """A result, or the error of the task as if it had been raised here."""
        exceptions = self.ray.exceptions
        try:
            return self.ray.get(reference)
        except exceptions.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, exceptions.RayError):
                raise OSError(f"a piece is lost: {brief(cause)}") from None
            if not isinstance(cause, Exception):
                raise OSError(f"a task failed: {brief(error)}") from None
            raise cause from None
        except exceptions.ObjectLostError as error:
            raise OSError(f"a piece is lost: {brief(error)}") from None
        except exceptions.RayError as error:
            tries = self.options["max_retries"]
            raise OSError(f"a task died {tries + 1} times: {brief(error)}") from None

    def same_everywhere(self, paths: list[str], folders: list[str]) -> None:
        """Asks every node whether it sees the inputs and the folders.

        Raises:
            ValueError: one does not; it is named.
        """
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        files = self.ray.put([(path, Path(path).stat().st_size) for path in paths])
        asked = [
            self.ray.remote(tasks.unseen)
            .options(
                num_cpus=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
            )
            .remote(files, folders)
            for node in self.nodes
        ]
        for reference in asked:
            if missing := self.get(reference):
                raise ValueError(missing)


def brief(error: BaseException) -> str:
    """The first line of an error of Ray, or its kind."""
    return (
        next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        or type(error).__name__
    )
