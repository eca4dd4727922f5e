"""The start of a training refuses or corrects each mistake in the use of a launcher."""

from __future__ import annotations

import pytest
import torch

from mmm.train.config import TrainConfig
from mmm.train.distributed.processes import check_processes, check_strategy
from mmm.train.distributed.setup import choose_precision, choose_threads, usable_cores
from mmm.train.trackers import check_tracker

CPU = torch.device("cpu")
LAUNCHED = {"ACCELERATE_MIXED_PRECISION": "no"}


@pytest.mark.parametrize(
    ("asked", "configured", "chosen"),
    [
        ("auto", None, "native"),
        ("auto", "no", "native"),  # the launcher always sets it
        ("auto", "bf16", "bf16"),
        ("fp32", "bf16", "fp32"),
        ("bf16", "no", "bf16"),
    ],
)
@pytest.mark.parametrize("native", ["bf16", "fp32"])
def test_precision(monkeypatch, asked, configured, chosen, native):
    units = {"amx_bf16": native == "bf16"}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units)
    environment = {} if configured is None else {"ACCELERATE_MIXED_PRECISION": configured}
    assert choose_precision(asked, environment, CPU)[0] == (native if chosen == "native" else chosen)


@pytest.mark.parametrize("native", [True, False])
def test_precision_of_a_gpu(monkeypatch, native):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native or including_emulation)
    assert choose_precision("auto", LAUNCHED, torch.device("cuda"))[0] == ("bf16" if native else "fp32")


def test_precision_that_is_not_computed_is_refused():
    with pytest.raises(ValueError, match=r"train\.precision fp16.*bf16 or fp32"):
        choose_precision("fp16", {}, CPU)
    with pytest.raises(ValueError, match="fp8"):
        choose_precision("auto", {"ACCELERATE_MIXED_PRECISION": "fp8"}, CPU)


@pytest.mark.parametrize(
    ("asked", "environment", "threads"),
    [
        (None, {}, 8),
        (None, {"OMP_NUM_THREADS": "1"}, None),  # set by the user
        (None, LAUNCHED | {"OMP_NUM_THREADS": "1"}, 8),  # set by the launcher
        (None, LAUNCHED | {"OMP_NUM_THREADS": "3"}, None),
        (None, {"TORCHELASTIC_RUN_ID": "none", "OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": "2"}, 4),
        (None, {"LOCAL_WORLD_SIZE": "16"}, 1),
        (2, LAUNCHED | {"OMP_NUM_THREADS": "1"}, 2),
    ],
)
def test_threads(asked, environment, threads):
    assert choose_threads(asked, environment, 8) == threads


def test_cores_of_a_container(tmp_path):
    (tmp_path / "cpu.max").write_text("100000 100000\n")
    assert usable_cores(tmp_path / "cpu.max") == 1
    assert usable_cores(tmp_path / "absent") >= 1


@pytest.mark.parametrize(
    "environment",
    [
        {"WORLD_SIZE": "2", "LOCAL_RANK": "0"},  # torchrun, while Accelerate's settings do not say that there is only a CPU
        LAUNCHED | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"},  # accelerate launch --cpu --num_processes 2
    ],
)
def test_fewer_processes_than_asked_for_are_refused(environment):
    with pytest.raises(ValueError, match="torchrun --nproc_per_node 2"):
        check_processes(environment, 1)


@pytest.mark.parametrize(
    ("environment", "running"), [({}, 1), (LAUNCHED, 1), (LAUNCHED | {"WORLD_SIZE": "2", "MASTER_ADDR": "x"}, 2)]
)
def test_as_many_processes_as_asked_for(environment, running):
    check_processes(environment, running)


@pytest.mark.parametrize("name", ["DEEPSPEED", "MEGATRON_LM"])
def test_strategies_that_checkpoints_cannot_hold_are_refused(name):
    with pytest.raises(ValueError, match=f"asks for {name}"):
        check_strategy({f"ACCELERATE_USE_{name}": "True"})
    check_strategy({f"ACCELERATE_USE_{name}": "false"})


def test_trackers(monkeypatch):
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", lambda: ["tensorboard"])
    check_tracker(None)
    check_tracker("tensorboard")
    with pytest.raises(ValueError, match=r"train\.tracker comet_ml is not installed; pip install comet-ml"):
        check_tracker("comet_ml")
    with pytest.raises(ValueError, match=r"train\.tracker wandbb is unknown; choose from .*wandb"):
        check_tracker("wandbb")


def test_the_traps_are_still_there():
    """If one of these assertions fails with a new Accelerate, a workaround in setup.py or processes.py can be removed."""
    from accelerate import PartialState
    from accelerate.commands.launch import launch_command_parser
    from accelerate.tracking import filter_trackers, get_available_trackers
    from accelerate.utils.launch import prepare_simple_launcher_cmd_env

    PartialState(cpu=True)  # Accelerate's logger requires it
    absent = [name for name in ("comet_ml", "aim", "clearml", "swanlab") if name not in map(str, get_available_trackers())]
    assert filter_trackers(absent[:1], None) == []  # removed without a message

    arguments = launch_command_parser().parse_args(["--cpu", "--num_processes", "2", "--num_machines", "1", "train.py"])
    arguments.use_cpu, arguments.mixed_precision, arguments.dynamo_backend, arguments.num_cpu_threads_per_process = (
        True,
        "no",
        "no",
        1,
    )
    _, environment = prepare_simple_launcher_cmd_env(arguments)
    with pytest.raises(ValueError, match="asked for several processes and started one"):
        check_processes({name: value for name, value in environment.items() if name != "WORLD_SIZE"}, 1)


def test_start_refuses_before_anything_is_built(monkeypatch):
    from mmm.train.distributed.setup import start

    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="FSDP"):
        start(TrainConfig(batch_size=1, learning_rate=1.0))
