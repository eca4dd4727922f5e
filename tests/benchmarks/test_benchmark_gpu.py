"""Runs the GPU measurements on a CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import REPOSITORY


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_all_parts_of_the_gpu_script_run_and_are_not_repeated(real_data: Path, tmp_path: Path) -> None:
    few = tmp_path / "cifar10"
    few.mkdir()
    for name, count in (("train-00000-of-00005", 640), ("test-00000-of-00001", 200)):
        pq.write_table(pq.read_table(real_data / "cifar10" / f"{name}.parquet").slice(0, count), few / f"{name[:5]}.parquet")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"DRY": "1", "MINUTES": "40", "CIFAR10": str(few), "PATH": path, "OMP_NUM_THREADS": "1"}
    command = ["bash", "benchmarks/gpu.sh", str(tmp_path / "out")]
    first, again = (subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True) for _ in range(2))
    assert first.returncode == 0, first.stdout
    names = ["correctness", "step-eager", "cifar10", "profile"]
    assert [line for line in again.stdout.splitlines() if line.startswith("== ")] == [f"== {name}: done before" for name in names]
    assert "fine-tuned, %" in (tmp_path / "out" / "cifar10" / "result.md").read_text()
