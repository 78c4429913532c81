"""Measure a run on the test split, once: when it ends, or later for the best trial of a sweep."""

from contextlib import suppress

from accelerate import Accelerator
from torch import Tensor, nn

from distill.components.build_accelerator import build_accelerator
from distill.components.build_network import load_trained, to_device
from distill.components.data_pipeline import split_images
from distill.components.read_test_split import check_tested, test_split
from distill.data.sources import load_data_set
from distill.data.sources.load_data_set import ImageSet, Progress
from distill.evaluation import write_results
from distill.evaluation.predict_split import predict_with_progress, to_host
from distill.events import measure_name
from distill.metrics import measures
from distill.recipe import recipes
from distill.runs import lock
from distill.runs.run_folder import IS_TESTED, RunFolder, file_sha256, is_tested, write_json
from distill.teacher import selection
from distill.teacher.teacher import FrozenTeacher


def measure_on_test(
    folder: RunFolder,
    net: nn.Module,
    teacher: FrozenTeacher | None,
    held_out: ImageSet | None,
    test: ImageSet,
    accel: Accelerator,
    *,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Return `top1/test`, `nll/test` and `ece/test` of a network in float32; called by all
    processes.

    Writes evaluation.npz to `folder`: the logits of network and teacher on the test split, and the
    logits of the network on the held-out images. `teacher` and `held_out` may be None.
    """

    def predicted(of: nn.Module, images: ImageSet, task: str) -> tuple[Tensor, Tensor]:
        return predict_with_progress(of, images, accel, progress, task)

    logits, labels = predicted(net, test, "measuring the test split")
    measured = measures(*to_host((logits, labels)))
    metrics = {measure_name(name, "test"): value for name, value in measured.items()}
    teacher_logits, of_held_out = None, None
    if teacher is not None:
        teacher_logits, _ = predicted(teacher, test, "the teacher's test logits")
    if held_out is not None:
        of_held_out = predicted(net, held_out, "the held-out logits")
    if accel.is_main_process:
        write_results.write_evaluation(folder, test, logits, teacher_logits, of_held_out)
    return metrics


def measure_later(folder: RunFolder, *, progress: Progress | None = None) -> None:
    """Measure a finished trial of a sweep on the test split, and add the measures to its files.

    Does nothing if the trial is measured already, or if another process is measuring it. Called by
    one process. Raises UserError if images or teacher have changed since the training.
    """
    with suppress(lock.InUse), lock.lock_run_folder(folder.path):
        result = dict(folder.result())
        if is_tested(result):
            return
        del result[IS_TESTED]
        recipe = recipes.read(folder.recipe)
        accel, source = build_accelerator(recipe), recipe.data.source
        images = load_data_set.load(source, "train", size=recipe.data.image_size, progress=progress)
        test = test_split(source, size=recipe.data.image_size, progress=progress)
        check_tested(folder, test, source)
        split = split_images(recipe, images)
        teacher = selection.load_teacher(recipe, images, split)
        if teacher is not None:
            to_device(teacher, accel.device)
        net = to_device(load_trained(folder), accel.device)
        result["metrics"] |= measure_on_test(
            folder, net, teacher, split.held_out, test, accel, progress=progress
        )
        result["evaluation"] = file_sha256(folder.evaluation)
        write_json(folder.result_file, result)
