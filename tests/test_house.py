"""The rules of the house, as tests: who may import whom, where an operator's parts lie, what no file may contain.

CONTRIBUTING.md says the same in words. Everything here reads source text; only the table of public names is imported.
"""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import gan_fast

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "gan_fast"
OPERATORS = sorted(p.name for p in (PACKAGE / "ops").iterdir() if (p / "__init__.py").is_file())

# Bottom first: a part may import from parts of a lower rank, and from itself.
RANK = {
    "cache": -2,
    "words": -2,
    "machine": -2,
    "bench": -2,
    "pages": -1,
    "choice_table": -1,
    "backends": 0,
    "precision": 0,
    "ops": 1,
    "functional": 2,
    "nn": 3,
    "dry_run": 1,
    "explain": 5,
    "sequential": 4,
    "accelerate": 5,
    "losses": 6,
    "models": 6,
    "data": 6,
    "tuning": 6,
    "metrics": 7,
    "training": 8,
    "suite": 9,
    "profiling": 9,
    "cli": 10,
    "__main__": 11,
}
# Everything above goes through functional and nn; tuning and profiling watch what those call.
KNOWS_OPERATORS = {"ops", "functional", "nn", "explain", "tuning", "profiling"}
CODE = (".py", ".cpp", ".h", ".cu", ".sh")
LONGEST = 450


@cache
def project_files() -> tuple[Path, ...]:
    """The files of the project: what git tracks or would, or all files of an unpacked sdist."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode == 0:
        found = [ROOT / name for name in listed.stdout.splitlines()]
    else:
        left_out = {"build", "dist", "runs"}
        found = [
            path
            for path in ROOT.rglob("*")
            if not any(part.startswith(".") or part in left_out for part in path.relative_to(ROOT).parts)
        ]
    return tuple(sorted(path for path in found if path.is_file()))


def text_files(*endings: str) -> list[Path]:
    """The project's files with one of the endings; with none given, all that are text."""
    return [
        path
        for path in project_files()
        if (path.suffix in endings if endings else b"\0" not in path.read_bytes()[:4096])
    ]


def library_modules() -> list[Path]:
    return [path for path in text_files(".py") if PACKAGE in path.parents]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def module_name(path: Path) -> tuple[str, ...]:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


