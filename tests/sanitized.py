"""The compiled module built with sanitizers, and random calls of it (fuzz_kernels.py) in pieces that take minutes.

    python tests/sanitized.py --vector-bytes 64 --first 0 --cases 1000      # the next piece: --first 1000

The sanitized builds see every byte read or written outside a tensor or a request for scratch memory, and undefined
behaviour. With 64-byte vectors the level "avx2" is built as wide as AVX-512's without its instructions, so that the
widest level's bounds are seen on any x86 machine. The build is kept in --folder and made anew when a source is newer.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FUZZ = Path(__file__).with_name("fuzz_kernels.py")
FLAGS = "-O1 -g1 -fsanitize=address,undefined -fno-omit-frame-pointer"
TSAN_FLAGS = "-O1 -g1 -fsanitize=thread"
_AVX2_LEVEL = 'LEVELS["avx2"] = (32,'


def wide(vector_bytes: int) -> dict[str, str]:
    """The change of setup.py that gives the level "avx2" vectors of so many bytes."""
    return {_AVX2_LEVEL: _AVX2_LEVEL.replace("32", str(vector_bytes))}


def environment() -> dict[str, str] | None:
    """For a process that loads a module built with FLAGS; None where g++ has no such sanitizers."""
    libraries = preloaded("libasan.so", "libubsan.so")
    if libraries is None:
        return None
    return {
        "LD_PRELOAD": libraries,
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
    }


def run(*command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    single = {"OPENBLAS_NUM_THREADS": "1"}  # numpy's own threads are none of these tests' business
    return subprocess.run(
        [sys.executable, *command],
        env={**os.environ, **single, **variables},
        capture_output=True,
        text=True,
        timeout=3000,
        check=False,
    )


def build(folder: Path, flags: str, edits: dict[str, str]) -> Path:
    """The compiled module made with these flags, after these replacements in setup.py."""
    tree = folder / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    for name in ("csrc", "gan_fast"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("_C*", "__pycache__"))
    for name in ("README.md", "pyproject.toml", "setup.py"):
        shutil.copy(ROOT / name, tree / name)
    if flags == TSAN_FLAGS:
        shutil.copy(FUZZ.with_name("gomp_threads.cpp"), tree / "csrc/common")
    text = (tree / "setup.py").read_text(encoding="utf-8")
    for old, new in edits.items():
        assert old in text
        text = text.replace(old, new)
    (tree / "setup.py").write_text(text, encoding="utf-8")
    built = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(folder), "--build-temp", str(folder)],
        cwd=tree,
        env={**os.environ, "CXX": "g++", "CXXFLAGS": flags, "GAN_FAST_REQUIRE_EXT": "1", "GAN_FAST_BUILD_DIR": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr[-3000:]
    return built_in(folder)[0]


def built_in(folder: Path) -> list[Path]:
    """The modules that :func:`build` has left in this folder: one, or none."""
    return list((folder / "gan_fast").glob("_C*.so"))


def preloaded(*names: str) -> str | None:
    """Where g++ has these libraries, for LD_PRELOAD; None where it has not."""
    compiler = shutil.which("g++")
    libraries = [] if compiler is None else [_runtime(compiler, name) for name in names]
    return " ".join(libraries) if libraries and all(os.path.isabs(path) for path in libraries) else None


def _runtime(compiler: str, name: str) -> str:
    """Where the compiler has this library; the bare name if it has none."""
    found = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=False)
    return found.stdout.strip()


def main() -> int:
    """Build if need be, run one piece; what fuzz_kernels.py says, and its status."""
    parser = argparse.ArgumentParser(
        description="Random calls of the compiled kernels under ASan and UBSan, in pieces."
    )
    parser.add_argument(
        "--vector-bytes", type=int, choices=(32, 64), default=64, help="of the level avx2 (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=1, help="(%(default)s)")
    parser.add_argument("--first", type=int, default=0, help="number of the first call (%(default)s)")
    parser.add_argument("--cases", type=int, default=1000, help="calls (%(default)s)")
    parser.add_argument(
        "--folder", type=Path, help="where the build is kept (one for each vector size, for temporary files)"
    )
    given = parser.parse_args()
    variables = environment()
    if variables is None:
        parser.error("g++ with its sanitizers is not installed")
    folder = given.folder or Path(tempfile.gettempdir()) / f"gan_fast-sanitized-{given.vector_bytes}"
    built = built_in(folder)
    sources = [ROOT / "setup.py", *(path for path in (ROOT / "csrc").rglob("*") if path.is_file())]
    if not built or built[0].stat().st_mtime < max(path.stat().st_mtime for path in sources):
        folder.mkdir(parents=True, exist_ok=True)
        built = [build(folder, FLAGS, wide(given.vector_bytes))]
    piece = ("--seed", str(given.seed), "--first", str(given.first), "--cases", str(given.cases))
    done = run(str(FUZZ), str(built[0]), *piece, **variables)
    sys.stdout.write(done.stdout)
    sys.stderr.write(done.stderr[-5000:])
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
