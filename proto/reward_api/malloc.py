"""glibc gives large freed buffers back to the system and pays page faults to get them again, which
is more than half of what a gRPC call with megabytes of pixels costs."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_MMAP_BYTES = 32 * 2**20  # the documented maximum; some versions take more
_KEPT_BYTES = 512 * 2**20
_TOP_PAD_BYTES = 64 * 2**20


def keep_freed_buffers() -> bool:
    """Makes this process keep freed buffers of up to 32 MiB, at most 512 MiB of them.

    For programs that send many images over gRPC; call it once at the start. It concerns the whole
    process, so the client never does it by itself. Returns False where there is no glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    options = (
        (_M_MMAP_THRESHOLD, _MMAP_BYTES),
        (_M_TRIM_THRESHOLD, _KEPT_BYTES),
        (_M_TOP_PAD, _TOP_PAD_BYTES),
    )
    return all(mallopt(option, value) == 1 for option, value in options)
