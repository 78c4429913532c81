"""This project's training loop beside others: the same networks, weights, batch and augmentation.

    python -m benchmarks.peers [--pair wrn|resnet] [--data D] [--rounds N] [--steps N] [--json]

Each contender (`benchmarks/contenders.py`) is a process of its own, all stay alive, and rounds of a
few steps go around among them, in turning order: what slows the machine down slows all. The speed
is the median over rounds. Nobody wins by doing other work: the loss of the first step and of the
second on the same batch must be the same for all, which takes the same networks, loss, gradient
and optimizer; the benchmark fails where they are not.

Memory is the peak of the proportional set size, summed over a contender's processes, from its start
through a round, measured before the race while no other contender runs. `share_of_peak`, "of the
peak": floating-point operations of its steps, over those of a 3x3 convolution of 256 channels,
forward, on this machine in the same call. With stored targets there are fewer operations: the
teacher's are not counted there. `memory` is shown, and is no peer.
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
from distill.components.data_pipeline import build_loader, split_images
from distill.components.device import build_accelerator
from distill.components.network import build_network
from distill.data.sources import image_set
from distill.errors import UserError
from distill.training import environment

TOLERANCE = 1e-3  # of the first two losses, relative
WATCH_EVERY_S = 0.05
CALIBRATION = 8  # batches that give the teacher's batch norms their statistics
REPOSITORY = Path(__file__).parents[1]


class Unequal(Exception):
    """A contender does other work than the others."""


@dataclass
class Entrant:
    """A contender's process and what was seen of it."""

    name: str
    process: subprocess.Popen[str]
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    peak_mib: float = 0.0

    def answer(self) -> dict[str, Any]:
        """What it says next. Raises RuntimeError where it died instead."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with status {self.process.wait()}")
        told: dict[str, Any] = json.loads(line)
        return told

    def train(self, steps: int) -> float:
        """Seconds of so many steps."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        return float(self.answer()["seconds"])

    def end(self) -> None:
        """Its process and all that it holds are gone."""
        self.process.kill()
        self.process.communicate()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """The highest memory seen meanwhile is kept."""
        over = threading.Event()

        def look() -> None:
            while not over.wait(WATCH_EVERY_S):
                self.peak_mib = max(self.peak_mib, memory_mib(self.process.pid))

        watcher = threading.Thread(target=look)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()


def memory_mib(pid: int) -> float:
    """Proportional set size of a process and all below it; 0 where the system does not tell."""
    total = 0.0
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        total = sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024
        for thread in Path(f"/proc/{pid}/task").iterdir():
            children = (thread / "children").read_text().split()
            total += sum(memory_mib(int(child)) for child in children)
    except OSError:  # gone since, or no Linux
        pass
    return total


def prepare(place: Path, name: str, data: str, batch: int) -> dict[str, float]:
    """Write what all contenders share into `place`; returns the operations of an image."""
    pair = PAIRS[name]
    recipe = pair.recipe(data, batch, stored=False)
    accel = build_accelerator(recipe)
    images = image_set.load(data, "train")
    np.save(place / "images.npy", np.ascontiguousarray(images.images.transpose(0, 2, 3, 1)))
    np.save(place / "labels.npy", images.labels)
    split = split_images(recipe, images)
    loader = build_loader(recipe, split.train, accel)
    [(view, rows)] = loader.batches(0)
    pixels = loader.augment(view, rows)
    np.save(place / "pixels.npy", pixels.cpu().numpy())
    np.save(place / "classes.npy", split.train.labels[rows.cpu().numpy()])
    torch.manual_seed(recipe.train.seed)  # as the run itself draws its weights
    student = build_network(recipe, pair.role, images.n_classes)
    teacher = calibrated(pair.teacher(), [loader.augment(view, rows).cpu()] * CALIBRATION)
    for role, net in (("student", student), ("teacher", teacher)):
        save_file(net.state_dict(), place / f"{role}.safetensors")
    (place / "teacher.txt").write_text(f"random weights of {name}, calibrated")
    told = {"pair": name, "data": data, "batch": batch, "device": str(accel.device)}
    workers = 2 if accel.device.type == "cpu" else min(16, os.cpu_count() or 1)
    (place / "setting.json").write_text(json.dumps(told | {"workers": workers}))
    return operations(student, teacher, pixels[:1].cpu())


def calibrated(net: nn.Module, batches: Sequence[Tensor]) -> nn.Module:
    """Batch norms that know their inputs: in eval mode fresh ones would answer in thousands."""
    with torch.no_grad():
        for images in batches:
            net.train()(images)
    return net.eval()


def operations(student: nn.Module, teacher: nn.Module, image: Tensor) -> dict[str, float]:
    """Floating-point operations of an image: what the student's step takes, and the teacher."""
    counted = {}
    with FlopCounterMode(display=False) as counter:
        student.eval()(image).sum().backward()
    counted["student"] = float(counter.get_total_flops())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        teacher(image)
    counted["teacher"] = float(counter.get_total_flops())
    return counted


