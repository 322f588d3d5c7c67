from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from qpack.checkpoint import fingerprint, read_checkpoint
from qpack.errors import CheckpointError, ConfigError
from qpack.importing import import_file
from qpack.options import PackOptions
from qpack.progress import SILENT
from qpack.runs.document import read_document
from qpack.runs.run import run
from qpack.tokenizer import Tokenizer
from qpack.trainer.stages import script as stage
from qpack.training import TrainRequest, load_trainer

SCRIPT = '''
"""A training script of the challenge's lineage, as small as one can be: it knows nothing of runs.

It takes its settings from the environment and leaves its weights where it was started.
"""
import os, sys
import numpy as np
import torch
from qpack.plugins import ARCHITECTURES, load_plugin

steps, data = int(os.environ["ITERATIONS"]), os.environ["DATA_PATH"]
tokens = np.fromfile(data, dtype="<u2")[512:].astype(np.int64)
torch.manual_seed(1337)
model = load_plugin(ARCHITECTURES, "gpt")(
    {"vocab_size": int(sys.argv[1]), "num_layers": 2, "model_dim": 32, "num_heads": 2,
     "num_kv_heads": 1, "mlp_mult": 2.0}
)
for parameter in model.parameters():
    if parameter.ndim == 2:
        torch.nn.init.normal_(parameter, std=0.05)
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
for step in range(steps):
    start = step * 64 % (len(tokens) - 65)
    x = torch.from_numpy(tokens[start : start + 65])[None]
    loss = torch.nn.functional.cross_entropy(model(x[:, :-1])[0], x[0, 1:])
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    print(f"step:{step}/{steps} train_loss:{loss.item():.4f}", flush=True)
torch.save({"model": model.state_dict(), "step": steps}, "final_model.pt")
'''


@pytest.fixture(autouse=True)
def cwd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in which qpack runs."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    return tmp_path / "cwd"


def table(given: PackOptions, **changes: Any) -> dict[str, Any]:
    """`[script]` with the data of `given`; a change of None takes a key out."""
    values = {
        "output": "final_model.pt",
        "tokenizer": str(given.tokenizer),
        "calibration": str(given.calib),
        **changes,
    }
    return {"script": {key: value for key, value in values.items() if value is not None}}


def python(text: str) -> list[str]:
    """A command that runs `text`."""
    return [sys.executable, "-c", text]


def request(given: PackOptions, folder: Path, **changes: Any) -> TrainRequest:
    return TrainRequest(config=table(given, **changes), folder=folder)


@pytest.fixture
def weights(given: PackOptions, tmp_path: Path) -> Path:
    """The weights of `given` as a PyTorch file that scripts can copy: they start without torch."""
    path = tmp_path / "ready.pt"
    torch.save(read_checkpoint(given.checkpoint).tensors, path)
    return path


def copying(source: Path, *names: str) -> list[str]:
    return python(f"import shutil\nfor n in {names}: shutil.copyfile({str(source)!r}, n)")


def test_it_is_the_installed_plugin() -> None:
    assert load_trainer("script") is stage


def test_a_training_script_from_its_file_to_the_report(
    given: PackOptions, tmp_path: Path, cwd: Path
) -> None:
    (tmp_path / "train.py").write_text(SCRIPT)
    vocab_size = Tokenizer.load(given.tokenizer).vocab_size
    config = tmp_path / "conf.toml"
    config.write_text(f"""
trainer = "script"
[script]
path = "train.py"
args = ["{vocab_size}"]
output = "final_*.pt"
tokenizer = "{given.tokenizer}"
calibration = "{given.calib}"
set = {{ rope_base = 5000.0 }}
[script.env]
ITERATIONS = "12"
DATA_PATH = "{given.calib}"
[pack]
budget = 30_000
calib_tokens = 512
val_tokens = 256
window = 64
device = "cpu"
""")
    folder = tmp_path / "run"
    outcome = run(read_document(config), folder)
    made = import_file(cwd / "final_model.pt")
    kept = read_checkpoint(folder / "model.safetensors")
    assert fingerprint(kept.tensors) == fingerprint(made.tensors)
    assert kept.config["rope_base"] == 5000.0
    log = (folder / "script.log").read_text()
    assert log.startswith("step:0/12 train_loss:") and log.count("\n") == 12
    losses = [float(line.rpartition(":")[2]) for line in log.splitlines()]
    assert losses[-1] < losses[0]
    assert outcome.report is not None
    assert outcome.report["training"]["details"]["weights"] == "final_model.pt"
    assert (folder / "model.pyz").stat().st_size <= 30_000

    (tmp_path / "train.py").write_text(SCRIPT + "# changed\n")
    with pytest.raises(ConfigError) as caught:
        run(read_document(config, overrides=['script.env.ITERATIONS="13"']), folder, resume=True)
    changed = [item.partition(":")[0] for item in caught.value.items]
    assert changed == ["script.env.ITERATIONS", "script.path (train.py)"]


