"""Write the files that the notebook of a run reads: code, weights and test images."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distill.components.read_test_split import check_tested, test_split
from distill.data.image_set import ImageSet, Progress
from distill.errors import UserError
from distill.export import project1
from distill.export.finished_run import load_finished
from distill.format import describe_class_difference
from distill.runs.run_folder import RunFolder, check_subfolder, write_bytes
from students.normalize_images import MEAN, STD

IMAGES = "test_images.npz"


@dataclass(frozen=True)
class NotebookFiles:
    """The content of the files that a notebook reads, before they are written."""

    code: str  # Python source of the network, with the function project1_model()
    files: dict[str, bytes]  # code, weights and test images, by name
    values: dict[str, Any]  # mean and std that normalise the images, and the run's test accuracy

    def write(self, folder: Path) -> None:
        """Write the files into `folder`. Raises UserError if it is a symbolic link."""
        check_subfolder(folder)
        for name, content in self.files.items():
            write_bytes(folder / name, content)


def notebook_files(run: RunFolder, progress: Progress | None = None) -> NotebookFiles:
    """Return the files of a finished run's notebook.

    Raises UserError if the run is not finished or was not tested, if its network is not a residual
    student of fewer than 5,000,000 parameters, or if its test images are missing or have changed.
    """
    finished = load_finished(run, None, progress)
    try:
        code, weights = project1.contents(finished)
    except UserError as fault:
        raise UserError(f"--notebook contains the export of --format project1. {fault}") from fault
    test = test_split(finished.source, progress=progress)
    if list(test.class_names) != finished.class_names:
        of_run, of_data = describe_class_difference(finished.class_names, test.class_names)
        raise UserError(
            f"run {run.path} has the classes {of_run}; {finished.source} now has {of_data}.\n"
            "Restore the original images."
        )
    check_tested(run, test, finished.source)
    return NotebookFiles(
        code=code,
        files={
            project1.CODE: code.encode(),
            project1.WEIGHTS: weights,
            IMAGES: _compressed(test),
        },
        values={"mean": list(MEAN), "std": list(STD), "test_accuracy": finished.top1},
    )


def _compressed(test: ImageSet) -> bytes:
    """Return an .npz file with `images`, uint8 [N, 3, H, W], and `labels`, int64 [N]."""
    content = io.BytesIO()
    np.savez_compressed(content, images=test.images, labels=test.labels.astype(np.int64))
    return content.getvalue()