def entered(name: str, place: Path, environ: dict[str, str]) -> Entrant:
    """A contender's process, which is at once about to build itself."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.contenders", name, str(place)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env=environ,
    )
    return Entrant(name, process)


def alone(name: str, place: Path, steps: int, environ: dict[str, str]) -> float:
    """The peak of a contender's memory, MiB, with nobody to share a page with."""
    entrant = entered(name, place, environ)
    try:
        with entrant.watched():
            entrant.answer()
            entrant.train(steps)
    finally:
        entrant.end()
    return entrant.peak_mib


def contest(names: Sequence[str], place: Path, rounds: int, steps: int) -> list[Entrant]:
    """All contenders through all rounds."""
    # Targets that are stored for this measurement are of no use to anybody else.
    environ = {**os.environ, "UNDERSTUDY_CACHE": str(place / "cache")}
    peaks = {}
    for name in names:
        print(f"{name} alone …", file=sys.stderr)
        peaks[name] = alone(name, place, steps, environ)
    entrants: list[Entrant] = []
    try:
        for name in names:
            print(f"{name} …", file=sys.stderr)
            entrants.append(entered(name, place, environ))
            entrants[-1].losses = entrants[-1].answer()["losses"]
            entrants[-1].peak_mib = peaks[name]
        check_equal(entrants)
        for entrant in entrants:
            entrant.train(steps)  # warm
        for turn in range(rounds):
            for entrant in entrants[turn % len(names) :] + entrants[: turn % len(names)]:
                entrant.seconds.append(entrant.train(steps))
    finally:
        for entrant in entrants:
            entrant.end()
    return entrants


def check_equal(entrants: Sequence[Entrant]) -> None:
    """Raises Unequal where a loss differs from the first entrant's by more than TOLERANCE of it."""
    first = entrants[0]
    for other in entrants[1:]:
        for ours, theirs in zip(first.losses, other.losses, strict=True):
            if not abs(ours - theirs) <= TOLERANCE * abs(ours):  # what is no number is not equal
                raise Unequal(
                    f"{other.name} does other work than {first.name}: on the same batch its first "
                    f"two losses are {other.losses}, those of {first.name} {first.losses}"
                )


def report(name: str, data: str, batch: int, rounds: int, steps: int) -> dict[str, Any]:
    """The measurement of one pair, ready for JSON."""
    names = [n for n in CONTENDERS if n != "torchdistill" or find_spec(n)]
    for absent in CONTENDERS.keys() - set(names):
        print(
            f"{absent} is not installed, and left out; type uv pip install -r pyproject.toml "
            "--extra bench",
            file=sys.stderr,
        )
    with tempfile.TemporaryDirectory() as folder:
        counted = prepare(Path(folder), name, data, batch)
        entrants = contest(names, Path(folder), rounds, steps)
    accel = build_accelerator(PAIRS[name].recipe(data, batch, stored=False))
    peak = ceilings.convolution(accel.device).best
    figures = {e.name: _figures(e, batch * steps, counted, peak) for e in entrants}
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


def _figures(
    entrant: Entrant, images: int, counted: dict[str, float], peak: float
) -> dict[str, Any]:
    images_per_s = images / median(entrant.seconds)
    an_image = counted["student"] + (0 if entrant.name == "cached" else counted["teacher"])
    return {
        "images_per_s": images_per_s,
        "slowest": images / max(entrant.seconds),
        "fastest": images / min(entrant.seconds),
        "peak_mib": entrant.peak_mib,
        "first_loss": entrant.losses[0],
        "second_loss": entrant.losses[1],
        "share_of_peak": images_per_s * an_image / peak,
    }


def typed(module: str) -> list[str]:
    """The command of a benchmark as it is typed, without a place of this machine."""
    return ["python", "-m", module, *sys.argv[1:]]


def table(content: dict[str, Any]) -> Table:
    """One line a contender, in the order of their speed."""
    title = "{networks}\nbatches of {batch_size}, rounds: {rounds}, steps of a round: {steps}"
    drawn = Table(box=SIMPLE_HEAD, title=title.format_map(content))
    compared = ", ".join(peer for peer in PEERS if peer in content["contenders"])
    drawn.caption = "online {:.2f} x the best of {}, cached {:.2f} x".format(
        content["online_over_best_peer"], compared, content["cached_over_best_peer"]
    )
    drawn.add_column("loop")
    for heading in ("images/s", "slowest … fastest", "of the peak", "MiB", "first loss"):
        drawn.add_column(heading, justify="right")
    by_speed = sorted(content["contenders"].items(), key=lambda item: item[1]["images_per_s"])
    for name, figures in by_speed:
        drawn.add_row(
            name,
            f"{figures['images_per_s']:,.1f}",
            f"{figures['slowest']:,.1f} … {figures['fastest']:,.1f}",
            f"{figures['share_of_peak']:.0%}",
            f"{figures['peak_mib']:,.0f}",
            f"{figures['first_loss']:.4f}",
        )
    return drawn


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line of this module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--pair", choices=PAIRS, default="wrn")
    parser.add_argument("--data", help="the set [cifar10 where it is found, else synthetic]")
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=8, help="of one round [8]")
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
    """CIFAR-10 where it is, else the drawn set."""
    try:
        image_set.check("cifar10")
    except UserError:
        return image_set.SYNTHETIC
    return "cifar10"


if __name__ == "__main__":
    main()
