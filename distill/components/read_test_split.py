"""Read the test split and compare its fingerprint with a run's; no other module reads it."""

from dataclasses import dataclass

from distill.data.sources import load_data_set
from distill.data.sources.load_data_set import ImageSet, Progress
from distill.data.task_progress import running
from distill.errors import UserError
from distill.format import describe_class_difference
from distill.runs.run_folder import RunFolder


def test_split(
    source: str, *, size: int | None = None, progress: Progress | None = None
) -> ImageSet:
    """Load the test split of a source, which is only for evaluation after a run.

    `size`: height and width in pixels, to which images are resized; None for those that they have.
    """
    return load_data_set.load(source, "test", size=size, progress=progress)


@dataclass(frozen=True)
class SplitIdentity:
    """Identifies a test split by its fingerprint, so that training never has its images."""

    source: str
    fingerprint: str  # of images and labels, whatever their order
    class_names: tuple[str, ...]
    n_images: int
    n_in_train: int  # test images that are pixel by pixel equal to a training image


def identify_test(
    source: str, train: ImageSet, *, size: int | None = None, progress: Progress | None = None
) -> SplitIdentity:
    """Return the identity of the test split of a source, to be recorded when a run begins.

    `train`: the train split, in which equal images are counted. `size`: as in `test_split`. Raises
    UserError if the two splits have images of different sizes.
    """
    test = test_split(source, size=size, progress=progress)
    if test.size != train.size:
        raise UserError(
            f"the training images of {source} have {train.size}x{train.size} pixels, and its test "
            f"images {test.size}x{test.size}.\nType --set data.size={train.size} to resize them."
        )
    with running(progress, "computing the fingerprint of the test split"):
        fingerprint = test.fingerprint
    with running(progress, "comparing test with training images"):
        in_train = load_data_set.count_shared_images(test, train)
    return SplitIdentity(source, fingerprint, test.class_names, len(test.labels), in_train)


def check_test(test: ImageSet, known: SplitIdentity) -> None:
    """Raise UserError if a test split's images or class names are not those of `known`."""
    problem = ""
    if test.class_names != known.class_names:
        names = describe_class_difference(known.class_names, test.class_names)
        problem = f"the class names of {known.source} changed while the run trained: "
        problem += " / ".join(names)
    elif test.fingerprint != known.fingerprint:
        prints = (known.fingerprint[:12], test.fingerprint[:12])
        problem = f"the test split of {known.source} changed while the run trained: fingerprint "
        problem += " / ".join(prints)
    if problem:
        raise UserError(f"{problem}.\nRestore the original images and class folders.")


def check_tested(folder: RunFolder, test: ImageSet, source: str) -> None:
    """Raise UserError if a finished run was tested on other images than those of `test`.

    `source` names the data source in the message. A run of an earlier version, whose result has no
    fingerprint of the test split, is not checked.
    """
    tested_on = folder.result()["data"].get("test_fingerprint")
    if tested_on not in (None, test.fingerprint):
        raise UserError(
            f"the test split of {source} is not the one that run {folder.path} was tested on: "
            f"fingerprint {test.fingerprint[:12]}, then {str(tested_on)[:12]}.\n"
            "Restore the original images; python cli.py evaluate RUN --data SOURCE measures the "
            "run on others."
        )
