"""Real runs of the `tiny` recipe, for tests: seconds on one core."""

from functools import cache
from pathlib import Path

from distill.data.image_set import ImageSet
from distill.data.sources import load_data_set
from distill.events import Event
from distill.recipe import recipes
from distill.runs.run_folder import Role, RunFolder
from distill.teacher.teacher import FrozenTeacher
from distill.training import build
from distill.training.run import TrainingRequest, train_and_test
from distill.training.train_state import TrainState

Events = list[Event]

# airbench96's network in small, without a teacher, for two epochs.
EFFICIENT = (
    "loss.kd=false",
    "loss.hard.weight=1",
    "train.epochs=2",
    "student.stages=3",
    "student.blocks=[1, 0, 1]",
    "student.downsample=pool",
    "student.stem_kernel=2",
    "student.stem_init=whiten",
    "student.stem_frozen=true",
    "student.stem_norm=false",
    "student.activation=celu",
    "student.norm_scale=frozen",
    "student.norm_momentum=0.4",
    "optim.bias_lr=8",
    "ema.half_life=0.5",
    "ema.norm_statistics=re-estimated",
)
# The same network as a teacher.
EFFICIENT_TEACHER = (
    "teacher.network=resnet",
    "teacher.width=4",
    *(each.replace("student.", "teacher.") for each in EFFICIENT),
)


def train(
    out: Path, *overrides: str, recipe: str = "tiny", role: str = "student", resume: bool = False
) -> tuple[RunFolder, Events]:
    """Run a recipe to the end; the folder and the events it yielded."""
    resolved = recipes.load(recipe, overrides)
    request = TrainingRequest(role, resolved.recipe, resolved.name, out, resume)  # type: ignore[arg-type]
    return RunFolder(out), list(train_and_test(request))


def prepared(
    *overrides: str,
    recipe: str = "tiny",
    role: Role = "student",
    teacher: FrozenTeacher | None = None,
) -> TrainState:
    """A run at step 0, with its teacher or this one, never to be saved: for tests of some steps."""
    resolved = recipes.load(recipe, overrides).recipe
    nowhere = RunFolder(Path("unused"))
    return build.build(resolved, role, nowhere, images=drawn(), teacher=teacher)


@cache
def drawn() -> ImageSet:
    """The procedural training images."""
    return load_data_set.load("synthetic", "train")


def two_epochs(teacher: Path) -> list[str]:
    """`tiny` for two epochs with everything on, dropout included."""
    return [
        f"teacher.runs=['{teacher}']",
        "train.epochs=2",
        "mix.cutmix.prob=0.5",
        "mix.mixup.prob=0.3",
        "student.block_dropout=0.1",
        "loss.hard.label_smoothing=0.1",
        "optim.clip=1.0",
        "ema.decay=0.9",
    ]
