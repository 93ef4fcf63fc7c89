"""What keeps a transaction whole when its calls come from several tasks or threads, or fail and are caught."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

from sqlalchemy.exc import InvalidRequestError

FAILED = "A call in this transaction failed, or ended it. What may fail goes into an inner transaction()."
IN_USE = "This transaction has ended, or is in use: each task, thread and inner transaction uses one of its own."


class Turn:
    """Whose turn it is in a transaction: one call at a time, none after one that failed, none after the end."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.ending = self.ended = False
        self.failure: BaseException | None = None

    @contextmanager
    def call(self, *, dooms: bool = True) -> Iterator[None]:
        """Hold the turn for one call, which dooms the transaction if it raises. A refusal is an InvalidRequestError."""
        taken = self.lock.acquire(blocking=False)
        try:
            if not taken or self.ending:
                raise InvalidRequestError(IN_USE)
            self.check()  # with the turn held: the call before may just have failed
            yield
        except BaseException as error:
            if dooms or not taken:
                self.failure = self.failure or error
            raise
        finally:
            if taken:
                self.lock.release()

    def check(self, is_whole: bool = True) -> None:
        if self.failure or not is_whole:
            raise InvalidRequestError(FAILED) from self.failure

    def end(self) -> Iterator[None]:
        """Refuse new calls, and yield until the one under way is over, 500 times at most. The turn is then kept."""
        self.ending = True  # before waiting: calls that keep coming would make it wait for ever
        for _ in range(500):
            self.ended = self.lock.acquire(blocking=False)
            if self.ended:
                return
            yield
