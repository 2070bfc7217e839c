"""The processor's name: what tuned tables and result files are told apart by."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from gan_fast import machine

CPUINFO = """processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 25
model\t\t: 17
model name\t: {name}
stepping\t: 1

processor\t: 1
cpu family\t: 99
model\t\t: 99
model name\t: another
"""


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("AMD EPYC", "AMD EPYC (family 25, model 17)"),
        ("AMD EPYC 9654 96-Core Processor", "AMD EPYC 9654 96-Core Processor"),
        ("Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz", "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz"),
        ("Intel(R) Xeon(R) CPU @ 2.20GHz", "Intel(R) Xeon(R) CPU @ 2.20GHz (family 25, model 17)"),
        ("QEMU Virtual CPU version 2.5+", "QEMU Virtual CPU version 2.5+ (family 25, model 17)"),
    ],
)
def test_a_name_without_a_number_gets_family_and_model(name: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(CPUINFO.format(name=name), encoding="utf-8")
    assert machine.cpu_model(tmp_path / "cpuinfo") == expected


def test_without_cpuinfo(tmp_path: Path) -> None:
    assert machine.cpu_model(tmp_path / "none") == (platform.processor() or platform.machine())


def test_without_family(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("model name\t: virtual\n", encoding="utf-8")
    assert machine.cpu_model(tmp_path / "cpuinfo") == "virtual"
