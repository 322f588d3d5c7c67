"""R17: reading executes nothing, imports nothing by name, opens nothing but what it is given."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.samples import artifact, varied

CHILD = """
import sys
import numpy, brotli, zstandard, lzma
from qpack.artifact.inspect import inspect, verify
from qpack.artifact.reader import read
from qpack.artifact.unpack import unpack

path, out = sys.argv[1:3]
verify(path)  # whatever is imported lazily is imported here
seen = []
FORBIDDEN = ("exec", "compile", "import", "marshal.", "pickle.", "subprocess.", "os.system",
             "os.exec", "os.spawn", "os.posix_spawn", "socket.", "ctypes.", "os.remove", "shutil.")

def hook(event, arguments):
    if event.startswith(FORBIDDEN):
        seen.append((event, str(arguments)[:200]))
    if event == "open" and isinstance(arguments[0], str) and arguments[2] & 3:
        if not arguments[0].startswith(out):
            seen.append((event, str(arguments)))

sys.addaudithook(hook)
inspect(path), verify(path), read(path), unpack(path, out + "/weights", files_dir=out + "/files")
if len(sys.argv) > 3:
    compile("1", "x", "eval")
allowed = [e for e in seen if not (e[0] == "os.remove" and out in e[1])]
print(*allowed, sep="\\n", end="")
"""


def events(tmp_path: Path, form: str, *extra: str) -> str:
    path, out = tmp_path / f"model.{form}", tmp_path / "out"
    path.write_bytes(artifact(varied(), form=form))
    out.mkdir()
    command = [sys.executable, "-c", CHILD, str(path), str(out), *extra]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("form", ["qpk", "pyz"])
def test_nothing_is_executed(tmp_path: Path, form: str) -> None:
    assert events(tmp_path, form) == ""


def test_the_hook_sees(tmp_path: Path) -> None:
    assert "compile" in events(tmp_path, "qpk", "on purpose")
