"""A store whose operations block, used from an event loop: on threads, with its faults as `StorageError`."""

import asyncio
import errno
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Generic, ParamSpec, Protocol, TypeVar

from latentrt.serve.messages import Picture, Progress

from .store import Claim, Counts, Ended, Failure, KeptJob, KeptPicture, Listener, NewJob, StorageError

P = ParamSpec("P")
R = TypeVar("R")


class BlockingJobs(Protocol):
    """The operations of a store, as `JobStore` has them."""

    def add(self, job: NewJob, /) -> KeptJob: ...
    def get(self, job: str, /) -> KeptJob | None: ...
    def of_client(self, client: str, limit: int, before: str | None, /) -> list[KeptJob]: ...
    def ahead(self, job: str, /) -> int: ...
    def counts(self) -> Counts: ...
    def claim(self, alone: bool, without: Collection[str], /) -> KeptJob | None: ...
    def input(self, sha256: str, /) -> bytes: ...
    def give_back(self, claim: Claim, counted: bool, alone: bool, /) -> bool: ...
    def keep_picture(self, claim: Claim, picture: Picture, /) -> KeptPicture: ...
    def end(
        self,
        claim: Claim,
        state: Ended,
        pictures: Sequence[KeptPicture],
        failure: Failure | None,
        timings: Mapping[str, float],
        /,
    ) -> bool: ...
    def cancel(self, job: str, /) -> KeptJob | None: ...
    def picture(self, picture: KeptPicture, /) -> bytes | None: ...
    def sweep(self) -> int: ...


J = TypeVar("J", bound=BlockingJobs)


class ThreadedStore(Generic[J]):
    """Implements `JobStore` with operations that block. Those of one thread run one after the other."""

    # What the operations may raise at any time, without being wrong.
    faults: tuple[type[Exception], ...] = (OSError,)

    def __init__(
        self, open_jobs: Callable[[], tuple[J, Callable[[], None]]], *, durable: bool, threads: int = 1
    ) -> None:
        """`open_jobs` opens the store, on a thread that uses it; with it comes what closes it."""
        self.durable = durable
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="jobs")
        try:
            self._jobs, self._close = self._threads.submit(open_jobs).result()
        except BaseException:
            self._threads.shutdown()
            raise

    def is_full(self, error: Exception) -> bool:
        """Whether a fault is that there is no room on the disk."""
        return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)

    async def _do(self, operation: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        def guarded() -> R:
            try:
                return operation(*args, **kwargs)
            except self.faults as error:
                message = f"the store of jobs cannot be used now: {' '.join(str(error).split())}"
                raise StorageError(message, full=self.is_full(error)) from error

        return await asyncio.get_running_loop().run_in_executor(self._threads, guarded)

    async def add(self, job: NewJob) -> KeptJob:
        """See `JobStore`, as for all that follow."""
        return await self._do(self._jobs.add, job)

    async def get(self, job: str) -> KeptJob | None:
        return await self._do(self._jobs.get, job)

    async def of_client(self, client: str, *, limit: int, before: str | None = None) -> list[KeptJob]:
        return await self._do(self._jobs.of_client, client, limit, before)

    async def ahead(self, job: str) -> int:
        return await self._do(self._jobs.ahead, job)

    async def counts(self) -> Counts:
        return await self._do(self._jobs.counts)

    async def claim(self, *, alone: bool, without: Collection[str] = ()) -> KeptJob | None:
        return await self._do(self._jobs.claim, alone, tuple(without))

    async def input(self, sha256: str) -> bytes:
        return await self._do(self._jobs.input, sha256)

    async def give_back(self, claim: Claim, *, counted: bool, alone: bool = False) -> bool:
        return await self._do(self._jobs.give_back, claim, counted, alone)

    async def keep_picture(self, claim: Claim, picture: Picture) -> KeptPicture:
        return await self._do(self._jobs.keep_picture, claim, picture)

    async def end(
        self,
        claim: Claim,
        state: Ended,
        *,
        pictures: Sequence[KeptPicture] = (),
        failure: Failure | None = None,
        timings: Mapping[str, float] | None = None,
    ) -> bool:
        return await self._do(self._jobs.end, claim, state, pictures, failure, timings or {})

    async def cancel(self, job: str) -> KeptJob | None:
        return await self._do(self._jobs.cancel, job)

    async def picture(self, picture: KeptPicture) -> bytes | None:
        return await self._do(self._jobs.picture, picture)

    async def sweep(self) -> int:
        return await self._do(self._jobs.sweep)

    def listen(self, listener: Listener) -> None:
        """Nobody else has the store."""

    def tell(self, event: Progress) -> None:
        """Nobody else has the store."""

    async def close(self) -> None:
        with suppress(StorageError):  # everything has been committed
            await self._do(self._close)
        self._threads.shutdown(wait=False)
