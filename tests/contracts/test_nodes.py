"""Several machines: two that are this one, each with one process, under torchrun; and what SLURM says to Lightning."""

import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.utilities import rank_zero_only
from torch.distributed.run import get_args_parser

from lightgpt2.cli.checking import check
from lightgpt2.models.loading import load_model
from lightgpt2.runs import fits
from tests.support.cli import ENVIRONMENT, ROOT, logged, refused, run_cli, succeed, write_config
from tests.support.models import WHOLE_BLOCKS, write_corpus, write_model
from tests.test_docs import blocks

FSDP2 = {
    "class_path": "lightning.pytorch.strategies.ModelParallelStrategy",
    "init_args": {"data_parallel_size": 2, "tensor_parallel_size": 1, "save_distributed_checkpoint": False},
}
STRATEGIES: dict[str, Any] = {"ddp": "ddp", "fsdp2": FSDP2}
LAUNCH, SCRIPT = blocks(ROOT / "docs/scale.md", "bash")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text, a model, and configurations for one process and for two machines."""
    folder = tmp_path_factory.mktemp("nodes")
    write_corpus(folder / "corpus", documents=24)
    write_model(folder / "start", "llama", num_hidden_layers=2, **WHOLE_BLOCKS["llama"])
    for name, strategy in {"one": "auto", **STRATEGIES}.items():
        data = {"source": "./corpus", "sequence_length": 32, "batch_size": 4 if name == "one" else 2}
        several = {} if name == "one" else {"num_nodes": 2, "devices": 1, "strategy": strategy}
        trainer = {
            "accelerator": "cpu",
            "max_steps": 4,
            "enable_progress_bar": False,
            **several,
        }
        model: dict[str, Any] = {"model": "./start", "optimizer": {"lr": 3e-4, "decay": "constant"}}
        settings = {
            "model": {"class_path": "lightgpt2.methods.FineTune", "init_args": model},
            "data": {"class_path": "lightgpt2.data.LanguageModelingData", "init_args": data},
            "trainer": trainer,
        }
        write_config(folder / f"{name}.yaml", settings)
    return folder


@pytest.fixture(scope="module")
def folder(prepared: Path) -> Path:
    """The same, with the run of one process."""
    succeed(prepared, "fit", "--config", "one.yaml")
    return prepared


def on_two(folder: Path, config: str, run: str, *options: str) -> None:
    """`lightgpt2 fit` as two machines run it."""
    done = run_cli(folder, "fit", "--config", f"{config}.yaml", "--run", run, *options, processes=2, nodes=True)
    assert done.returncode == 0, done.stdout + done.stderr


def losses(folder: Path, run: str) -> dict[int, float]:
    return logged(folder, run)["train/loss"]


def weights(folder: Path, run: str) -> dict[str, torch.Tensor]:
    return load_model(str(folder / "checkpoints" / run / "model"), "model").state_dict()


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_machines_are_one_process_and_resume_exactly(folder: Path, strategy: str) -> None:
    on_two(folder, strategy, strategy)
    assert losses(folder, strategy) == pytest.approx(losses(folder, "one"), rel=1e-5)
    assert len(losses(folder, strategy)) == 4
    torch.testing.assert_close(weights(folder, strategy), weights(folder, "one"), rtol=0, atol=1e-5)
    again = f"{strategy}-resumed"
    on_two(folder, strategy, again, "--trainer.max_steps", "2")
    on_two(folder, strategy, again, "--ckpt_path", "last")
    assert losses(folder, again) == losses(folder, strategy)
    torch.testing.assert_close(weights(folder, again), weights(folder, strategy), rtol=0, atol=0)


def torchrun(folder: Path, *options: str) -> None:
    """The command of the page, on both machines."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    nodes = []
    for rank in (0, 1):
        command = LAUNCH.replace("$RANK", str(rank)).replace("$FIRST", "127.0.0.1").replace("29500", str(port))
        command = command.replace("--nproc-per-node 8", "--nproc-per-node 1")
        words = shlex.split(command.replace("\\\n", " "))[1 : -len(TRAINED)]
        launcher = [sys.executable, "-m", "torch.distributed.run", *words, "fit", *options]
        pipe: Any = subprocess.PIPE
        nodes.append(subprocess.Popen(launcher, cwd=folder, env=ENVIRONMENT, stdout=pipe, stderr=pipe, text=True))
    for node in nodes:
        printed = node.communicate(timeout=240)
        assert node.returncode == 0, printed


