"""Real processes: two ranks give one process's step; killed runs resume to the same weights; a dead rank ends all."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="training needs torch")
pytest.importorskip("transformers", reason="training needs transformers")
pytest.importorskip("tensorboard", reason="training writes TensorBoard scalars")

from safetensors.torch import load_file  # noqa: E402

from uniecs.errors import CheckpointError  # noqa: E402
from uniecs.trainer.checkpoint import checkpoint_folder, kept_checkpoints, load_checkpoint  # noqa: E402

HARNESS = Path(__file__).with_name("distributed_step.py")
Configure = Callable[[Path, str], Path]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "", "GLOO_SOCKET_IFNAME": "lo"}


OPTIMIZERS = {
    "plain": "",
    "gradient caching": "micro_products = 4",
    "magnitudes over the parameters": 'grad_at = "parameters"',
}


@pytest.fixture(scope="module")
def configuration(tiny_checkpoint: Path, draw_catalog: Callable[[Path], object]) -> Configure:
    """Writes a configuration file that trains `tiny` on the drawn catalogue, both into a folder."""

    def configure(folder: Path, optimizer: str) -> Path:
        draw_catalog(folder)
        path = folder / "train.toml"
        path.write_text(
            f'''
            model = "tiny"
            output = "run"
            [data]
            catalog = "products.jsonl"
            group_columns = ["colour", "kind"]
            [init]
            tokenizer = "{tiny_checkpoint}"
            [augment]
            token_dropout = 0.2
            patch_dropout = 0.25
            [optimizer]
            precision = "fp32"
            learning_rate = 1e-3
            warmup_steps = 2
            batch_pairs = 6
            {optimizer}
            '''
        )
        return path

    return configure


def harness(ranks: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the harness under torchrun, on loopback."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", str(HARNESS)]
    return subprocess.run(
        [*launch, *map(str, arguments)], env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory, configuration: Configure) -> dict[str, Path]:
    """One step of each of `OPTIMIZERS`, by one rank and by two: its file, but for the suffix .1 or .2."""
    paths = {
        name: configuration(tmp_path_factory.mktemp("step"), f"steps = 4\n{optimizer}")
        for name, optimizer in OPTIMIZERS.items()
    }
    for ranks in (1, 2):
        done = harness(ranks, "step", f".{ranks}", *paths.values())
        assert done.returncode == 0, done.stderr[-2000:]
    return paths


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_two_ranks_equal_one_process(steps: dict[str, Path], optimizer: str) -> None:
    one, two = (load_file(steps[optimizer].with_suffix(f".{ranks}")) for ranks in (1, 2))
    assert one.keys() == two.keys()
    assert len([name for name in one if name.startswith("gradient/")]) > 50
    for name, expected in one.items():
        gap = float((two[name] - expected).abs().max())
        assert gap <= 1e-5 * max(1.0, float(expected.abs().max())), (name, gap)
    assert float(one["gradient/fusion.head.weight"].abs().max()) > 1e-3  # not equal because both are nothing


def test_two_ranks_train_and_leave_one_checkpoint(tmp_path: Path, configuration: Configure) -> None:
    done = harness(2, "train", configuration(tmp_path, "steps = 3"))
    assert done.returncode == 0, done.stderr[-2000:]
    assert load_checkpoint(tmp_path / "run").provenance["ranks"] == 2
    assert len(kept_checkpoints(tmp_path / "run")) == 1


def test_a_rank_that_dies_ends_the_run(tmp_path: Path, configuration: Configure) -> None:
    path = configuration(tmp_path, "steps = 1000\ncheckpoint_every = 2")
    assert harness(2, "train", path, 5).returncode != 0
    assert load_checkpoint(tmp_path / "run").provenance["steps"] == 4


def train_command(path: Path, *more: str) -> list[str]:
    run = "import torch; torch.set_num_threads(1); from uniecs.cli import main; raise SystemExit(main())"
    return [sys.executable, "-c", run, "train", "--config", str(path), *more]


def last_step(run: Path) -> int:
    return max((int(each.name) for each in kept_checkpoints(run)), default=0)


def test_a_killed_run_resumes_to_the_same_weights(tmp_path: Path, configuration: Configure) -> None:
    settings = "steps = 28\ncheckpoint_every = 3\nkeep_checkpoints = 2"
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    subprocess.run(train_command(configuration(whole, settings)), env=ENVIRONMENT, check=True)
    path = configuration(killed, settings)
    process = subprocess.Popen(train_command(path), env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    dies_after = random.randrange(3, 12)  # with 16 steps left, the signal is never too late
    while last_step(killed / "run") < dies_after and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    stopped_at = load_checkpoint(killed / "run").provenance["steps"]
    assert dies_after <= stopped_at < 28
    half_written = killed / "run" / "checkpoints" / ".unfinished-00000027"
    half_written.mkdir(exist_ok=True)
    (half_written / "checkpoint.json").write_text("{")
    subprocess.run(train_command(path, "--resume"), env=ENVIRONMENT, check=True)
    one, two = load_checkpoint(whole / "run"), load_checkpoint(killed / "run")
    assert two.provenance["steps"] == 28
    for (name, a), b in zip(one.model.named_parameters(), two.model.parameters(), strict=True):
        assert torch.equal(a, b), name
    assert [each.name for each in kept_checkpoints(killed / "run")] == ["00000027", "00000028"]
    assert not half_written.exists()


def test_a_run_without_a_whole_checkpoint_says_so(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / ".unfinished-00000003").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="no whole checkpoint"):
        checkpoint_folder(tmp_path)