def own_imports(path: Path) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Lines and absolute names of what a module imports from gan_fast, wherever in the module the import stands."""
    here = module_name(path)
    package = here if path.name == "__init__.py" else here[:-1]
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "gan_fast":
                    yield node.lineno, tuple(alias.name.split("."))
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            full = (*base, *(node.module.split(".") if node.module else ()))
            if full[:1] == ("gan_fast",):
                for alias in node.names:
                    yield node.lineno, (*full, alias.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "gan_fast":
            yield node.lineno, ("gan_fast", node.attr)


def test_layers_import_only_from_below() -> None:
    wrong = []
    for path in library_modules():
        me = module_name(path)
        if len(me) == 1:
            continue  # gan_fast/__init__.py only names what it loads on demand
        part = me[1]
        assert part in RANK, f"{name_of(path)}: give the new part {part!r} its place in RANK"
        for line, target in own_imports(path):
            other = target[1] if len(target) > 1 else "__version__"
            other = gan_fast._EXPORTS.get(other, (other,))[0]  # gan_fast.Trainer is gan_fast.training's
            if other in ("__version__", "_C", part):
                continue
            if other not in RANK or RANK[other] >= RANK[part]:
                wrong.append(f"{name_of(path)}:{line}: {part} must not import {'.'.join(target)}")
            elif other == "ops" and part not in KNOWS_OPERATORS:
                wrong.append(f"{name_of(path)}:{line}: {part} reaches operators through functional and nn only")
    assert not wrong, "\n".join(wrong)


def test_operators_know_each_other_only_by_their_registered_names() -> None:
    wrong = []
    for path in library_modules():
        me = module_name(path)
        if me[:2] != ("gan_fast", "ops") or len(me) < 3:
            continue
        for line, target in own_imports(path):
            if len(target) > 2 and target[1] == "ops" and target[2] in OPERATORS and target[2] != me[2]:
                if me[2] in OPERATORS:
                    wrong.append(f"{name_of(path)}:{line}: use torch.ops.gan_fast.{target[2]}, not {'.'.join(target)}")
    assert not wrong, "\n".join(wrong)


def test_only_backends_loads_the_compiled_module() -> None:
    for path in library_modules():
        touches = [line for line, target in own_imports(path) if target[1:2] in (("_C",), ("_cuda",))]
        touches += [
            node.lineno
            for node in ast.walk(tree(path))
            if isinstance(node, ast.Constant) and node.value in ("gan_fast._C", "._C", "gan_fast._cuda")
        ]
        assert not touches or path == PACKAGE / "backends.py", f"{name_of(path)}:{touches[0]}: ask backends"


def test_there_are_operators() -> None:
    assert {"conv", "conv_transpose", "conv_weight_grad", "bias_act", "bce_with_logits"} <= set(OPERATORS)


@pytest.mark.parametrize("operator", OPERATORS)
def test_an_operator_s_name_is_its_address(operator: str) -> None:
    wanted = [
        f"gan_fast/ops/{operator}/__init__.py",
        f"gan_fast/ops/{operator}/op.py",
        f"gan_fast/ops/{operator}/reference.py",
        f"gan_fast/ops/{operator}/cpu.py",
        f"tests/test_{operator}.py",
        f"benchmarks/bench_{operator}.py",
    ]
    absent = [name for name in wanted if not (ROOT / name).is_file()]
    assert not absent, f"{operator}: missing {', '.join(absent)}"
    kernels = [path for path in text_files(".cpp", ".h") if "csrc" in path.parts and path.stem.startswith(operator)]
    assert kernels, f"{operator}: no kernel text in csrc whose file name starts with {operator}"


@pytest.mark.parametrize("operator", OPERATORS)
def test_an_operator_documents_itself(operator: str) -> None:
    text = ast.get_docstring(tree(PACKAGE / "ops" / operator / "__init__.py")) or ""
    assert len(text.splitlines()) >= 5, f"{operator}: its __init__ says formula, shapes and orders of gradient"


def test_csrc_is_free_of_torch_and_only_the_bindings_know_python() -> None:
    sources = [path for path in text_files(".cpp", ".h", ".cu") if "csrc" in path.parts]
    assert sources
    for path in sources:
        for included in re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)', path.read_text(encoding="utf-8"), re.MULTILINE):
            assert not re.match(r"(torch|ATen|c10|caffe2)/", included), f"{name_of(path)} includes {included}"
            if not path.stem.startswith("bindings"):
                assert not re.match(r"(pybind11/|Python\.h)", included), f"{name_of(path)} includes {included}"


def test_the_build_needs_no_torch() -> None:
    for name in ("setup.py", "pyproject.toml"):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert not re.search(r"^\s*(import|from) torch\b", text, re.MULTILINE), name
    requires = re.search(r"\[build-system\].*?requires = (\[.*?\])", (ROOT / "pyproject.toml").read_text(), re.DOTALL)
    assert requires and "torch" not in requires.group(1)


def test_no_file_is_longer_than_a_reader_s_breath() -> None:
    lengths = {name_of(p): len(p.read_text(encoding="utf-8").splitlines()) for p in text_files(*CODE)}
    too_long = {name: length for name, length in lengths.items() if length > LONGEST}
    assert not too_long, f"over {LONGEST} lines, cut by role: {too_long}"


def test_the_library_does_not_print() -> None:
    for path in library_modules():
        if PACKAGE / "cli" in path.parents:
            continue
        for node in ast.walk(tree(path)):
            called = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
            assert called != "print", f"{name_of(path)}:{node.lineno}: log with logging.getLogger(__name__)"


def test_modules_and_public_things_have_docstrings() -> None:
    silent = []
    for path in library_modules():
        module = tree(path)
        if module.body and not ast.get_docstring(module):
            silent.append(name_of(path))
        for node in module.body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                if not ast.get_docstring(node):
                    silent.append(f"{name_of(path)}:{node.lineno} {node.name}")
    assert not silent, "no docstring: " + ", ".join(silent)


def test_no_machine_paths() -> None:
    """Nothing tracked names a folder of the machine it was made on."""
    homes = re.compile(r"(?<![\w.<$}])/(?:" + "|".join(["root", "work", r"home/\w+", r"Users/\w+", "tmp"]) + r")/\w")
    found = []
    for path in text_files():
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            if homes.search(line):
                found.append(f"{name_of(path)}:{number}: {line.strip()[:100]}")
    assert not found, "\n".join(found)


def test_silenced_checks_and_skips_give_a_reason() -> None:
    """``# noqa: X`` and ``# type: ignore[x]`` are followed by a reason; a skip has its reason as an argument."""
    bare = []
    silencer = re.compile(r"#\s*(noqa|type:\s*ignore)(:\s*[A-Z0-9, ]+|\[[\w, -]+\])?(?P<reason>.*)")
    for path in text_files(".py"):
        if path == Path(__file__).resolve():
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            match = silencer.search(line)
            if match and len(match["reason"].strip(" -:#")) < 8:
                bare.append(f"{name_of(path)}:{number}")
        for node in ast.walk(tree(path)):
            name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if name in ("pytest.mark.skip", "pytest.mark.xfail") and not any(k.arg == "reason" for k in node.keywords):
                bare.append(f"{name_of(path)}:{node.lineno}")
            if name == "pytest.mark.skipif" and not any(k.arg == "reason" for k in node.keywords):
                bare.append(f"{name_of(path)}:{node.lineno}")
    assert not bare, "without a reason: " + ", ".join(bare)


