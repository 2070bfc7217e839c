"""``import gan_fast`` is cheap and safe, and its names are what they say in every order of imports.

Each case runs in a fresh interpreter: what is imported by this process's other tests must not help or hinder.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

import pytest

PUBLIC_NAMES = (
    "Profile Trainer accelerate backends data empty_cache explain functional losses metrics models nn ops precision"
    " profiling restore training use_backend __version__"
).split()


def run_fresh(code: str, **environment: str) -> str:
    """Standard output of `code` in an interpreter of its own; its error output where it fails."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_alone_loads_nothing_heavy() -> None:
    loaded = json.loads(
        run_fresh(
            """
            import sys, json
            import gan_fast
            print(json.dumps(sorted(sys.modules)))
            """
        )
    )
    heavy = {"torch", "numpy", "sklearn", "matplotlib", "tqdm", "PIL", "triton", "gan_fast._C", "gan_fast._cuda"}
    assert not heavy & set(loaded)
    assert [name for name in loaded if name.startswith("gan_fast.")] == []


def test_the_command_lines_own_answers_load_nothing_heavy() -> None:
    """--version, --help and typing errors answer at once."""
    run_fresh(
        """
        import sys
        from gan_fast.cli import _parser
        _parser()
        assert not {"torch", "numpy", "gan_fast._C"} & set(sys.modules)
        """
    )


def test_no_name_loads_optional_packages_or_compiles() -> None:
    """Every public name can be had without scikit-learn, matplotlib, Triton, a compiler or a subprocess."""
    names = repr([name for name in PUBLIC_NAMES if name != "__version__"])
    run_fresh(
        f"""
        import builtins, subprocess, sys
        import torch  # may start what it likes; only ours is watched below
        for absent in ("sklearn", "matplotlib", "tensorflow", "tensorboard"):
            sys.modules[absent] = None  # importing it raises ImportError
        def forbidden(*args, **kwargs):
            raise AssertionError(f"import started a process: {{args}}")
        subprocess.Popen = forbidden
        import gan_fast
        for name in {names}:
            assert getattr(gan_fast, name) is not None, name
        assert "gan_fast._C" not in sys.modules, "loaded before an operator was used"
        """
    )


def test_all_and_dir_agree_with_what_is_there() -> None:
    import gan_fast

    assert sorted(gan_fast.__all__) == sorted(PUBLIC_NAMES)
    assert set(PUBLIC_NAMES) <= set(dir(gan_fast))
    for name in gan_fast.__all__:
        assert getattr(gan_fast, name) is not None


def test_unknown_attribute_is_named() -> None:
    import gan_fast

    with pytest.raises(AttributeError, match=r"module 'gan_fast' has no attribute 'acelerate'"):
        _ = gan_fast.acelerate


ORDERS_OF_IMPORT = (
    "import gan_fast",
    "import gan_fast; gan_fast.accelerate; import gan_fast.accelerate",
    "import gan_fast.accelerate",
    "import gan_fast.accelerate; from gan_fast import accelerate as found; assert found is gan_fast.accelerate",
    "from gan_fast.accelerate import restore; import gan_fast",
    "import gan_fast; gan_fast.restore",
    "import gan_fast; gan_fast.Trainer",
    "import gan_fast.explain",
    "from gan_fast.explain import Explanation; import gan_fast",
    "from gan_fast.precision import WORDS; import gan_fast",
    "import importlib; importlib.import_module('gan_fast.accelerate'); import gan_fast",
    "from gan_fast import *; import gan_fast; assert accelerate is gan_fast.accelerate",
)


def test_accelerate_explain_and_precision_are_functions_whatever_was_imported_before() -> None:
    """One interpreter loads torch and forks for each order of imports, as torch takes most of a fresh one's time."""
    after = """
import inspect, sys
assert inspect.isfunction(gan_fast.accelerate), gan_fast.accelerate
import gan_fast.accelerate, gan_fast.explain, gan_fast.precision
from gan_fast.accelerate import accelerate, restore
assert accelerate is gan_fast.accelerate and restore is gan_fast.restore
assert inspect.isfunction(gan_fast.explain), gan_fast.explain
assert inspect.isfunction(gan_fast.precision), gan_fast.precision
assert all(inspect.ismodule(sys.modules[name]) for name in ("gan_fast.accelerate", "gan_fast.precision"))
"""
    run_fresh(
        f"""
        import os, sys, torch, traceback, warnings
        warnings.simplefilter("error", ImportWarning)
        failed = []
        for order in {ORDERS_OF_IMPORT!r}:
            child = os.fork()
            if child == 0:
                try:
                    exec(order + {after!r}, {{"__name__": "__main__"}})
                except BaseException:
                    traceback.print_exc()
                    os._exit(1)
                os._exit(0)
            if os.waitpid(child, 0)[1] != 0:
                failed.append(order)
        assert "gan_fast" not in sys.modules, "the parent has to stay fresh"
        assert not failed, failed
        """
    )


def test_version_is_the_metadata_s() -> None:
    from importlib.metadata import version

    import gan_fast

    assert gan_fast.__version__ == version("gan-fast")
