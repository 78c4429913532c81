"""Load everything that a run folder contains, finished or not."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distill.errors import UserError
from distill.events import Epoch, Event, Split, Start, measure_name
from distill.files import run_json_schemas
from distill.files.escape_text import visible
from distill.files.redact_urls import hide_secrets
from distill.recipe import recipes
from distill.recipe.recipes import Recipe
from distill.runs import check_result, check_runs_match, journal
from distill.runs.read_predictions import Predictions, read_run
from distill.runs.run_folder import Role, RunFolder
from distill.runs.teacher_student_summary import teacher_images_text

TestCurve = Mapping[int, Mapping[str, float]]  # epoch -> `top1/test`, `top1/train`, …


@dataclass(frozen=True)
class RunRecord:
    """The content of a run's folder, finished or not.

    `result` (of result.json) is empty before the run is finished, `environment` (of
    environment.json) if the file is absent.
    """

    folder: RunFolder
    recipe: Recipe
    events: tuple[Event, ...]
    result: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    predictions: Predictions | None = None  # on the test split
    test_curve: TestCurve = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name of the folder."""
        return visible(self.folder.path.resolve().name)

    @property
    def start(self) -> Start | None:
        """The last start event in the journal; None before the run has begun."""
        starts = [event for event in self.events if isinstance(event, Start)]
        return starts[-1] if starts else None

    @property
    def is_finished(self) -> bool:
        return bool(self.result)

    @property
    def role(self) -> Role | None:
        """The role of the trained network; None if neither result nor journal has it."""
        role: Role | None = self._from_result_or_start("role")
        return role

    @property
    def n_classes(self) -> int | None:
        return len(self.class_names) or (self.start.n_classes if self.start else None)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes; empty before the run is finished."""
        return tuple(map(visible, self.result.get("class_names", ())))

    @property
    def requested_recipe(self) -> str | None:
        """The recipe's name as the user typed it; None before the run has begun."""
        return self._named("recipe")

    @property
    def network(self) -> str | None:
        """The short name of the network; None before the run has begun."""
        return self._named("network")

    @property
    def parameters(self) -> int | None:
        n: int | None = self._from_result_or_start("parameters")
        return n

    @property
    def device(self) -> str | None:
        return self._named("device")

    @property
    def val_images(self) -> int | None:
        """The number of held-out images; None before the run has begun."""
        n: int | None = self.result["data"]["val_images"] if self.result else None
        return n if self.result or self.start is None else self.start.val_images

    @property
    def teacher_top1(self) -> float | None:
        """The teacher's accuracy on `teacher_images`, 0..1; None without a teacher."""
        top1: float | None = self.result["teacher"]["top1"] if self.result else None
        return top1 if self.result or self.start is None else self.start.teacher_top1

    @property
    def teacher_images(self) -> str:
        """The images on which `teacher_top1` was measured; empty before the run began."""
        if self.result:
            n, data = self.result["teacher"].get("top1_images"), self.result["data"]
            return teacher_images_text(n, data["val_images"], data["train_images"])
        if self.start is None:
            return ""
        start = self.start
        return teacher_images_text(start.teacher_images, start.val_images, start.train_images)

    @property
    def teachers(self) -> list[str]:
        """The names of the teachers' run folders."""
        runs = self.result["teacher"]["runs"] if self.result else []
        if not self.result and self.start is not None and self.start.teacher:
            runs = self.start.teacher.split(" + ")
        return [visible(Path(run).name) for run in runs]

    @property
    def data_fingerprint(self) -> str:
        """The fingerprint of the run's images; before the first checkpoint, `data.source`."""
        if self.result:
            return str(self.result["data"]["fingerprint"])
        with suppress(UserError, KeyError):
            return str(run_json_schemas.progress(self.folder.last / "progress.json")["data"])
        return hide_secrets(self.recipe.data.source)

    @property
    def test_fingerprint(self) -> str:
        """The fingerprint of the run's test split; empty if an earlier version wrote the run."""
        if self.result:
            return str(self.result["data"].get("test_fingerprint", ""))
        with suppress(UserError, KeyError):
            return str(run_json_schemas.progress(self.folder.last / "progress.json")["test"])
        return ""

    @property
    def teacher_fingerprint(self) -> str:
        """The fingerprint of the teachers' weights; empty without a teacher, or if it is unknown.

        It is known from the first checkpoint on.
        """
        if self.result:
            return str(self.result["teacher"]["fingerprint"])
        with suppress(UserError, KeyError):
            return str(run_json_schemas.progress(self.folder.last / "progress.json")["teacher"])
        return ""

    @property
    def seeds(self) -> tuple[int, int]:
        """`train.seed` and `data.seed`."""
        return self.recipe.train.seed, self.recipe.data.seed

    @property
    def is_averaged(self) -> bool:
        """Whether the final weights are an exponential moving average."""
        return self.recipe.ema is not None

    def _named(self, name: str) -> str | None:
        """Return the text `name` from the result or the start event; None without both.

        Characters that are not printable, such as line breaks, are escaped.
        """
        text: str | None = self._from_result_or_start(name)
        return None if text is None else visible(text)

    def _from_result_or_start(self, name: str) -> Any:
        """Return the value `name` from the result or the start event; None without both."""
        return self.result[name] if self.result else getattr(self.start, name, None)

    def test_metric(self, measure: str) -> float | None:
        """Return `top1`, `nll` or `ece` of the final weights on the test split.

        None before the run is finished, and if it was not tested.
        """
        return self._metric(measure_name(measure, "test"))

    @property
    def val_split(self) -> Split:
        """The split name of the final weights' measures on the held-out images: `val_ema` if the
        weights are averaged, else `val`.
        """
        return "val" if self._metric(measure_name("top1", "val_ema")) is None else "val_ema"

    def val_metric(self, measure: str) -> float | None:
        """Return `top1`, `nll` or `ece` of the final weights on the held-out images.

        The best epoch is selected on these images. Before the run is finished, the weights are
        those of the best epoch so far.
        """
        return self._metric(measure_name(measure, self.val_split))

    def _metric(self, name: str) -> float | None:
        """Return the metric `name` of the final weights; None if it was not measured.

        Before the run is finished, it is the metric of the best epoch so far.
        """
        best = [
            event.metrics for event in self.events if isinstance(event, Epoch) and event.is_best
        ]
        metrics = self.result["metrics"] if self.result else best[-1] if best else {}
        value: float | None = metrics.get(name)
        return value


def read(folder: RunFolder, test_curve: TestCurve | None = None) -> RunRecord:
    """Read the files of a run folder.

    Raises UserError if it has no run, if a file is damaged, or if its recipe.toml was changed since
    it finished.

    `test_curve`: by epoch, the measures of the saved epochs, if they have been computed.
    """
    recipe, events = recipes.read(folder.recipe), tuple(journal.events(folder.journal))
    if folder.is_finished:
        check_runs_match.check_recipe_of_result(folder)
        check_result.check_journal(folder, events)
    return RunRecord(
        folder,
        recipe,
        events,
        folder.result() if folder.is_finished else {},
        run_json_schemas.environment(folder.environment) if folder.environment.exists() else {},
        read_run(folder),
        test_curve or {},
    )
