"""Compare the speed of this project's training loop with other libraries' loops.

    python -m benchmarks.peers [--pair wrn|resnet] [--data D] [--rounds N] [--steps N] [--json]

All contenders (`benchmarks/contenders.py`) have the same networks, weights, batch size and
augmentation. Each is a separate process. They take turns of a few steps, in rotating order, so that
anything that slows the machine down affects all of them. The speed is the median over rounds. To
check that all do the same work, each first takes two steps on one shared batch; the benchmark fails
unless their losses are equal, which requires the same networks, loss, gradient and optimizer.

The reported memory is the peak proportional set size of a contender's processes, from the start to
the end of one round, while no other contender runs. `share_of_peak` ("of the peak") is the number
of floating-point operations per second in the contender's steps, divided by that of a 3x3
convolution of 256 channels, forward, measured in the same call. `cached` does not run the teacher,
so the teacher's operations are not counted for it. `memory` is reported, but is not one of the
libraries in "x the best of …".
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import ceilings
from benchmarks.contenders import CONTENDERS, PEERS
from benchmarks.pairs import BATCH, PAIRS
from distill.components.build_accelerator import build_accelerator
from distill.components.build_network import build_network
from distill.components.data_pipeline import build_loader, split_images
from distill.data.sources import load_data_set
from distill.errors import UserError
from distill.training import environment

TOLERANCE = 1e-3  # allowed relative difference of the first two losses
POLL_EVERY_S = 0.05  # interval between measurements of memory
CALIBRATION = 8  # forward passes from which the teacher's batch norms take their statistics
REPOSITORY = Path(__file__).parents[1]


class Unequal(Exception):
    """Raised if a contender does not do the same work as the others."""


@dataclass
class Entrant:
    """A contender's process and its measurements."""

    name: str
    process: subprocess.Popen[str]
    losses: list[float] = field(default_factory=list)  # of the two steps on the shared batch
    seconds: list[float] = field(default_factory=list)  # of each round
    peak_mib: float = 0.0  # peak memory

    def answer(self) -> dict[str, Any]:
        """Read the process's next line of JSON. Raises RuntimeError if the process ended."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with status {self.process.wait()}")
        content: dict[str, Any] = json.loads(line)
        return content

    def train(self, steps: int) -> float:
        """Let the process take `steps` steps; return the seconds that they took."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        return float(self.answer()["seconds"])

    def end(self) -> None:
        """Kill the process and close its pipes."""
        self.process.kill()
        self.process.communicate()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Measure the peak memory of the process inside this context."""
        done = threading.Event()

        def poll() -> None:
            while not done.wait(POLL_EVERY_S):
                self.peak_mib = max(self.peak_mib, memory_mib(self.process.pid))

        thread = threading.Thread(target=poll)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def memory_mib(pid: int) -> float:
    """Return the proportional set size of a process and its descendants in MiB; 0 if unknown."""
    total = 0.0
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        total = sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024
        for thread in Path(f"/proc/{pid}/task").iterdir():
            children = (thread / "children").read_text().split()
            total += sum(memory_mib(int(child)) for child in children)
    except OSError:  # the process has ended, or the system is not Linux
        pass
    return total


def prepare(folder: Path, name: str, data: str, batch: int) -> dict[str, float]:
    """Write the networks, images, shared batch and settings of all contenders into `folder`.

    `name`: a key of PAIRS. `data`: data source. `batch`: batch size. Returns the floating-point
    operations per image of `student` and `teacher`.
    """
    pair = PAIRS[name]
    recipe = pair.recipe(data, batch, stored=False)
    accel = build_accelerator(recipe)
    images = load_data_set.load(data, "train")
    np.save(folder / "images.npy", np.ascontiguousarray(images.images.transpose(0, 2, 3, 1)))
    np.save(folder / "labels.npy", images.labels)
    split = split_images(recipe, images)
    loader = build_loader(recipe, split.train, accel)
    [(view, rows)] = loader.batches(0)
    pixels = loader.augment(view, rows)
    np.save(folder / "pixels.npy", pixels.cpu().numpy())
    np.save(folder / "classes.npy", split.train.labels[rows.cpu().numpy()])
    torch.manual_seed(recipe.train.seed)  # as a run initialises its weights
    student = build_network(recipe, pair.role, images.n_classes)
    teacher = calibrated(pair.teacher(), [loader.augment(view, rows).cpu()] * CALIBRATION)
    for role, net in (("student", student), ("teacher", teacher)):
        save_file(net.state_dict(), folder / f"{role}.safetensors")
    (folder / "teacher.txt").write_text(f"random weights of {name}, calibrated")
    setting = {"pair": name, "data": data, "batch": batch, "device": str(accel.device)}
    workers = 2 if accel.device.type == "cpu" else min(16, os.cpu_count() or 1)
    (folder / "setting.json").write_text(json.dumps(setting | {"workers": workers}))
    return operations(student, teacher, pixels[:1].cpu())


def calibrated(net: nn.Module, batches: Sequence[Tensor]) -> nn.Module:
    """Set a network's batch-norm statistics by forward passes on `batches`; return it in eval mode.

    Without them, the logits of a network with random weights are in the thousands.
    """
    with torch.no_grad():
        for images in batches:
            net.train()(images)
    return net.eval()


def operations(student: nn.Module, teacher: nn.Module, image: Tensor) -> dict[str, float]:
    """Count the floating-point operations per image: forward and backward of the student, forward
    of the teacher.
    """
    flops = {}
    with FlopCounterMode(display=False) as counter:
        student.eval()(image).sum().backward()
    flops["student"] = float(counter.get_total_flops())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        teacher(image)
    flops["teacher"] = float(counter.get_total_flops())
    return flops


def start(name: str, folder: Path, environ: dict[str, str]) -> Entrant:
    """Start a contender's process, without waiting until it is ready."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.contenders", name, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env=environ,
    )
    return Entrant(name, process)


