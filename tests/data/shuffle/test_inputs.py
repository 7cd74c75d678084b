"""Inputs: paths and patterns, compressed files whole and damaged, errors that name the file."""

import bz2
import gzip
import io
import lzma
import os
import zlib

import numpy as np
import pytest

from families.shuffling import the_loops
from kexue.data.shuffle.inputs import Inputs, Prefixed, expand, missing
from kexue.data.shuffle.packed import HEAD, Unpacked, compressor, kind_of, window_of

TEXT = b"".join(b"line %d %s\n" % (i, b"x" * (i % 50)) for i in range(20_000))


def zstandard():
    return pytest.importorskip("zstandard")


def packed(kind, content):
    member = compressor(kind)
    return member.compress(content) + member.flush()


def unpacked(kind, content, piece=1 << 16):
    file = Unpacked(io.BytesIO(content), kind, 64 << 20)
    return b"".join(iter(lambda: file.read(piece), b""))


KINDS = ["gz", "bz2", "xz", "zst"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_bytes_tell_the_kind(kind):
    zstandard()
    for content in (b"", b"a", TEXT):
        assert kind_of(packed(kind, content)[:HEAD]) == kind
    assert window_of(packed(kind, TEXT)[:HEAD]) > 0


@pytest.mark.parametrize("text", [b"", b"BZh9 is text", b"BZ", b"\x1f\x8b", b"(\xb5/", b"PAR1"])
def test_text_that_begins_like_a_compressed_file_is_text(text):
    assert kind_of(text) == ""
    assert window_of(text) == 0


@pytest.mark.parametrize("piece", [1, 1000, 1 << 22])
@pytest.mark.parametrize("kind", KINDS)
def test_members_one_behind_the_other_are_one_content(kind, piece):
    zstandard()
    content = TEXT[: 2000 if piece == 1 else None]
    members = [packed(kind, one) for one in (content, b"", content[:7], b"")]
    assert unpacked(kind, b"".join(members), piece) == content + content[:7]


@pytest.mark.parametrize("kind", KINDS)
def test_a_truncated_file_is_damaged(kind):
    zstandard()
    whole = packed(kind, TEXT)
    for cut in (len(whole) - 1, len(whole) - 5, len(whole) // 2, 11):
        with pytest.raises((EOFError, ValueError, OSError)):
            unpacked(kind, whole[:cut])


@pytest.mark.parametrize("kind", KINDS)
def test_garbage_behind_a_member_is_refused_and_never_lost(kind):
    zstandard()
    whole = packed(kind, TEXT)
    for garbage in (b"garbage!", packed(kind, TEXT)[1:], b"\xff"):
        with pytest.raises((EOFError, ValueError, OSError, lzma.LZMAError, zlib.error)) as caught:
            unpacked(kind, whole + garbage)
        assert caught.type is not MemoryError


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_is_noticed(kind):
    zstandard()
    whole = bytearray(packed(kind, TEXT))
    whole[len(whole) // 2] ^= 1
    if kind == "zst":  # the package's own files have a checksum only on request
        package = zstandard()
        made = package.ZstdCompressor(write_checksum=True).compress(TEXT)
        whole = bytearray(made)
        whole[len(whole) // 2] ^= 1
    try:
        assert unpacked(kind, bytes(whole)) != TEXT
    except Exception as error:
        assert not isinstance(error, AssertionError | MemoryError)  # noqa: PT017
    else:
        pytest.fail("a damaged file was read")


@pytest.mark.parametrize("kind", ["gz", "xz"])
def test_padding_with_zeros_is_no_damage(kind):
    whole = packed(kind, TEXT)
    assert unpacked(kind, whole + b"\0" * 8) == TEXT
    assert unpacked(kind, whole + b"\0" * 4 + whole) == 2 * TEXT


@pytest.mark.parametrize("level", [-5, 1, 3, 19])
@pytest.mark.parametrize("checksum", [False, True])
def test_zstandard_files_of_all_sorts_are_read(level, checksum):
    package = zstandard()
    random = np.random.Generator(np.random.PCG64(0)).bytes(300_000)
    for content in (b"", b"x", TEXT, b"\n" * 2_000_000, random):
        for size in (False, True):
            maker = package.ZstdCompressor(
                level=level, write_checksum=checksum, write_content_size=size
            )
            frame = maker.compress(content)
            skipped = b"\x52\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"hello"
            assert unpacked("zst", skipped + frame + skipped + frame) == 2 * content


def test_equal_lines_are_unpacked_a_little_at_a_time():
    package = zstandard()
    frame = package.ZstdCompressor().compress(b"\n" * 200_000_000)
    assert len(frame) < 100_000
    for kind, content in (("zst", frame), ("gz", gzip.compress(b"\n" * 50_000_000))):
        file = Unpacked(io.BytesIO(content), kind, 64 << 20)
        sizes = []
        while file.more():
            sizes.append(len(file.ready))
        assert sum(sizes) == (200_000_000 if kind == "zst" else 50_000_000)
        assert max(sizes) <= 2 << 20


def test_paths_and_patterns_are_expanded(tmp_path, monkeypatch):
    for name in ("b.txt", "a.txt", "c[1].txt", "d.gz"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "folder.txt").mkdir()
    names = [os.path.basename(one) for one in expand(str(tmp_path / "*.txt"))]  # noqa: PTH119
    assert names == ["a.txt", "b.txt", "c[1].txt"]
    assert expand([tmp_path / "c[1].txt", "-"]) == [str(tmp_path / "c[1].txt"), "-"]
    assert len(expand([tmp_path / "a.txt", tmp_path / "a.txt"])) == 2, "twice if asked twice"
    for wrong, message in (
        ([], "name at least one input file"),
        (["-", "-"], "can be read once only"),
        ([tmp_path], "is a folder; give its files"),
    ):
        with pytest.raises(ValueError, match=message):
            expand(wrong)
    for wrong, message in ((tmp_path / "none", "no such file"), (f"{tmp_path}/*.x", "matches")):
        with pytest.raises(FileNotFoundError, match=message):
            expand(wrong)
    monkeypatch.setattr(os, "access", lambda path, how: False)
    with pytest.raises(PermissionError, match="may not be read"):
        expand(tmp_path / "a.txt")


def stream(paths, delimiter=b"\n", header=0, piece=64, loops="compiled"):
    said = []
    with Inputs(
        [str(path) for path in paths], delimiter, the_loops(loops), header, said.append
    ) as one:
        found, buffer = b"", bytearray(piece)
        while size := one.readinto(memoryview(buffer)):
            found += buffer[:size]
    return found, one, said


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("loops", ["compiled", "arrow"])
def test_every_file_ends_with_its_delimiter(tmp_path, piece, loops):
    for delimiter, files in (
        (b"\n", [b"a", b"b\n", b"", b"\n"]),
        (b"aa", [b"xa", b"xaa", b"aaa", b"aaaa", b"a", b""]),
        (b"\n\n", [b"one\n", b"two\n\n", b"three\n\n\n", b"four"]),
        (b"\r\n", [b"one\r", b"two\r\n", b"three\n"]),
        (b"abab", [b"ab", b"aba", b"ababab", b"abababab"]),
    ):
        paths = []
        for number, content in enumerate(files):
            paths.append(tmp_path / str(number))
            paths[-1].write_bytes(content)
        wanted = b""
        for content in files:
            rest = content
            while (end := rest.find(delimiter)) >= 0:
                rest = rest[end + len(delimiter) :]
            wanted += content + (missing(rest, delimiter) if rest else b"")
        assert stream(paths, delimiter, piece=piece, loops=loops)[0] == wanted


@pytest.mark.parametrize("piece", [1, 5, 100])
def test_headers_are_taken_off(tmp_path, piece):
    contents = [b"h1\nh2\na\n", b"h1\nh2\n", b"h1", b"", b"x\ny\nz"]
    paths = []
    for number, content in enumerate(contents):
        paths.append(tmp_path / str(number))
        paths[-1].write_bytes(content)
    found, one, said = stream(paths, header=2, piece=piece)
    assert (found, one.header) == (b"a\nz\n", b"h1\nh2\n")
    assert [text.split(": ")[0][-1] for text in said] == ["2", "4"]
    assert one.where(0) == f"{tmp_path}/0, byte 6"
    assert one.where(2) == f"{tmp_path}/4, byte 4"


def test_a_header_without_end_is_refused(tmp_path):
    (tmp_path / "in").write_bytes(b"x" * ((1 << 24) + 1))
    with pytest.raises(ValueError, match="in: its 1 header lines are longer than 16 MB"):
        stream([tmp_path / "in"], header=1, piece=1 << 20)


@pytest.mark.parametrize(("kind", "make"), [("gz", gzip), ("bz2", bz2), ("xz", lzma)])
def test_a_damaged_file_is_named(tmp_path, kind, make):
    whole = make.compress(TEXT)
    for content in (whole[:-9], whole + b"xyz", whole[:20] + b"??" + whole[22:]):
        (tmp_path / "in").write_bytes(content)
        with pytest.raises(ValueError, match=f"in: this {kind} file is damaged: .+"):
            stream([tmp_path / "in"], piece=1 << 16)


def test_a_large_dictionary_on_a_stream_is_refused_with_the_reason(tmp_path):
    (tmp_path / "in").write_bytes(lzma.compress(TEXT, preset=9))
    assert stream([tmp_path / "in"])[0] == TEXT, "a file's dictionary is known before"
    file = Unpacked(io.BytesIO(lzma.compress(TEXT, preset=9)), "xz", 16 << 20)
    with pytest.raises(lzma.LZMAError, match=r"[Mm]emory"):
        file.read(10)


def test_sizes_of_plain_files_are_known_and_those_of_others_not(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    (tmp_path / "b").write_bytes(gzip.compress(b"12345"))
    loops = the_loops("compiled")
    assert Inputs([str(tmp_path / "a")] * 2, b"\n", loops).size() == 12
    assert Inputs([str(tmp_path / "a"), str(tmp_path / "b")], b"\n", loops).size() is None
    os.mkfifo(tmp_path / "pipe")
    one = Inputs([str(tmp_path / "pipe")], b"\n", loops)
    assert (one.size(), one.progress()) == (None, None)


def test_a_stream_whose_first_bytes_were_read_goes_on_behind_them():
    one = Prefixed(b"abc", io.BytesIO(b"defgh"))
    assert one.read(2) + one.read(4) + one.read() == b"abcdefgh"
