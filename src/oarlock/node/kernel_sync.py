"""Syncs that the kernel does by itself: Linux's asynchronous I/O with an eventfd, by `ctypes`.

A thread that waits for `fdatasync` has to be woken, fights for the interpreter twice, and wakes the event loop at the
end. `IOCB_CMD_FDSYNC` (Linux 4.18 on; io_submit(2)) hands the same sync to a thread of the kernel, and its end makes a
file descriptor readable that the loop watches anyway. It is the same `vfs_fsync`, and gives the same errors, once.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import select
import sys
from typing import Final

# io_setup, io_destroy, io_getevents, io_submit: arch/x86/entry/syscalls, include/uapi/asm-generic/unistd.h
_NUMBERS: Final = {"x86_64": (206, 207, 208, 209), "aarch64": (0, 1, 4, 2), "riscv64": (0, 1, 4, 2)}
_FDSYNC: Final = 3  # IOCB_CMD_FDSYNC
_RESFD: Final = 1  # IOCB_FLAG_RESFD
_PROBE_MS: Final = 1000


class _Iocb(ctypes.Structure):
    """struct iocb of include/uapi/linux/aio_abi.h, for little-endian machines."""

    _fields_ = (
        ("data", ctypes.c_uint64),
        ("key", ctypes.c_uint32),
        ("rw_flags", ctypes.c_int32),
        ("opcode", ctypes.c_uint16),
        ("priority", ctypes.c_int16),
        ("fd", ctypes.c_uint32),
        ("buffer", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
        ("offset", ctypes.c_int64),
        ("reserved", ctypes.c_uint64),
        ("flags", ctypes.c_uint32),
        ("eventfd", ctypes.c_uint32),
    )


class _IoEvent(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_uint64),
        ("iocb", ctypes.c_uint64),
        ("result", ctypes.c_int64),
        ("result2", ctypes.c_int64),
    )


class KernelSync:
    """At most one sync at a time. `fileno()` is readable once it has ended; then `result()` says how."""

    __slots__ = ("_context", "_event", "_eventfd", "_iocb", "_list", "_numbers", "_syscall", "_under_way")

    def __init__(self) -> None:
        """Raises `OSError` where the kernel has no such thing, or does not let us have it."""
        if sys.platform != "linux" or sys.byteorder != "little" or platform.machine() not in _NUMBERS:
            raise OSError(errno.ENOSYS, f"no asynchronous syncs on {sys.platform} {platform.machine()}")
        self._numbers = _NUMBERS[platform.machine()]
        # PyDLL keeps the interpreter's lock: none of these calls waits for anything.
        self._syscall = ctypes.PyDLL(None, use_errno=True).syscall
        self._syscall.restype = ctypes.c_long
        self._under_way = False
        self._eventfd = -1
        self._context = ctypes.c_ulong(0)
        self._call(0, ctypes.c_uint(1), ctypes.byref(self._context))
        self._eventfd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._iocb = _Iocb(opcode=_FDSYNC, flags=_RESFD, eventfd=self._eventfd)
        self._list = (ctypes.c_void_p * 1)(ctypes.addressof(self._iocb))
        self._event = (_IoEvent * 1)()
        try:
            self._probe()
        except OSError:
            self.close()
            raise

    def _call(self, number: int, *arguments: object) -> int:
        done: int = self._syscall(ctypes.c_long(self._numbers[number]), *arguments)
        if done < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        return done

    def _probe(self) -> None:
        """A kernel before 4.18 takes no such sync; a sandbox may take it and never do it."""
        fd = os.memfd_create("oarlock-sync", os.MFD_CLOEXEC)
        try:
            self.begin(fd)
            poll = select.poll()
            poll.register(self._eventfd, select.POLLIN)
            if not poll.poll(_PROBE_MS):
                raise OSError(errno.ETIMEDOUT, "an asynchronous sync of nothing did not end")
            if code := self.result():
                raise OSError(code, os.strerror(code))
        finally:
            os.close(fd)

    def fileno(self) -> int:
        return self._eventfd

    @property
    def under_way(self) -> bool:
        return self._under_way

    def begin(self, fd: int) -> None:
        """Begin to make the contents of `fd` durable (fdatasync). Raises `OSError`; then nothing was begun."""
        assert not self._under_way, "one sync at a time"
        if self._eventfd < 0:
            raise OSError(errno.EBADF, "closed")
        self._iocb.fd = fd
        self._call(3, self._context, ctypes.c_long(1), self._list)
        self._under_way = True

    def result(self) -> int:
        """0, or the `errno` of a sync that failed, or -1 if it has not ended. Each sync's end is told once."""
        if not self._under_way:
            return -1
        try:
            os.eventfd_read(self._eventfd)
        except BlockingIOError:
            return -1
        self._under_way = False
        count = self._call(2, self._context, ctypes.c_long(0), ctypes.c_long(1), self._event, None)
        assert count, "the event was signalled"
        return -int(self._event[0].result)

    def close(self) -> None:
        """Waits for a sync under way, as the kernel does. May be called again."""
        if self._eventfd >= 0:
            self._call(1, self._context)
            os.close(self._eventfd)
            self._eventfd = -1
