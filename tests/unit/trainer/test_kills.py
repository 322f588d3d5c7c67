"""A run that is killed twenty times gives the file of one that was not (R30)."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from qpack.tokens import sha256_file

from .runs import changed, run

PROGRAM = """
import json, sys
from pathlib import Path
from qpack.trainer.config import TrainConfig
from qpack.trainer.loop import train
from qpack.trainer.resume import saved_step
folder = Path(sys.argv[2])
config = TrainConfig.from_mapping(json.loads(Path(sys.argv[1]).read_text()))
resume = saved_step(folder) is not None
train(config, folder, resume=resume, force=not resume)
"""
KILLS = 20


@pytest.mark.slow
def test_killed_again_and_again(config: dict[str, Any], tmp_path: Path) -> None:
    config = changed(
        config,
        loop={"max_steps": 400, "checkpoint_every": 1, "log_every": 7},
        average={"ema_decay": 0.9, "ship": "ema"},
        qat={"start_progress": 0.5},
        pack={"budget": 60_000, "recipe": "record"},
    )
    whole = run(config, tmp_path / "whole" / "run")
    path, folder = tmp_path / "config.json", tmp_path / "parts" / "run"
    path.write_text(json.dumps(config, default=str))
    command = [sys.executable, "-c", PROGRAM, str(path), str(folder)]
    rng, kills = random.Random(0), 0
    log = tmp_path / "log.txt"
    while not (folder / "model.safetensors").exists():
        state = folder / "checkpoint" / "state.json"
        before = state.read_bytes() if state.exists() else b""
        with log.open("wb") as file, subprocess.Popen(command, stderr=file) as process:
            while kills < KILLS and process.poll() is None:
                if state.exists() and state.read_bytes() != before:  # it has made a step at least
                    time.sleep(rng.uniform(0.0, 0.1))
                    process.send_signal(signal.SIGKILL)
                    kills += 1
                    break
                time.sleep(0.01)
            code = process.wait()
        assert code in (0, -signal.SIGKILL), log.read_text()
    assert kills == KILLS
    assert sha256_file(folder / "model.safetensors") == sha256_file(whole.checkpoint)
