"""Builds gan_fast._C: every source of csrc/, each kernel text once per instruction-set level, with no torch in the
build.

A failed build installs the pure Python package (reference backend) and says so in one warning with the compiler's first
error; GAN_FAST_REQUIRE_EXT=1 makes it fatal. GAN_FAST_NO_EXT=1 skips the build. CXX, CXXFLAGS and MAX_JOBS are
respected; GAN_FAST_BUILD_DIR keeps the objects in a folder of that name, shared by successive builds.

GAN_FAST_CUDA=1 builds a second module, gan_fast._cuda, from csrc/cuda with nvcc, for CUDA_TARGETS or, with
GAN_FAST_CUDA_ARCH=native, for the present device alone. Whoever asks for it gets an error where it cannot be built.
GAN_FAST_CUDA=only builds it alone.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"
X86 = platform.machine().lower() in ("x86_64", "amd64")

# The convolutions' texts spell out their vectors and unrolling: -O3 adds nothing but time to compile. The others need
# it (batch normalisation's gradient through tanh: 1.3 times as fast). What never runs in a hot loop is compiled for
# size.
HOT, SPELT_OUT, COLD, PROOF = "-O3", "-O2", "-Os", "-O1"
SPELT_OUT_TEXTS = (
    "bf16_matrix-inl.h",
    "bf16_pairs-inl.h",
    "conv_weight_grad-inl.h",
    "gather_conv-inl.h",
    "winograd_conv-inl.h",
)
COMMON_FLAGS = [
    "-std=c++17",
    "-fPIC",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    "-fno-math-errno",
    "-fno-trapping-math",
]
# Every level's flags live here and nowhere else. -march=native is never used: the binary decides at run time.
LEVELS: dict[str, tuple[int, list[str]]] = {"portable": (16, ["-ffp-contract=off"])}
if X86:
    LEVELS["avx2"] = (32, ["-mavx2", "-mfma", "-mf16c", "-ffp-contract=fast"])
    LEVELS["avx512"] = (
        64,
        [
            "-mavx512f",
            "-mavx512bw",
            "-mavx512dq",
            "-mavx512vl",
            "-mfma",
            "-mprefer-vector-width=512",
            "-ffp-contract=fast",
        ],
    )

    LEVELS["avx512_bf16"] = (64, [*LEVELS["avx512"][1], "-mavx512bf16"])
    LEVELS["amx_bf16"] = (64, [*LEVELS["avx512_bf16"][1], "-mamx-tile", "-mamx-bf16", "-DGF_AMX"])
# The texts with bf16 instructions, and the level that each is for; in all others avx512 serves these levels too.
# Emulated at two other levels, a text is proved where a CPU lacks the instructions.
BF16_TEXTS = {"bf16_pairs-inl.h": "avx512_bf16", "bf16_matrix-inl.h": "amx_bf16"}
BF16_PROOFS = ("portable", "avx512")

CUDA_MODULE = "gan_fast._cuda"
# Binaries, and PTX from which the driver makes what any other device since compute capability 8.0 runs.
CUDA_TARGETS = ("sm_80", "sm_90a", "sm_100", "compute_80")
# "all-warnings" turns the compiler's own into errors, the host compiler's -Wall and -Wextra among them.
CUDA_FLAGS = ["-std=c++17", "-O3", "-Werror", "all-warnings", "-Xcompiler", "-fPIC,-fvisibility=hidden,-Wall,-Wextra"]


class CompileError(RuntimeError):
    """A compiler call failed; the text is its command's first error."""


def first_error(output: str) -> str:
    lines = [line for line in output.splitlines() if line.strip()]
    # Not just the word: folders and sources may have it.
    errors = [line for line in lines if re.search(r"\berror: ", line)]
    return (errors or lines or ["no message"])[0]