TRAINED = shlex.split(LAUNCH.replace("\\\n", " ").partition(" lightgpt2 ")[2])


@pytest.mark.long
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_torchrun_itself_launches_and_resumes(folder: Path, strategy: str) -> None:
    options = ["--config", f"{strategy}.yaml", "--run", f"{strategy}-torchrun"]
    torchrun(folder, *options, "--trainer.max_steps", "2")
    torchrun(folder, *options, "--ckpt_path", "last")
    assert losses(folder, f"{strategy}-torchrun") == pytest.approx(losses(folder, "one"), rel=1e-5)


def test_torchrun_leaves_our_options_alone(capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(LAUNCH.replace("\\\n", " ").replace("$RANK", "1"))
    assert words[0] == "torchrun"
    parsed = get_args_parser().parse_args(words[1:])
    assert (parsed.training_script, parsed.module, parsed.run_path) == ("lightgpt2", True, False)
    assert parsed.training_script_args == TRAINED
    assert {"--run", "--config", "--ckpt_path"} <= {*TRAINED}
    check(TRAINED)
    bare = [word for word in words[1:] if word != "--"]
    with pytest.raises(SystemExit):
        get_args_parser().parse_args(bare)
    assert "ambiguous option: --run could match" in capsys.readouterr().err


def slurm(monkeypatch: pytest.MonkeyPatch, **changes: str) -> list[str]:
    """The variables that srun gives the second process on the second machine of the page's script; the script's command."""
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)", SCRIPT, flags=re.MULTILINE)) | changes
    tasks, nodes = int(asked["ntasks-per-node"]), int(asked["nodes"])
    said = {
        "NTASKS": tasks * nodes, "NTASKS_PER_NODE": tasks, "NNODES": nodes, "PROCID": tasks + 1, "LOCALID": 1, "NODEID": 1,
        "JOB_ID": 123456, "JOB_NAME": asked["job-name"], "NODELIST": "gpu[03-04]",
    }  # fmt: skip
    for name, value in said.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(rank_zero_only, "rank", 0)  # Lightning sets it for the process, which has more tests to run
    (command,) = re.findall(r"^srun (.*)$", SCRIPT.replace("\\\n", " "), flags=re.MULTILINE)
    return shlex.split(command)


def test_lightning_reads_what_the_slurm_script_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    program, *args = slurm(monkeypatch)
    assert program == "lightgpt2"
    check(args)
    options = dict(zip(args[1::2], args[2::2], strict=True))
    assert options["--ckpt_path"] == "last"
    assert SLURMEnvironment.detect()
    found = SLURMEnvironment(auto_requeue=False)
    found.validate_settings(int(options["--trainer.devices"]), int(options["--trainer.num_nodes"]))
    devices, nodes = int(options["--trainer.devices"]), int(options["--trainer.num_nodes"])
    assert (found.world_size(), found.global_rank(), found.local_rank(), found.node_rank()) == (
        devices * nodes, devices + 1, 1, 1,
    )  # fmt: skip
    assert found.main_address == "gpu03"
    assert found.main_port == 18456


def test_another_number_of_machines_than_slurm_s_is_one_message(
    prepared: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(prepared)
    slurm(monkeypatch)
    monkeypatch.setenv("SLURM_LOCALID", "0")
    (line,) = refused(["fit", "--config", "ddp.yaml", "--run", "slurm"], capsys)
    assert line.startswith(
        "trainer: You set `devices=1` in Lightning, but the number of tasks per node configured in SLURM"
    )


def test_what_is_needed_is_not_made_by_several_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fits, "fit", lambda *_: pytest.fail("made it"))
    absent = {str(tmp_path / "teacher"): "teacher.yaml"}
    for name, value in (("LOCAL_RANK", "0"), ("SLURM_NTASKS", "8")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            with pytest.raises(fits.UserError, match=r"first, in one process"):
                fits.make_missing(absent)