def test_commands_in_the_documents_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    subcommands = {path.stem for path in (PACKAGE / "cli").glob("*.py")} - {"__init__"}
    for name in ("README.md", "CONTRIBUTING.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        code = "\n".join(_code(text))
        used = set(re.findall(r"(?:^|\s)make ([a-z-]+)", code))
        assert used <= targets, f"{name}: make {', '.join(used - targets)}"
        called = set(re.findall(r"(?:gan-fast|python -m gan_fast) ([a-z]+)", code))
        assert called <= subcommands, f"{name}: gan-fast {', '.join(called - subcommands)}"


def test_command_lines_in_the_documents_are_understood() -> None:
    """Every `gan-fast ...` line of a code block passes the real parser: no option there that does not exist."""
    from gan_fast.cli import _parser

    lines = []
    for name in ("README.md", "CONTRIBUTING.md"):
        blocks = re.findall(r"```sh\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), re.DOTALL)
        lines += [line.split("#")[0] for block in blocks for line in block.splitlines() if line.startswith("gan-fast ")]
    assert len(lines) >= 3
    for line in lines:
        arguments = shlex.split(line)[1:]
        assert _parser().parse_args(arguments).run is not None, line


def _code(markdown: str) -> list[str]:
    """Fenced blocks and inline code of a Markdown text."""
    return [block or inline for block, inline in re.findall(r"```[a-z]*\n(.*?)```|`([^`\n]+)`", markdown, re.DOTALL)]


def test_files_named_in_the_documents_exist() -> None:
    """Relative links and paths in README and CONTRIBUTING lead somewhere."""
    for name in ("README.md", "CONTRIBUTING.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
            assert (ROOT / link).exists(), f"{name} links to {link}"
        for path in re.findall(r"`((?:gan_fast|tests|benchmarks|csrc|tools|docs)/[\w./-]+)`", text):
            assert "my_op" in path or (ROOT / path).exists(), f"{name} names {path}"


def test_every_dependency_has_a_tested_version() -> None:
    pins = {line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    groups = re.findall(r"^(dependencies|data|plots|dev) = \[(.*?)\]$", project, re.MULTILINE)
    assert {group for group, _ in groups} == {"dependencies", "data", "plots", "dev"}
    for group, names in groups:
        for wanted in re.findall(r'"([\w-]+)', names):
            assert wanted.lower() in pins, f"{wanted} ({group} in pyproject.toml) has no version in constraints.txt"
    torch = re.search(r"^torch==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert torch and torch.group(1) == "2.13.0"
