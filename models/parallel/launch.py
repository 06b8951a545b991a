"""Starts a parallel run by torchrun, and says in a sentence what ended it.

torchrun (torch.distributed.run) watches the processes: where one ends badly it ends the others, and starts all of them again
as often as ``restarts`` allows; they go on from the newest checkpoint.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import quatrefoil
from quatrefoil.errors import QuatrefoilError
from quatrefoil.models.parallel.job import Job

RESULT = "result.json"


@dataclass(slots=True)
class Result:
    """What a run gave. Bytes are those that all processes sent, a step has the job's whole batch of samples."""

    division: str
    processes: int
    seconds_per_step: float
    bytes_per_step: float
    accuracy: float
    last_loss: float
    began_at: int
    restarts: int
    staleness_mean: float
    staleness_most: int

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1))

    @classmethod
    def read(cls, path: Path) -> Result:
        return cls(**json.loads(path.read_text()))


def sentence_file(job: Job, rank: int) -> Path:
    """Where a process leaves the sentence that it ended with."""
    return Path(job.directory) / f"error-{rank}.txt"


def train(job: Job, restarts: int = 0, timeout: float = 600) -> Result:
    """Run a job in processes on this machine.

    job: what is trained and how it is divided; goes on from the checkpoints in its directory where there are some.
    restarts: how often lost processes are replaced. timeout: seconds until the run is ended.

    Raises QuatrefoilError for a job that cannot be, without torch, and where the run ended badly: with its own sentence, or
    with the signal that ended a process and the step of the newest checkpoint.
    """
    if importlib.util.find_spec("torch") is None:
        raise QuatrefoilError("parallel training needs PyTorch; install it: pip install 'quatrefoil[torch]'")
    folder = Path(job.directory)
    folder.mkdir(parents=True, exist_ok=True)
    for old in (folder / RESULT, *folder.glob("error-*.txt")):
        old.unlink(missing_ok=True)
    said = folder / "job.json"
    job.write(said)
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(job.processes),
        "--max-restarts", str(restarts), "--monitor-interval", "0.1",
        "-m", "quatrefoil.models.parallel.worker", str(said),
    ]  # fmt: skip
    # one thread a process, ours and torch's: processes, not threads, are what is compared
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "QUATREFOIL_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [_import_root(), environment.get("PYTHONPATH", "")]))
    try:
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired as error:
        raise QuatrefoilError(f"the run ({job.division}) took longer than {timeout:g} s and was ended") from error
    if ended.returncode == 0 and (folder / RESULT).exists():
        return Result.read(folder / RESULT)
    raise QuatrefoilError(_why(job, ended.stderr))


def _import_root() -> str:
    """The folder that quatrefoil is imported from, so that the processes import the same; empty where it is installed by map."""
    package = Path(quatrefoil.__file__).parent
    return str(package.parent) if package.name == "quatrefoil" else ""


def _why(job: Job, log: str) -> str:
    """What ended a run, in a sentence."""
    sentences = sorted(Path(job.directory).glob("error-*.txt"))
    if sentences:
        return sentences[0].read_text()
    kept = [
        int(match[1]) for path in Path(job.directory).glob("*.pt") if (match := re.search(r"-(\d+)\.pt$", path.name))
    ]
    newest = (
        f"the checkpoint of step {max(kept)} is in {job.directory}, run again to go on"
        if kept
        else "there is no checkpoint"
    )
    first = log[log.rfind("Root Cause") :]  # torchrun's account of the process that ended first
    signals = re.findall(r"exitcode\s*:\s*-(\d+)", first)
    if signals:
        return f"a process of the run ({job.division}) was ended by signal {signals[0]}; {newest}"
    errors = re.findall(r"^\[rank\d+\]:\s*(\w+(?:\.\w+)*Error: .*)$", log, re.MULTILINE)
    said_last = errors[0] if errors else (log.strip().splitlines() or ["no error was printed"])[-1]
    return f"the run ({job.division}) failed: {said_last}; {newest}"
