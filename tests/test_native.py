"""The compiled loops: where they come from, and that nothing fails where they cannot be had."""

import ctypes
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import kexue.optim
from kexue import native
from kexue.native import native_library, native_status
from kexue.tensor_loop import Loop

OPTIM = Path(kexue.optim.__file__).parent
DOUBLE = "void twice(float *x, long n) { for (long i = 0; i < n; i++) x[i] *= 2; }\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a C file, a cache of its own, and no memory of earlier answers."""
    monkeypatch.setenv("KEXUE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("KEXUE_NATIVE", raising=False)
    source = tmp_path / "source"
    source.mkdir()
    (source / "twice.c").write_text(DOUBLE)
    for answer in (native_library, native._load):
        answer.cache_clear()
    yield source
    for answer in (native_library, native._load):
        answer.cache_clear()


@pytest.fixture
def compiler():
    status = native_status(OPTIM)
    if not status.startswith("compiled by"):
        pytest.skip(status)


def libraries(folder):
    return sorted((folder.parent / "cache").glob("*"))


def test_a_folder_is_compiled_once_and_its_functions_run(compiler, folder):
    assert native_library(folder) is not None
    [made] = libraries(folder)
    written = made.stat().st_mtime_ns
    native_library.cache_clear()
    native._load.cache_clear()
    assert native_library(folder) is not None
    assert [p.stat().st_mtime_ns for p in libraries(folder)] == [written]
    loop = Loop(str(folder / "module.py"), "twice", "xn")
    x = torch.arange(5.0)
    assert loop.takes(x)
    loop(x, x.numel())
    assert x.tolist() == [0, 2, 4, 6, 8]


def test_another_source_gives_another_file(compiler, folder):
    native_library(folder)
    (folder / "twice.c").write_text(DOUBLE.replace("2;", "3;"))
    native._load.cache_clear()
    native_library.cache_clear()
    native_library(folder)
    assert len(libraries(folder)) == 2


def test_a_loop_takes_float32_blocks_on_a_cpu_and_nothing_else(compiler, folder):
    loop = Loop(str(folder / "module.py"), "twice", "xn")
    x = torch.zeros(4, 4)
    assert loop.takes(x, torch.nn.Parameter(x))

    class Marked(torch.Tensor):
        pass

    for other in (
        x.double(),
        x.bfloat16(),
        x.T[:2],
        x[:, ::2],
        x.to("meta"),
        x.as_subclass(Marked),
    ):
        assert not loop.takes(x, other)


def test_a_loop_takes_equally_many_elements_with_their_signs_in_memory(compiler, folder):
    loop = Loop(str(folder / "module.py"), "twice", "xn")
    x = torch.zeros(4, 4)
    assert not loop.takes(x, torch.zeros(4, 3))
    assert not loop.takes(torch._neg_view(x))


@pytest.mark.parametrize("empty", ["KEXUE_CACHE", "XDG_CACHE_HOME"])
def test_an_empty_variable_counts_as_unset(compiler, folder, monkeypatch, tmp_path, empty):
    for name in ("KEXUE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(empty, "")
    monkeypatch.chdir(tmp_path)
    assert native_library(folder) is not None
    assert list((tmp_path / ".cache" / "kexue").glob("native-*.so"))
    assert not list(tmp_path.glob("native-*"))
    assert not (tmp_path / "kexue").exists()


def test_a_relative_cache_is_found_again(compiler, folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KEXUE_CACHE", ".")
    assert native_library(folder) is not None


def test_without_a_home_torch_is_used(folder, monkeypatch):
    def nowhere(self):
        raise RuntimeError("Could not determine home directory.")

    for name in ("KEXUE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "expanduser", nowhere)
    assert native_library(folder) is None
    assert native_status(folder) == (
        "could not be compiled (Could not determine home directory. Set KEXUE_CACHE to a folder of "
        "your own); torch's own operations are used"
    )


def test_a_message_in_another_encoding_is_reported(folder, monkeypatch, tmp_path):
    broken = tmp_path / "tools" / "cc"
    broken.parent.mkdir()
    broken.write_bytes(b"#!/bin/sh\nprintf 'kaputt \\344\\n' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{broken.parent}:/usr/bin:/bin")
    assert native_library(folder) is None
    assert "could not be compiled (kaputt" in native_status(folder)


def test_the_sums_of_a_huge_tensor_fit_on_the_stack_of_a_thread():
    """In a process of its own, which an overflow would end; 200 million zeros take no memory."""
    code = (
        "import threading, torch; from kexue.optim.tiger import rms\n"
        "x, found = torch.zeros(200_000_000), []; threading.stack_size(256 * 1024)\n"
        "one = threading.Thread(target=lambda: found.append(rms(x))); one.start(); one.join()\n"
        "print(found)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout == "[0.0]\n"


def test_switched_off_it_says_so(folder, monkeypatch):
    monkeypatch.setenv("KEXUE_NATIVE", "0")
    assert native_library(folder) is None
    assert native_status(folder) == "switched off by KEXUE_NATIVE=0"
    assert not Loop(str(folder / "module.py"), "twice", "xn").takes(torch.zeros(3))
    assert not (folder.parent / "cache").exists()


def test_without_a_compiler_torch_is_used(folder, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path / "nothing here"))
    assert native_library(folder) is None
    assert native_status(folder) == "no C compiler was found; torch's own operations are used"


@pytest.mark.parametrize("script", ["exit 1", "echo broken >&2; exit 1"])
def test_a_compiler_that_fails_is_reported_in_one_line(folder, monkeypatch, tmp_path, script):
    tools = tmp_path / "tools"
    tools.mkdir()
    broken = tools / "cc"
    broken.write_text(f"#!/bin/sh\n{script}\n")
    broken.chmod(broken.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    assert native_library(folder) is None
    message = "broken" if "broken" in script else "no message"
    assert native_status(folder) == (
        f"could not be compiled ({message}); torch's own operations are used"
    )
    assert libraries(folder) == []


def test_a_compiler_without_openmp_gives_one_thread(compiler, folder, monkeypatch, tmp_path):
    tools = tmp_path / "tools"
    tools.mkdir()
    poor = tools / "cc"
    poor.write_text(
        '#!/bin/sh\nfor a in "$@"; do if [ "$a" = -fopenmp ]; then exit 1; fi; done\n'
        'exec /usr/bin/cc "$@"\n'
    )
    poor.chmod(0o755)
    if not Path("/usr/bin/cc").exists():
        pytest.skip("no /usr/bin/cc")
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    assert native_library(folder) is not None
    assert native_status(folder) == f"compiled by {poor}"


def test_a_source_that_does_not_compile_is_reported(compiler, folder):
    (folder / "twice.c").write_text("this is no C")
    assert native_library(folder) is None
    assert native_status(folder).startswith("could not be compiled (")
    assert "\n" not in native_status(folder)
    assert libraries(folder) == []


def test_a_cache_of_somebody_else_is_not_trusted(folder, monkeypatch):
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert native_library(folder) is None
    assert "belongs to another user" in native_status(folder)
    assert libraries(folder) == []


def test_a_cache_that_others_may_write_to_is_not_trusted(folder):
    cache = folder.parent / "cache"
    cache.mkdir()
    cache.chmod(0o777)
    assert native_library(folder) is None
    assert "may be written by others" in native_status(folder)


def test_a_cache_that_cannot_be_made_is_reported(folder, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KEXUE_CACHE", str(tmp_path / "file" / "below"))
    assert native_library(folder) is None
    assert native_status(folder).startswith("could not be compiled (")


def test_a_broken_library_is_made_again(compiler, folder):
    found = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    name = f"native-{native._fingerprint(sorted(folder.glob('*.c')), found)}.so"
    path = native._cache() / name
    path.write_bytes(b"\x7fELF half a file")
    assert native_library(folder) is not None
    assert path.stat().st_size > 1000
    assert libraries(folder) == [path]


def test_processes_that_compile_at_once_end_with_one_good_file(compiler, folder):
    code = (
        "import sys, torch; from kexue.tensor_loop import Loop;"
        f"loop = Loop({str(folder / 'module.py')!r}, 'twice', 'xn'); x = torch.ones(3);"
        "print('ready', flush=True); sys.stdin.readline();"
        "assert loop.takes(x); loop(x, 3); print(x.tolist())"
    )
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for one in started:
        assert one.stdout.readline() == "ready\n"
    for one in started:
        one.stdin.write("go\n")
        one.stdin.flush()
    for one in started:
        output, errors = one.communicate(timeout=60)
        assert one.returncode == 0, errors
        assert output == "[2.0, 2.0, 2.0]\n"
    [made] = libraries(folder)
    assert ctypes.CDLL(str(made)).twice


def test_torch_alone_trains_where_there_is_no_compiler(tmp_path):
    """The whole way in a process of its own, from import to the last step."""
    code = (
        "import torch; from kexue.optim.lion import Lion; from kexue.optim.adax import AdaX\n"
        "for kind in (Lion, AdaX):\n"
        "    w = torch.nn.Parameter(torch.ones(3)); optimizer = kind([w], lr=0.5)\n"
        "    w.sum().backward(); optimizer.step(); print(round(w[0].item(), 4))\n"
    )
    environment = {**os.environ, "PATH": str(tmp_path), "KEXUE_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.split() == ["0.5", "0.95"]
    assert not (tmp_path / "cache").exists()
