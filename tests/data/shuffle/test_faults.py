"""Full disks, failing files, few file handles, bad outputs: one line, no half file."""

import errno
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from families.shuffling import COMMAND, below, kexue_shuffle, limited
from kexue.data.shuffle import plan_shuffle, shuffle_lines
from kexue.data.shuffle.buckets import BucketFiles
from kexue.data.shuffle.outputs import Outputs, told, write_all

LINES = b"".join(b"%07d %s\n" % (i, b"z" * 92) for i in range(30_000))  # 3 MB


@pytest.fixture
def corpus(tmp_path):
    (tmp_path / "given").mkdir()
    path = tmp_path / "given" / "corpus.txt"
    path.write_bytes(LINES)
    return path


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 2 MB, or a skip where none can be made."""
    made = []

    def make(size):
        folder = tmp_path / f"disk{len(made)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "none", str(folder)]
        if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("no small disk can be made here")
        made.append(folder)
        return folder

    yield make
    for folder in made:
        subprocess.run(["umount", str(folder)], check=True)


def attempt(corpus, output, **options):
    options = {"seed": 7, "memory": "4GB", "progress": False} | options
    return shuffle_lines(corpus, output, **options)


@pytest.mark.parametrize("threads", [1, 2])
def test_too_little_space_is_refused_before_the_work(tmp_path, corpus, small_disk, threads):
    disk = small_disk(1000)
    for options in (
        {"buckets": 4, "tmp_dir": disk, "threads": threads},
        {"threads": threads},
    ):
        output = tmp_path / "out" if "tmp_dir" in options else disk / "out"
        with pytest.raises(
            OSError, match=r"disk0.*needs [34] MB for .*, \d MB are missing"
        ) as caught:
            attempt(corpus, output, **options)
        assert caught.value.errno == errno.ENOSPC
        assert below(disk) == []
    assert below(tmp_path) == ["disk0", "given"]
    assert corpus.read_bytes() == LINES


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("where", ["scatter", "output", "held", "parts", "gz", "again"])
def test_a_disk_that_fills_up_leaves_nothing_and_says_how_much_is_missing(
    tmp_path, corpus, small_disk, monkeypatch, where, threads
):
    monkeypatch.setattr("kexue.data.shuffle.work.check_space", lambda *given: None)
    disk = small_disk(1500 if where != "again" else 4200)
    output, options = disk / "out", {"threads": threads, "tmp_dir": tmp_path, "buckets": 5}
    if where == "scatter":
        output, options["tmp_dir"] = tmp_path / "out", disk
    elif where == "held":
        options |= {"tmp_dir": None, "buckets": None}
    elif where == "parts":
        options["files"] = 3
    elif where == "gz":
        output = disk / "out.gz"
        corpus.write_bytes(os.urandom(3_000_000))
    elif where == "again":
        output, options["tmp_dir"], options["buckets"] = tmp_path / "out", disk, 2
        monkeypatch.setattr("kexue.data.shuffle.plan.Memory.bucket", 100_000)
    before = corpus.read_bytes()
    with pytest.raises(
        OSError, match=r"the disk is full; free space on .*disk0.*MB are still"
    ) as one:
        attempt(corpus, output, **options)
    assert one.value.errno == errno.ENOSPC
    assert below(disk) == []
    assert below(tmp_path) == ["disk0", "given"]
    assert corpus.read_bytes() == before


def test_a_file_that_may_not_grow_fails_with_its_name(tmp_path, corpus):
    done = kexue_shuffle(
        corpus, "-o", tmp_path / "out", "-q", preexec_fn=limited(resource.RLIMIT_FSIZE, 500_000)
    )
    assert done.returncode == 1
    assert done.stderr.startswith(b"error: ")
    assert b".out." in done.stderr
    assert b"File too large" in done.stderr
    assert done.stderr.count(b"\n") == 1
    assert below(tmp_path) == ["given"]


def test_standard_output_that_is_full_is_an_error(corpus):
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        done = kexue_shuffle(corpus, "-q", stdout=full, capture_output=False, stderr=-1)
    assert done.returncode == 1
    assert b"standard output: the disk is full" in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("call", ["close", "fsync"])
def test_errors_that_come_late_count(tmp_path, corpus, monkeypatch, call):
    if call == "fsync":

        def fails(handle):
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(os, "fsync", fails)
    else:

        class Late:
            def __init__(self, file):
                self.file = file

            def __getattr__(self, name):
                return getattr(self.file, name)

            def close(self):
                self.file.close()
                raise OSError(errno.EIO, "Input/output error")

        original = Outputs.open

        def opened(self, offset):
            original(self, offset)
            self.file = Late(self.file)

        monkeypatch.setattr(Outputs, "open", opened)
    for buckets in (None, 3):
        with pytest.raises(OSError, match=r"\.out\..*: Input/output error"):
            attempt(corpus, tmp_path / "out", buckets=buckets, fsync=True)
        assert below(tmp_path) == ["given"]


def test_errors_of_closing_a_bucket_count(tmp_path):
    files = BucketFiles(tmp_path / "buckets", 1, 10)

    class Late:
        def close(self):
            raise OSError(errno.EDQUOT, "quota")

    files.files[0] = Late()
    with pytest.raises(OSError, match=r"000000\.bucket: the disk is full"):
        files.close()


@pytest.mark.parametrize("most", [14, 40, 256])
def test_few_file_handles_suffice(tmp_path, corpus, most):
    code = (
        "import sys; from kexue.data.shuffle import shuffle_lines; from pathlib import Path\n"
        "shuffle_lines(sys.argv[1], sys.argv[2], seed=7, buckets=500, memory='300MB', "
        "progress=False)"
    )
    wanted = attempt(corpus, tmp_path / "one").outputs[0]
    done = subprocess.run(
        [sys.executable, "-c", code, str(corpus), str(tmp_path / "two")],
        preexec_fn=limited(resource.RLIMIT_NOFILE, most),
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "two").read_bytes() == Path(wanted).read_bytes()


@pytest.mark.parametrize("link", ["hard", "symbolic", "same", "part"])
def test_an_output_that_is_an_input_is_refused(tmp_path, corpus, link):
    output, options = tmp_path / "out.txt", {}
    if link == "hard":
        os.link(corpus, output)
    elif link == "symbolic":
        output.symlink_to(corpus)
    elif link == "same":
        output = corpus
    else:
        os.link(corpus, tmp_path / "out-00007.txt")
        corpus, options = tmp_path / "out-00007.txt", {"lines_per_file": 10}
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="is an input and an output"):
            attempt(corpus, output, overwrite=overwrite, **options)
    assert corpus.read_bytes() == LINES


def test_outputs_that_exist_are_kept_unless_asked(tmp_path, corpus):
    (tmp_path / "out.txt").write_bytes(b"old")
    with pytest.raises(FileExistsError, match=r"out\.txt: exists; give --overwrite"):
        attempt(corpus, tmp_path / "out.txt")
    (tmp_path / "out-00001.txt").write_bytes(b"old")
    with pytest.raises(FileExistsError, match=r"out-00001\.txt: exists"):
        attempt(corpus, tmp_path / "out.txt", files=3)
    assert (tmp_path / "out-00001.txt").read_bytes() == b"old"
    assert below(tmp_path) == ["given", "out-00001.txt", "out.txt"]


def test_overwriting_parts_removes_older_ones_and_nothing_else(tmp_path, corpus):
    for name in ("out-00000.txt", "out-00001.txt", "out-00002.txt", "out-20210908.txt"):
        (tmp_path / name).write_bytes(b"old")
    attempt(corpus, tmp_path / "out.txt", files=2, overwrite=True)
    assert below(tmp_path) == ["given", "out-00000.txt", "out-00001.txt", "out-20210908.txt"]
    assert (tmp_path / "out-20210908.txt").read_bytes() == b"old"


def test_a_symbolic_link_is_followed(tmp_path, corpus):
    (tmp_path / "far").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "far" / "real")
    attempt(corpus, tmp_path / "out")
    assert (tmp_path / "out").is_symlink()
    assert below(tmp_path / "far") == ["real"]


@pytest.mark.parametrize("output", ["/dev/null", "/dev/full"])
def test_a_device_is_never_replaced_by_a_file(corpus, output):
    with pytest.raises(ValueError, match=r"is no regular file; give - and redirect"):
        attempt(corpus, output, overwrite=True)
    assert Path(output).is_char_device()


@pytest.mark.parametrize(
    ("output", "error", "message"),
    [
        ("none/out", FileNotFoundError, "no such folder for the output"),
        ("given", ValueError, "is a folder; give a file name inside it"),
        ("x" * 201, ValueError, "this name is longer than 200 bytes"),
    ],
)
def test_an_output_that_cannot_be_made_is_refused_at_once(tmp_path, corpus, output, error, message):
    with pytest.raises(error, match=message):
        attempt(corpus, tmp_path / output)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": 0}, "threads must be at least 1, got 0"),
        ({"sample": -1}, "sample must be at least 0"),
        ({"header": -1}, "header must be at least 0"),
        ({"files": 0}, "files must be at least 1"),
        ({"lines_per_file": 0}, "lines_per_file must be at least 1"),
        ({"files": 1, "lines_per_file": 1}, "not both"),
        ({"buckets": 0}, "buckets must be at least 1"),
        ({"buckets": 65537}, "buckets must be at most 65536"),
        ({"seed": -1}, r"seed must be in \[0, 2\^64\), got -1"),
        ({"seed": 2**64}, r"seed must be in \[0, 2\^64\)"),
        ({"delimiter": b""}, "delimiter must not be empty"),
        ({"memory": "1 MB"}, "memory must be at least"),
        ({"memory": "much"}, "a size such as 2GB"),
        ({"tmp_dir": "/none"}, "/none: is no folder for temporary files"),
    ],
    ids=str,
)
def test_arguments_out_of_range_are_refused(tmp_path, corpus, options, message):
    with pytest.raises(ValueError, match=message):
        attempt(corpus, tmp_path / "out", **options)
    assert below(tmp_path) == ["given"]


def test_too_many_parts_are_refused(tmp_path):
    (tmp_path / "in").write_bytes(b"\n" * 100_001)
    with pytest.raises(ValueError, match="at most 100,000 outputs"):
        attempt(tmp_path / "in", tmp_path / "out", lines_per_file=1)
    assert below(tmp_path) == ["in"]


def test_a_pipe_that_does_not_wait_gets_all(tmp_path):
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    code = "import os, sys, time; time.sleep(0.3); print(len(sys.stdin.buffer.read()))"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=reader, stdout=subprocess.PIPE, text=True
    )
    os.close(reader)
    with open(writer, "wb", buffering=0) as file:  # noqa: PTH123
        write_all(file, bytes(1_000_000))
    assert process.communicate()[0] == "1000000\n"


def test_several_pieces_are_written_whole_when_the_system_takes_less(tmp_path, monkeypatch):
    original = os.writev
    monkeypatch.setattr(os, "writev", lambda file, parts: original(file, [parts[0][:2]]))
    with (tmp_path / "file").open("wb", buffering=0) as file:
        write_all(file, b"abc", b"", b"defg")
    assert (tmp_path / "file").read_bytes() == b"abcdefg"


def test_other_errors_of_a_file_get_its_name():
    with pytest.raises(OSError, match="name: Input/output error"), told("name"):
        raise OSError(errno.EIO, "Input/output error")
    with pytest.raises(BrokenPipeError, match=r"^$"), told("name"):
        raise BrokenPipeError


@pytest.mark.parametrize("memory", ["1.5GB", "4GB"])
def test_the_plan_is_near_what_happens(tmp_path, corpus, memory):
    plan = plan_shuffle(corpus, tmp_path / "out", memory=memory)
    assert (plan.in_memory, plan.buckets, plan.levels, plan.temporary_bytes) == (True, 1, 0, 0)
    assert plan.bytes == len(LINES) + 1
    assert abs(plan.lines - 30_000) < 10
    assert plan.seconds > 0
    assert attempt(corpus, tmp_path / "out", memory=memory).buckets == plan.buckets
    (tmp_path / "out").unlink()
    plan = plan_shuffle(corpus, tmp_path / "out", buckets=6)
    assert (plan.in_memory, plan.buckets, plan.levels) == (False, 6, 1)
    assert abs(plan.temporary_bytes - len(LINES) - 8 * 30_000) < 1000
    assert below(tmp_path) == ["given"], "a plan writes nothing"


def test_the_command_is_known():
    assert COMMAND[-1] == "shuffle"
