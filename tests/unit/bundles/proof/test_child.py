"""Programs run in a process of their own; whatever it comes to, the caller gets a report."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from cutset.bundles.allowance import Allowance, allowance_of
from cutset.bundles.open import read_manifest
from cutset.bundles.proof.child import check_in_child
from cutset.bundles.proof.results import CHECKS, VerificationReport, raise_if_failed
from cutset.bundles.proof.verify import verify_bundle
from cutset.errors import BundleError, ChecksumMismatch, VerificationError
from cutset.host import memory_bytes
from hostile import edit_model_json, nodes_of

PLENTY = Allowance(memory_bytes=8 << 30, time_s=300.0)

# The beginning of a false checking process: it speaks the protocol, then does something else.
PREAMBLE = """
import os, signal, sys, time
import msgspec
def tell(document):
    data = msgspec.msgpack.encode(document)
    sys.stdout.buffer.write(len(data).to_bytes(4, "little") + data)
    sys.stdout.flush()
def step(check):
    tell({"type": "Step", "check": check, "words": "at it"})
"""


def reported(
    tmp_path: Path, program: str, allowance: Allowance = PLENTY
) -> tuple[VerificationReport, list[str]]:
    told: list[str] = []
    report = check_in_child(
        tmp_path,
        stages=None,
        backends=(),
        allowance=allowance,
        num_threads=1,
        progress=told.append,
        command=(sys.executable, "-c", PREAMBLE + program),
    )
    return report, told


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("step('numerics'); os.kill(os.getpid(), signal.SIGSEGV)", "was ended by SIGSEGV"),
        ("step('numerics'); os.kill(os.getpid(), 40)", "was ended by"),
        (
            "step('numerics'); sys.stderr.write('x' * 300_000 + '\\nno room\\n'); sys.exit(3)",
            "left with exit status 3; its last words: no room",
        ),
        ("step('numerics'); tell({'type': 'Other'})", "said what no checking process says"),
        ("step('numerics'); tell([1, 2])", "said what no checking process says"),
        (
            "step('numerics'); sys.stdout.buffer.write(b'\\xff' * 4); sys.stdout.flush()",
            "a message of 4294967295 bytes",
        ),
    ],
)
def test_a_process_that_ends_early(tmp_path: Path, program: str, words: str) -> None:
    report, told = reported(tmp_path, program)
    assert told == ["at it"]
    assert not report.ok
    assert tuple(check.name for check in report.checks) == CHECKS
    assert words in report.check("numerics").detail
    assert report.check("contracts").detail == "not checked: see numerics"
    with pytest.raises(VerificationError) as caught:
        raise_if_failed(report)
    assert caught.value.exit_code == 5


def test_checks_that_ended_keep_their_result(tmp_path: Path) -> None:
    report, _ = reported(
        tmp_path,
        "step('integrity')\n"
        "tell({'type': 'Checked', 'result': {'name': 'integrity', 'ok': True, 'detail': 'fine'}})\n"
        "step('contracts'); os.abort()",
    )
    assert report.check("integrity").ok
    assert "SIGABRT" in report.check("contracts").detail
    assert report.check("numerics").detail == "not checked: see contracts"


def test_time_is_limited(tmp_path: Path) -> None:
    report, _ = reported(
        tmp_path, "step('contracts'); time.sleep(600)", Allowance(memory_bytes=1 << 30, time_s=2.0)
    )
    assert "was ended after 2 s" in report.check("contracts").detail


def test_memory_is_watched(tmp_path: Path) -> None:
    report, _ = reported(
        tmp_path,
        "step('integrity'); step('contracts'); time.sleep(0.5)\n"
        "taken = b'x' * (256 << 20); step('contracts'); time.sleep(600)",
        Allowance(memory_bytes=64 << 20, time_s=60.0),
    )
    assert "took more than the 67,108,864 bytes" in report.check("contracts").detail


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA is Linux's")
def test_libraries_are_imported_before_memory_is_limited(bundle: Path) -> None:
    """What torch maps for itself does not come out of what the bundle's programs may take."""
    program = (
        "import sys; from cutset.bundles.proof.checks import import_libraries;"
        "import_libraries(sys.argv[1]); print('torch' in sys.modules, 'onnxruntime' in sys.modules)"
    )
    for folder, words in ((bundle, "True True"), (bundle / "nowhere", "False False")):
        command = [sys.executable, "-c", program, str(folder)]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert printed.strip() == words


def test_memory_is_limited_from_within(bundle: Path) -> None:
    def change(document: dict[str, object]) -> None:
        # 16 TB of zeros, whose sum is added to nothing.
        nodes_of(document).append(
            {
                "target": "torch.ops.aten.zeros.default",
                "inputs": [{"name": "size", "arg": {"as_ints": [1 << 21, 1 << 21]}, "kind": 1}],
                "outputs": [{"as_tensor": {"name": "much"}}],
                "metadata": {},
            }
        )

    edit_model_json(bundle, change)
    report = verify_bundle(bundle, backends=())
    assert not report.ok
    with pytest.raises((BundleError, VerificationError)):
        raise_if_failed(report)


def test_errors_of_the_process_are_those_of_the_caller(bundle: Path) -> None:
    with (bundle / "stage-1/program.pt2").open("ab") as file:
        file.write(b"more")
    error = verify_bundle(bundle).error
    assert isinstance(error, ChecksumMismatch)
    assert error.path == "stage-1/program.pt2"
    assert error.actual.endswith("bytes")


def test_no_process_is_left(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    with pytest.raises(KeyboardInterrupt):
        check_in_child(
            tmp_path,
            stages=None,
            backends=(),
            allowance=PLENTY,
            num_threads=1,
            progress=_interrupt,
            command=(
                *(sys.executable, "-c"),
                PREAMBLE + f"open({str(pid_file)!r}, 'w').write(str(os.getpid()))\n"
                "step('contracts'); time.sleep(600)",
            ),
        )
    assert not psutil.pid_exists(int(pid_file.read_text()))


def _interrupt(_words: str) -> None:
    raise KeyboardInterrupt


CALLER = """
import os, subprocess, time
from cutset.processes import command_of
child = subprocess.Popen(
    command_of("verification", caller=os.getpid(), control=0),
    stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
)
print(child.pid, flush=True)
time.sleep(600)
"""


def test_ends_with_its_caller() -> None:
    """The process is asked nothing more, and nobody holds its input: it leaves."""
    caller = subprocess.Popen(
        [
            *(sys.executable, "-c"),
            CALLER,
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert caller.stdout is not None
    child = psutil.Process(int(caller.stdout.readline()))
    caller.kill()
    caller.communicate()
    with contextlib.suppress(psutil.NoSuchProcess):
        child.wait(30.0)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_allowance(good_bundle: Path) -> None:
    manifest = read_manifest(good_bundle)
    one = allowance_of(manifest, (1,), (0,))
    more = allowance_of(manifest, (1, 1000), (0, 1))
    assert one.memory_bytes > 2 << 30
    assert more.memory_bytes > one.memory_bytes
    assert more.memory_bytes <= memory_bytes()
    assert 300.0 < one.time_s < more.time_s