def run(command: list[str]) -> None:
    try:
        done = subprocess.run(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
    except OSError as error:
        raise CompileError(f"{command[0]}: {error.strerror}") from error
    if done.returncode != 0:
        sys.stderr.write(done.stdout)
        raise CompileError(first_error(done.stdout))
    if done.stdout.strip():
        sys.stderr.write(done.stdout)


def compiler() -> list[str]:
    named = os.environ.get("CXX")
    if named:
        words = shlex.split(named)
        if shutil.which(words[0]) is None:
            raise CompileError(f"the compiler that CXX={named!r} names is not there")
        return words
    found = next((c for c in ("g++", "c++", "clang++") if shutil.which(c)), None)
    if found is None:
        raise CompileError("no C++ compiler found (looked for g++, c++, clang++; set CXX to name one)")
    return [found]


def first_failure(cxx: list[str], program: str, *flags: str) -> str | None:
    """Compile and link a program of a few lines: None if that works, else the compiler's first error."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.cpp"
        source.write_text(program, encoding="utf-8")
        command = [*cxx, *flags, str(source), "-o", str(Path(folder) / "probe")]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return first_error(done.stdout) if done.returncode != 0 else None


def check_compiler(cxx: list[str]) -> None:
    """A compiler that can do nothing at all is said to be so, instead of with the first of many failed commands."""
    failure = first_failure(cxx, "int main() { return 0; }\n", "-std=c++17")
    if failure is not None:
        raise CompileError(f"{shlex.join(cxx)} cannot compile an empty C++17 program: {failure}")


def openmp_flags(cxx: list[str]) -> list[str]:
    """Flags for compiling and linking; with clang such that GNU's runtime, which is torch's, is used (parallel.h)."""
    program = 'extern "C" int omp_in_parallel(void);\nint main() { return omp_in_parallel(); }\n'
    clang = first_failure(cxx, "#ifndef __clang__\n#error\n#endif\nint main() { return 0; }\n") is None
    flags = ["-fopenmp=libgomp", "-DGAN_FAST_GOMP"] if clang else ["-fopenmp"]
    return flags if first_failure(cxx, program, *flags) is None else []


def check_headers(includes: list[str]) -> None:
    if not any((Path(folder) / "Python.h").is_file() for folder in includes):
        raise CompileError(f"Python.h not found in {', '.join(includes)}: the Python headers are not installed")


def package_version() -> str:
    """Compiled into the module, so that one left behind by another version of the package is recognised."""
    text = (ROOT / "gan_fast/__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    assert found is not None, "gan_fast/__init__.py defines no __version__"
    return found[1]


def matrix_registers(cxx: list[str]) -> bool:
    """Whether compiler and assembler know AMX (GCC 11, clang 12, binutils 2.35 or later), and this is Linux."""
    program = 'int main() { asm volatile("tdpbf16ps %tmm6, %tmm4, %tmm0"); asm volatile("tilerelease"); return 0; }\n'
    return X86 and sys.platform == "linux" and first_failure(cxx, program, *LEVELS["amx_bf16"][1]) is None


def translation_units(with_matrix: bool) -> list[tuple[str, Path, str, list[str]]]:
    """(object name, source, optimisation, extra flags): plain sources once, kernel texts once per level.

    The files that know Python come as one unit: reading pybind11's headers takes longer than compiling any of them.
    """
    units = []
    for source in sorted(CSRC.rglob("*.cpp")):
        relative = source.relative_to(CSRC)
        if relative == Path("cpu/level.cpp") or relative.parts[0] == "cuda" or source.name.startswith("bindings"):
            continue
        units.append((relative.as_posix().replace("/", "_")[:-4], source, SPELT_OUT, []))
    for kernel in sorted((CSRC / "cpu").glob("*-inl.h")):
        for level, (vector_bytes, flags) in LEVELS.items():
            own_level = BF16_TEXTS.get(kernel.name)
            if level not in (*BF16_PROOFS, own_level) if own_level else level in BF16_TEXTS.values():
                continue
            if level == "amx_bf16" and not with_matrix:
                continue
            defines = [f'-DGF_KERNEL="{kernel.name}"', f"-DGF_LEVEL={level}", f"-DGF_VECTOR_BYTES={vector_bytes}"]
            proof = own_level is not None and level in BF16_PROOFS
            optimise = PROOF if proof else SPELT_OUT if kernel.name in SPELT_OUT_TEXTS else HOT
            units.append((f"{kernel.name[:-6]}_{level}", CSRC / "cpu/level.cpp", optimise, [*defines, *flags]))
    return units


def bindings_unit(folder: Path) -> Path:
    """A source that includes all bindings; left alone if it is as it should be, so that it is not compiled again."""
    unit = folder / "bindings_unit.cpp"
    text = "".join(f'#include "{source.name}"\n' for source in sorted(CSRC.glob("bindings*.cpp")))
    if not unit.is_file() or unit.read_text(encoding="utf-8") != text:
        unit.write_text(text, encoding="utf-8")
    return unit


def cuda_targets() -> tuple[str, ...]:
    """What nvcc is to compile for, as GAN_FAST_CUDA_ARCH says."""
    asked = os.environ.get("GAN_FAST_CUDA_ARCH", "all")
    if asked not in ("all", "native"):
        raise CompileError(f"GAN_FAST_CUDA_ARCH: got {asked!r}, expected 'all' or 'native' (the present device alone)")
    return CUDA_TARGETS if asked == "all" else ("native",)


def target_flags(targets: tuple[str, ...]) -> list[str]:
    """nvcc's options for CUDA_TARGETS, or for the present device."""
    if targets == ("native",):
        return ["-arch=native"]
    virtual = {target: target.replace("sm_", "compute_") for target in targets}
    return [f"-gencode=arch={arch},code={code}" for code, arch in virtual.items()]


class BuildKernels(build_ext):
    """build_ext over ninja (or a thread pool where ninja is missing), since setuptools has no flags per source."""

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        if ext.name == CUDA_MODULE:
            try:
                self.compile_cuda(target)
            except CompileError as error:
                raise SystemExit(f"gan_fast: GAN_FAST_CUDA=1, but the CUDA module cannot be built: {error}") from error
            return
        try:
            if os.environ.get("GAN_FAST_NO_EXT") == "1":
                raise CompileError("skipped because GAN_FAST_NO_EXT=1")
            self.compile_kernels(target)
        except CompileError as error:
            target.unlink(missing_ok=True)
            if os.environ.get("GAN_FAST_REQUIRE_EXT") == "1":
                raise SystemExit(f"gan_fast: the kernel build failed and GAN_FAST_REQUIRE_EXT=1: {error}") from error
            sys.stderr.write(f"warning: gan_fast: built without CPU kernels (the reference backend works): {error}\n")
            self.note_failure(target, str(error))
        else:
            self.failure_note(target).unlink(missing_ok=True)

    @staticmethod
    def failure_note(target: Path) -> Path:
        return target.parent / "_build_error.txt"

    def note_failure(self, target: Path, reason: str) -> None:
        """`gan-fast doctor` shows this text: the compiler's output is long gone when users ask why."""
        target.parent.mkdir(parents=True, exist_ok=True)
        self.failure_note(target).write_text(reason + "\n", encoding="utf-8")

    def compile_cuda(self, target: Path) -> None:
        import pybind11

        nvcc = shutil.which("nvcc")
        if nvcc is None:
            raise CompileError("no nvcc on the PATH: it comes with the CUDA toolkit")
        cxx, targets = compiler(), cuda_targets()
        includes = [sysconfig.get_paths()["include"], pybind11.get_include()]
        check_headers(includes)
        version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout
        about = [
            f'-DGAN_FAST_VERSION="{package_version()}"',
            f'-DGAN_FAST_COMPILER="nvcc {"".join(re.findall(r"release [^,]*, (V[0-9.]+)", version))}"',
            f'-DGAN_FAST_CUDA_TARGETS="{" ".join(targets)}"',
        ]
        folder = Path(os.environ.get("GAN_FAST_BUILD_DIR") or self.build_temp).resolve() / "gan_fast_cuda"
        folder.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        binding = [*cxx, COLD, *COMMON_FLAGS, f"-I{CSRC}", *(f"-I{path}" for path in includes), *about]
        commands = [(folder / "bindings.o", CSRC / "cuda" / "bindings.cpp", binding)]
        for source in sorted((CSRC / "cuda").glob("*.cu")):
            command = [nvcc, *CUDA_FLAGS, *target_flags(targets), f"-I{CSRC}"]
            commands.append((folder / f"{source.stem}.o", source, command))
        # The runtime's copy in here must not answer for PyTorch's own.
        link = [nvcc, "-shared", "-cudart=static", "-Xlinker=--exclude-libs,ALL"]
        self.compile_and_link(folder, target, commands, link)

    def compile_kernels(self, target: Path) -> None:
        import pybind11

        if os.name == "nt" or sys.platform == "darwin":
            raise CompileError(f"CPU kernels are not built on {sys.platform} yet")
        cxx = compiler()
        includes = [sysconfig.get_paths()["include"], sysconfig.get_paths()["platinclude"], pybind11.get_include()]
        check_headers(includes)
        check_compiler(cxx)
        openmp, with_matrix = openmp_flags(cxx), matrix_registers(cxx)
        user_flags = shlex.split(os.environ.get("CXXFLAGS", ""))
        version = subprocess.run([*cxx, "--version"], capture_output=True, text=True, check=False).stdout.splitlines()
        flags = [
            *COMMON_FLAGS,
            *openmp,
            *user_flags,
            *(["-DGAN_FAST_X86"] if X86 else []),
            *(["-DGAN_FAST_AMX"] if with_matrix else []),
            f"-I{CSRC}",
            f"-I{CSRC / 'cpu'}",
        ]
        flags += [f"-I{path}" for path in dict.fromkeys(includes)]
        about = [
            f'-DGAN_FAST_VERSION="{package_version()}"',
            f'-DGAN_FAST_COMPILER="{version[0] if version else cxx[0]}"',
            f'-DGAN_FAST_FLAGS="{" ".join([HOT, *COMMON_FLAGS, *openmp, *user_flags])}"',
        ]
        folder = Path(os.environ.get("GAN_FAST_BUILD_DIR") or self.build_temp).resolve() / "gan_fast"
        folder.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        # First of all flags, so that one in CXXFLAGS counts instead.
        commands = [(folder / "bindings.o", bindings_unit(folder), [*cxx, COLD, *flags, *about])]
        for name, source, optimise, extra in translation_units(with_matrix):
            commands.append((folder / f"{name}.o", source, [*cxx, optimise, *flags, *extra]))
        self.compile_and_link(folder, target, commands, [*cxx, "-shared", *openmp, *user_flags])

    def compile_and_link(
        self, folder: Path, target: Path, commands: list[tuple[Path, Path, list[str]]], link: list[str]
    ) -> None:
        if shutil.which("ninja"):
            self.with_ninja(folder, target, commands, link)
        else:
            self.with_threads(target, commands, link)

    @staticmethod
    def with_ninja(folder: Path, target: Path, commands: list[tuple[Path, Path, list[str]]], link: list[str]) -> None:
        def quote(words: list[str]) -> str:
            return " ".join(shlex.quote(word) for word in words).replace("$", "$$")

        def path(p: Path) -> str:
            return str(p).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")

        lines = [
            "rule compile",
            "  command = $cmd -MMD -MF $out.d -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
        ]
        lines += ["rule link", "  command = $cmd $in -o $out"]
        for obj, source, command in commands:
            lines += [f"build {path(obj)}: compile {path(source)}", f"  cmd = {quote(command)}"]
        lines += [
            f"build {path(target)}: link {' '.join(path(obj) for obj, _, _ in commands)}",
            f"  cmd = {quote(link)}",
        ]
        (folder / "build.ninja").write_text("\n".join(lines) + "\n", encoding="utf-8")
        jobs = os.environ.get("MAX_JOBS")
        run(["ninja", "-C", str(folder), *(["-j", jobs] if jobs else [])])

    @staticmethod
    def with_threads(target: Path, commands: list[tuple[Path, Path, list[str]]], link: list[str]) -> None:
        jobs = int(os.environ.get("MAX_JOBS", os.cpu_count() or 1))
        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(lambda c: run([*c[2], "-c", str(c[1]), "-o", str(c[0])]), commands))
        run([*link, *(str(obj) for obj, _, _ in commands), "-o", str(target)])

    def get_outputs(self) -> list[str]:
        return [path for path in super().get_outputs() if Path(path).exists()]

    def copy_extensions_to_source(self) -> None:
        """In-place builds: nothing to copy when the build fell back to pure Python."""
        for ext in self.extensions:
            built, inplace = Path(self.build_lib) / self.get_ext_filename(ext.name), Path(ROOT, *ext.name.split("."))
            inplace = inplace.parent / built.name
            note = self.failure_note(built)
            if built.exists():
                # Replaced whole: a process that has the old module mapped keeps it, where writing
                # into it would crash it.
                fresh = inplace.with_suffix(".new")
                shutil.copy2(built, fresh)
                os.replace(fresh, inplace)
                self.failure_note(inplace).unlink(missing_ok=True)
            elif note.exists():
                inplace.unlink(missing_ok=True)
                shutil.copy2(note, self.failure_note(inplace))


with_cuda = os.environ.get("GAN_FAST_CUDA")
modules = ([] if with_cuda == "only" else ["gan_fast._C"]) + ([CUDA_MODULE] if with_cuda in ("1", "only") else [])
setup(
    ext_modules=[Extension(name, sources=[], optional=False) for name in modules],
    cmdclass={"build_ext": BuildKernels},
)