def measure_memory(name: str, folder: Path, steps: int, environ: dict[str, str]) -> float:
    """Return a contender's peak memory in MiB, from its start to the end of one round.

    No other contender may run: it would share memory pages, which count proportionally.
    """
    entrant = start(name, folder, environ)
    try:
        with entrant.watched():
            entrant.answer()
            entrant.train(steps)
    finally:
        entrant.end()
    return entrant.peak_mib


def contest(names: Sequence[str], folder: Path, rounds: int, steps: int) -> list[Entrant]:
    """Measure the memory of all contenders, one after the other, then their speed in all rounds.

    Raises Unequal if they do not do the same work.
    """
    # Teacher logits are cached in the temporary folder, not in the user's cache.
    environ = {**os.environ, "UNDERSTUDY_CACHE": str(folder / "cache")}
    peaks = {}
    for name in names:
        print(f"{name}: memory …", file=sys.stderr)
        peaks[name] = measure_memory(name, folder, steps, environ)
    entrants: list[Entrant] = []
    try:
        for name in names:
            print(f"{name} …", file=sys.stderr)
            entrants.append(start(name, folder, environ))
            entrants[-1].losses = entrants[-1].answer()["losses"]
            entrants[-1].peak_mib = peaks[name]
        check_equal(entrants)
        for entrant in entrants:
            entrant.train(steps)  # warm-up
        for turn in range(rounds):
            for entrant in entrants[turn % len(names) :] + entrants[: turn % len(names)]:
                entrant.seconds.append(entrant.train(steps))
    finally:
        for entrant in entrants:
            entrant.end()
    return entrants


def check_equal(entrants: Sequence[Entrant]) -> None:
    """Raise Unequal if a contender's losses differ from the first one's by more than TOLERANCE,
    relative.
    """
    first = entrants[0]
    for other in entrants[1:]:
        for expected, loss in zip(first.losses, other.losses, strict=True):
            if not abs(expected - loss) <= TOLERANCE * abs(expected):  # true for NaN too
                raise Unequal(
                    f"{other.name} does not do the same work as {first.name}: the first two losses "
                    f"on the same batch are {other.losses}, those of {first.name} {first.losses}"
                )