def test_the_last_of_several_outputs(given: PackOptions, tmp_path: Path, weights: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (work / "z_old.pt").write_bytes(b"there before")
    command = copying(weights, "b.pt", "a.pt")
    command[-1] += "\nimport os; os.utime('b.pt', ns=(5, 5))"
    asked = request(given, tmp_path, command=command, cwd=str(work), output="*.pt")
    trained = stage.train(asked, progress=SILENT)
    assert trained.details["weights"] == "a.pt"


def test_failures_show_the_last_lines(given: PackOptions, tmp_path: Path) -> None:
    text = "import sys\nfor i in range(50): print('line', i)\nsys.exit('no GPU')"
    with pytest.raises(ConfigError, match="failed with exit code 1") as caught:
        stage.train(request(given, tmp_path, command=python(text)), progress=SILENT)
    assert len(caught.value.items) == 20 and caught.value.items[-1] == "no GPU"
    assert str(tmp_path / "script.log") in str(caught.value)
    assert (tmp_path / "script.log").read_text().startswith("line 0\n")
    assert not (tmp_path / "model.safetensors").exists()


def test_no_output(given: PackOptions, tmp_path: Path) -> None:
    asked = request(given, tmp_path, command=python("print('done')"), output="*.pt")
    with pytest.raises(ConfigError, match=r"wrote no '\*.pt'") as caught:
        stage.train(asked, progress=SILENT)
    assert caught.value.items == ("done",)


def test_an_output_of_an_earlier_run_does_not_count(
    given: PackOptions, tmp_path: Path, weights: Path
) -> None:
    asked = request(given, tmp_path, command=copying(weights, "final_model.pt"))
    stage.train(asked, progress=SILENT)
    with pytest.raises(ConfigError, match="wrote no") as caught:
        stage.train(request(given, tmp_path, command=python("pass")), progress=SILENT)
    assert "there before, and not written again" in caught.value.items[0]


class Attack:
    """A pickle that calls a function when opened."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


def test_weights_that_would_run_code_are_refused(given: PackOptions, tmp_path: Path) -> None:
    torch.save(Attack(tmp_path / "hit"), tmp_path / "attack.pt")
    asked = request(given, tmp_path, command=copying(tmp_path / "attack.pt", "final_model.pt"))
    with pytest.raises(CheckpointError, match="restricted reader"):
        stage.train(asked, progress=SILENT)
    assert not (tmp_path / "hit").exists()


def test_a_timeout(given: PackOptions, tmp_path: Path) -> None:
    text = "import time; time.sleep(60)"
    asked = request(given, tmp_path, command=python(text), timeout_seconds=0.3)
    with pytest.raises(ConfigError, match=r"longer than 0\.3 s"):
        stage.train(asked, progress=SILENT)


def test_all_that_is_missing_at_once(given: PackOptions, tmp_path: Path) -> None:
    gone = {"path": "t.py", "cwd": "nowhere", "tokenizer": "t.model", "validation": "v.bin"}
    with pytest.raises(ConfigError, match="no such file") as caught:
        stage.check(request(given, tmp_path, **gone))
    assert caught.value.items == (
        "script.path: t.py",
        "script.tokenizer: t.model",
        "script.validation: v.bin",
        "script.cwd: nowhere: no such folder",
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "script: give one of command and path"),
        ({"command": ["x"], "path": "y"}, "script: give one of command and path"),
        ({"command": []}, "script.command"),
        ({"command": ["x"], "args": ["y"]}, "args go with path"),
        ({"command": ["x"], "output": "/abs/model.pt"}, "output must be relative to cwd"),
        ({"command": ["x"], "output": ""}, "output must be relative to cwd"),
        (
            {"command": ["x"], "timeout": 3},
            'script.timeout: unknown (did you mean "timeout_seconds"',
        ),
        ({"command": ["x"], "env": {"A": 3}}, "script.env.A = 3"),
    ],
)
def test_contradictions(given: PackOptions, tmp_path: Path, changes: Any, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        stage.check(request(given, tmp_path, **changes))
    assert words in str(caught.value)


def test_what_decides_the_result(given: PackOptions, tmp_path: Path) -> None:
    (tmp_path / "t.py").write_text("pass")
    asked = request(given, tmp_path, command=["python", "t.py", "x"], cwd=str(tmp_path))
    checked = stage.check(asked)
    assert checked.settings["script"]["command"] == ["python", "t.py", "x"]
    assert checked.files["script.command.1"] == tmp_path / "t.py"
    assert not {"timeout_seconds", "cwd", "path"} & set(checked.settings["script"])
