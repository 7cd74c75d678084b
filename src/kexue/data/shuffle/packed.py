"""Compressed bytes in and out: gzip, Zstandard, xz and bzip2.

A compressed file is a sequence of members, each whole by itself, with nothing between them but
padding. What is neither is damage and refused: a reader that ignores it loses records. Members are
unpacked a megabyte at a time, so that a file of equal lines does not fill the memory.
"""

import bz2
import io
import lzma
import zlib
from collections.abc import Generator
from typing import Any

__all__ = ["CODERS", "HEAD", "Unpacked", "compressor", "kind_of", "window_of"]

HEAD = 18
"""Bytes that tell what a file is."""
LEVELS = {"gz": 6, "zst": 3, "xz": 3, "bz2": 9}
CODERS = {"xz": 34_000_000, "zst": 16_000_000, "bz2": 9_000_000, "gz": 1_000_000, "": 0}
"""Memory of a compressor at these levels."""
PIECE = 1 << 16
PART = 1 << 20
BLOCK = 1 << 17
SKIPPED = b"\x2a\x4d\x18"
"""Of a frame without content, behind a byte from 0x50 to 0x5F."""
BLOCK_BITS = (b"\x31\x41\x59\x26\x53\x59", b"\x17\x72\x45\x38\x50\x90")
INSTALL = 'needs the package zstandard: pip install "kexue[shuffle]"'


def kind_of(head: bytes) -> str:
    """ "gz", "zst", "xz", "bz2", or "" for a plain file, from its first bytes.

    Example:
        >>> kind_of(b"\\x1f\\x8b\\x08\\0"), kind_of(b"BZh is how this text begins")
        ('gz', '')
    """
    if head.startswith(b"\x1f\x8b\x08"):
        return "gz"
    if head.startswith(b"\xfd7zXZ\x00"):
        return "xz"
    if head.startswith(b"BZh") and head[4:10] in BLOCK_BITS:
        return "bz2"
    if head.startswith(b"\x28\xb5\x2f\xfd") or (head[1:4] == SKIPPED and head[0] >> 4 == 5):
        return "zst"
    return ""


def window_of(head: bytes) -> int:
    """Bytes that unpacking a file needs, from its first bytes."""
    kind = kind_of(head)
    if kind == "zst" and head[0] >> 4 != 5:
        parameters = zstandard().get_frame_parameters(head)
        return max(8 << 20, int(parameters.window_size)) + (1 << 20)
    return {"xz": 66 << 20, "zst": 9 << 20, "bz2": 5 << 20, "gz": 1 << 20, "": 0}[kind]


def compressor(kind: str) -> Any:
    """An object with compress() and flush() for one member; None for plain files.

    The gzip header holds neither name nor time: equal content gives equal bytes.
    """
    if kind == "gz":
        return zlib.compressobj(LEVELS[kind], zlib.DEFLATED, 31)
    if kind == "xz":
        return lzma.LZMACompressor(preset=LEVELS[kind])
    if kind == "bz2":
        return bz2.BZ2Compressor(LEVELS[kind])
    if kind == "zst":
        return zstandard().ZstdCompressor(level=LEVELS[kind]).compressobj()
    return None


def zstandard() -> Any:
    """The package."""
    try:
        import zstandard as package
    except ImportError:
        raise ImportError(f"a .zst file {INSTALL}") from None
    return package


class Unpacked(io.RawIOBase):
    """The content of all members of a compressed file.

    Args:
        file: the compressed bytes.
        kind: from `kind_of`.
        window: bytes that unpacking may take.
    """

    def __init__(self, file: Any, kind: str, window: int) -> None:
        self.file, self.kind, self.window = file, kind, window
        self.member: Any = None
        self.behind_first = False
        self.packed = b""
        self.ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, to: Any) -> int:
        """Raises ValueError, or what the unpackers raise, where the file is damaged."""
        while not self.ready:  # a member may be empty
            if not self.more():
                break
        size = min(len(to), len(self.ready))
        to[:size], self.ready = self.ready[:size], self.ready[size:]
        return size

    def more(self) -> bool:
        """Unpacks a little; False behind the last member."""
        if self.member is None:
            if self.behind_first and self.kind in ("gz", "xz"):
                self.packed = self.packed.lstrip(b"\0")  # padding
            if not self.packed:
                self.packed = self.file.read(PIECE)
                return bool(self.packed)
            self.member = self.unpacker()
        elif not self.packed and self.hungry():
            self.packed = self.file.read(PIECE)
            if not self.packed:
                raise EOFError("it ends too early")
        self.ready = memoryview(self.member.decompress(self.packed, PART))
        self.packed = getattr(self.member, "unconsumed_tail", b"")
        if self.member.eof:
            self.packed, self.member = self.member.unused_data, None
            self.behind_first = True
        return True

    def hungry(self) -> bool:
        """Whether the member goes on only with more packed bytes."""
        return bool(getattr(self.member, "needs_input", True))

    def unpacker(self) -> Any:
        """For the next member."""
        if self.kind == "gz":
            return zlib.decompressobj(31)
        if self.kind == "bz2":
            return bz2.BZ2Decompressor()
        if self.kind == "xz":
            return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=self.window)
        return ZstdFrame(self.window)


class ZstdFrame:
    """One frame of a Zstandard file, unpacked block by block (RFC 8878).

    A block unpacks to 128 KB at most, however few bytes it has; the package itself would unpack all
    it is given at once.
    """

    def __init__(self, window: int) -> None:
        package = zstandard()
        self.error = package.ZstdError
        self.frame = package.ZstdDecompressor(max_window_size=window).decompressobj()
        self.data, self.at = b"", 0
        self.out: list[bytes] = []
        self.steps = self.units()
        self.wanted = next(self.steps)
        self.eof, self.needs_input = False, True
        self.unused_data = b""

    def decompress(self, data: bytes, most: int) -> bytes:
        """What `data` and the bytes before unpack to, about as much as asked for."""
        self.data, self.at, self.out = self.data[self.at :] + data, 0, []
        try:
            while len(self.out) * BLOCK < most and len(self.data) - self.at >= self.wanted:
                unit = self.data[self.at : self.at + self.wanted]
                self.at += self.wanted
                self.wanted = self.steps.send(unit)
        except StopIteration:
            self.eof, self.unused_data = True, self.data[self.at :]
        except self.error as error:
            raise ValueError(str(error)) from None
        self.needs_input = len(self.data) - self.at < self.wanted
        return b"".join(self.out)

    def units(self) -> Generator[int, bytes, None]:
        """The parts of a frame: yields how many bytes the next one has and is sent them."""
        head = yield 5
        if head[1:4] == SKIPPED:
            size = int.from_bytes(head[4:] + (yield 3), "little")
            while size:
                size -= len((yield min(size, PIECE)))
            return
        flags = head[4]
        single = flags >> 5 & 1
        rest = (1 - single) + (0, 1, 2, 4)[flags & 3] + (single, 2, 4, 8)[flags >> 6]
        self.unpack(head + (yield rest))
        last = 0
        while not last:
            head = yield 3
            word = int.from_bytes(head, "little")
            last, repeated = word & 1, word >> 1 & 3 == 1
            self.unpack(head + (yield 1 if repeated else word >> 3))
        if flags >> 2 & 1:
            self.unpack((yield 4))

    def unpack(self, unit: bytes) -> None:
        """Gives the package a part."""
        self.out.append(self.frame.decompress(unit))