def report(name: str, data: str, batch: int, rounds: int, steps: int) -> dict[str, Any]:
    """Measure all contenders on the pair `name`; return the results as values for JSON."""
    names = [n for n in CONTENDERS if n != "torchdistill" or find_spec(n)]
    for missing in CONTENDERS.keys() - set(names):
        print(
            f"{missing} is not installed and is left out; type uv pip install -r pyproject.toml "
            "--extra bench",
            file=sys.stderr,
        )
    with tempfile.TemporaryDirectory() as folder:
        flops = prepare(Path(folder), name, data, batch)
        entrants = contest(names, Path(folder), rounds, steps)
    accel = build_accelerator(PAIRS[name].recipe(data, batch, stored=False))
    peak = ceilings.convolution(accel.device).best
    figures = {e.name: _figures(e, batch * steps, flops, peak) for e in entrants}
    best_peer = max(figures[peer]["images_per_s"] for peer in PEERS if peer in figures)
    return {
        "pair": name,
        "networks": PAIRS[name].title,
        "batch_size": batch,
        "rounds": rounds,
        "steps": steps,
        "data": data,
        "contenders": figures,
        "online_over_best_peer": figures["online"]["images_per_s"] / best_peer,
        "cached_over_best_peer": figures["cached"]["images_per_s"] / best_peer,
        "convolution_peak_flops": peak,
        "environment": environment.describe(accel) | {"command": typed("benchmarks.peers")},
    }


def _figures(entrant: Entrant, images: int, flops: dict[str, float], peak: float) -> dict[str, Any]:
    images_per_s = images / median(entrant.seconds)
    per_image = flops["student"] + (0 if entrant.name == "cached" else flops["teacher"])
    return {
        "images_per_s": images_per_s,
        "slowest": images / max(entrant.seconds),
        "fastest": images / min(entrant.seconds),
        "peak_mib": entrant.peak_mib,
        "first_loss": entrant.losses[0],
        "second_loss": entrant.losses[1],
        "share_of_peak": images_per_s * per_image / peak,
    }


def typed(module: str) -> list[str]:
    """Return the command line of a benchmark as `python -m module …`, without Python's path."""
    return ["python", "-m", module, *sys.argv[1:]]


def table(content: dict[str, Any]) -> Table:
    """Return a table with one line per contender, the slowest first."""
    title = "{networks}\nbatch size {batch_size}, {rounds} rounds of {steps} steps"
    result = Table(box=SIMPLE_HEAD, title=title.format_map(content))
    compared = ", ".join(peer for peer in PEERS if peer in content["contenders"])
    result.caption = "online {:.2f} x the best of {}, cached {:.2f} x".format(
        content["online_over_best_peer"], compared, content["cached_over_best_peer"]
    )
    result.add_column("loop")
    for heading in ("images/s", "slowest … fastest", "of the peak", "MiB", "first loss"):
        result.add_column(heading, justify="right")
    by_speed = sorted(content["contenders"].items(), key=lambda item: item[1]["images_per_s"])
    for name, figures in by_speed:
        result.add_row(
            name,
            f"{figures['images_per_s']:,.1f}",
            f"{figures['slowest']:,.1f} … {figures['fastest']:,.1f}",
            f"{figures['share_of_peak']:.0%}",
            f"{figures['peak_mib']:,.0f}",
            f"{figures['first_loss']:.4f}",
        )
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line of this module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--pair", choices=PAIRS, default="wrn")
    parser.add_argument("--data", help="the data set [cifar10 if it is found, else synthetic]")
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=8, help="steps per round [8]")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args(arguments)
    try:
        content = report(
            given.pair, given.data or found_data(), given.batch, given.rounds, given.steps
        )
    except UserError as fault:
        parser.error(str(fault))
    except (Unequal, RuntimeError) as fault:
        parser.exit(1, f"{fault}\n")
    if given.json:
        print(json.dumps(content))
    else:
        Console().print(table(content))


def found_data() -> str:
    """Return "cifar10" if the data set is found, else "synthetic"."""
    try:
        load_data_set.check("cifar10")
    except UserError:
        return load_data_set.SYNTHETIC
    return "cifar10"


if __name__ == "__main__":
    main()
