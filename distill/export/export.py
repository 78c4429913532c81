"""Export a finished run: write to a temporary folder, read back, compare, then rename into place.

The `export.json` of an export has the names and sha256 of its files. An earlier export is replaced
on request. A folder that contains any other or a changed file is never replaced.
"""

import errno
import hashlib
import shutil
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill.components.read_test_split import test_split
from distill.data.image_set import Progress
from distill.errors import Failure, UserError
from distill.evaluation.predict_split import check_finite, predict
from distill.export import atomic_folder, formats
from distill.export.finished_run import FinishedRun, load_finished
from distill.export.formats import Format
from distill.files import run_json_schemas
from distill.files.escape_text import is_utf8
from distill.format import p_equation, percent, percent_number
from distill.metrics import is_correct, is_same_prediction
from distill.runs.run_folder import (
    RunFolder,
    check_outside_runs,
    file_sha256,
    write_json,
)
from distill.statistics import count_pairs

REPORT = "export.json"
LARGEST_EXPORT = 8 << 30  # bytes of all files; those of 100 million parameters take 2 GiB
# Largest allowed |Δlogit|, relative to the largest |logit| or 1. Float32 sums in another order
# differ by 1e-5 (measured: 9e-6 on a WRN-16-2); another network differs by far more.
TOLERANCE = 1e-4
LEAST_AGREEMENT = 0.9  # fraction of test predictions of a quantised format that must equal float's
BATCH = 100  # 256 images make two batches and a smaller one: this tests different batch sizes
HOST = torch.device("cpu")


def export(
    run: RunFolder,
    names: Sequence[str],
    out: Path,
    data: str | None = None,
    *,
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
    replace: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Export a run in the formats `names` to the folder `out`; return the files and comparisons.

    `data`: the data source to compare and calibrate on; None for the run's own. `normalisation`:
    mean and std of the images in [0, 1] that project1's network gets; None for CIFAR-10's.
    `replace`: whether to replace an earlier export in `out`. A format that fails is left out;
    `failed` maps its name to the reason, and is absent if none failed.

    Raises UserError for a format that is unknown or not installed, and if `out` may not be
    replaced; Failure if it cannot be written. If all formats fail, `out` is unchanged. The error is
    then UserError if the formats do not support this run, or Failure, for example if the outputs of
    the written network differ from the run's.
    """
    requested = formats.load_formats(names)
    if normalisation is not None:
        requested = formats.with_normalisation(requested, *normalisation)
    out = out.absolute()
    if out.is_symlink():  # replace the folder that the link leads to, not the link
        out = out.resolve()
    check_out(out, replace)
    finished = load_finished(run, data, progress)
    try:
        with atomic_folder.temporary_folder_beside(out) as new:
            check_out(out, replace)  # an earlier export may have been restored
            report, failed = _write_formats(finished, requested, new)
            if normalisation is not None and "project1" in report["formats"]:
                mean, std = map(list, normalisation)
                report["formats"]["project1"] |= {"mean": mean, "std": std}
            write_json(new / REPORT, report)
            atomic_folder.rename(new, out, partial(check_out, out, replace))
    except OSError as fault:
        raise _not_written(out, fault) from fault
    result = {"out": str(out), "run": str(run.path), "data": finished.source} | report
    return result | ({"failed": failed} if failed else {})


def _not_written(out: Path, fault: OSError) -> Failure:
    is_full = fault.errno in (errno.ENOSPC, errno.EDQUOT)
    where = f" ({fault.filename})" if fault.filename else ""
    return Failure(
        f"{out} could not be written: {fault.strerror or fault}{where}. Nothing was changed.\n"
        f"{'Free some space, or choose' if is_full else 'Choose'} another --out."
    )


def check_out(out: Path, replace: bool) -> None:
    """Raise UserError unless an export may be written to `out`.

    `out` may be absent or empty, or, if `replace` is true, contain an unchanged earlier export.
    """
    if not is_utf8(str(out)):  # safetensors accepts only UTF-8 paths
        raise UserError(f"the name of {out} is not UTF-8.\nChoose another --out.")
    check_outside_runs(out)
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"{out} is a file, and an export is a folder.\nChoose another --out.")
    existing = {path for path in out.rglob("*") if path.is_symlink() or not path.is_dir()}
    earlier = _earlier_files(out)
    other = {path for path in existing if not _may_be_of_export(path, earlier)}
    other |= _changed(existing - other, earlier)
    foreign = sorted(path.relative_to(out).as_posix() for path in other)
    if foreign:
        more = f" and {len(foreign) - 3:,} more" if len(foreign) > 3 else ""
        raise UserError(
            f"{out} contains files that no export wrote: {', '.join(foreign[:3])}{more}.\n"
            "Choose another --out."
        )
    if existing and not replace:
        raise UserError(
            f"{out} already contains an export.\n"
            "Replace it with --replace, or choose another --out."
        )


def _earlier_files(out: Path) -> dict[Path, tuple[int, str]]:
    """Return the paths, sizes and sha256 of the files of the earlier export in `out`; empty without
    one.

    They are read from its export.json, whose own sha256 is given as "". Sizes are in bytes.
    """
    try:
        described = run_json_schemas.read(out / REPORT)["formats"].values()
        files = {
            out / name: (int(facts["bytes"]), str(facts["sha256"]))
            for format_ in described
            for name, facts in format_["files"].items()
        }
    except (UserError, KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return {}
    return files | {out / REPORT: (0, "")}


def _may_be_of_export(path: Path, earlier: dict[Path, tuple[int, str]]) -> bool:
    """Whether a path has the size of a file of the earlier export, or is Python's cache of its .py
    file.

    `earlier`: the paths, sizes and sha256 that export.json names.
    """
    if path.is_symlink() or not path.is_file():
        return False
    if path in earlier:
        n_bytes, sha256 = earlier[path]
        return not sha256 or path.stat().st_size == n_bytes
    source = path.parent.parent / f"{path.name.partition('.')[0]}.py"
    return path.parent.name == "__pycache__" and path.suffix == ".pyc" and source in earlier


def _changed(paths: Collection[Path], earlier: dict[Path, tuple[int, str]]) -> set[Path]:
    """Return the files of the earlier export whose sha256 is another than export.json names.

    They are compared because the user or another program may have written that export.json. Files
    larger than any export are returned without reading them: a sparse file can be of any size.
    """
    named = {path for path in paths if path in earlier and earlier[path][1]}
    if sum(path.stat().st_size for path in named) > LARGEST_EXPORT:
        return named
    return {path for path in named if file_sha256(path) != earlier[path][1]}


def _write_formats(
    finished: FinishedRun, requested: dict[str, Format], new: Path
) -> tuple[dict[str, Any], dict[str, str]]:
    """Write and compare every format; return the report, and the reasons of failures by format.

    The files of failed formats are deleted. The report contains no path of this machine, because it
    is published with the files. Raises UserError or Failure if all formats fail, OSError if a file
    cannot be written.
    """
    images, what = finished.comparison_images()
    logits = predict(finished.net, images, HOST, BATCH)
    check_finite(logits, finished.folder)
    described, failed = dict[str, Any](), dict[str, Exception]()
    for name, format_ in requested.items():
        before = set(new.iterdir())
        try:
            described[name] = _write_and_compare(name, format_, finished, new, images, logits)
        except OSError:  # a full disk fails every format
            raise
        except Exception as fault:  # a format's package may raise anything
            failed[name] = fault
            _delete(set(new.iterdir()) - before)
    if not described:
        raise _all_failed(failed)
    report = {
        "network": finished.result["network"],
        "parameters": finished.n_parameters,
        "weights": finished.result["weights"],
        "image_size": finished.image_size,
        "compared_on": f"{len(images)} {what}",
        "formats": described,
    }
    return report, {name: _failure_text(name, fault) for name, fault in failed.items()}


def _write_and_compare(
    name: str, format_: Format, finished: FinishedRun, new: Path, images: Tensor, logits: Tensor
) -> dict[str, Any]:
    """Write one format into `new`; return its files and their comparison with the network."""
    before = set(new.iterdir())
    with formats.explain_missing_package(name):
        format_.write(finished, new)
    files = sorted(set(new.iterdir()) - before)
    return {
        "files": {path.name: _file_facts(path) for path in files},
        **_compare(name, format_, new, images, logits),
        **({} if format_.IS_FLOAT else _test_accuracy(finished, format_, new)),
    }


def _delete(paths: set[Path]) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _all_failed(failed: dict[str, Exception]) -> Exception:
    """Return the error to raise if every format failed: their only error, or one that lists all."""
    faults = list(failed.values())
    if len(faults) == 1:
        return faults[0]
    kind = UserError if all(isinstance(fault, UserError) for fault in faults) else Failure
    return kind("\n".join(_failure_text(name, fault) for name, fault in failed.items()))


def _failure_text(name: str, fault: Exception) -> str:
    """Return a message with a format's name and why it failed."""
    text = str(fault)
    if not isinstance(fault, UserError | Failure):
        first = (text.splitlines() or [""])[0]
        text = f"{type(fault).__name__}: {first}\nExport it alone to see the traceback."
    return text if text.startswith("--format ") else f"--format {name}: {text}"


def failure_message(report: dict[str, Any]) -> str | None:
    """Return a message on the formats that failed, from the report of `export`; None if none
    failed.
    """
    failed = report.get("failed", {})
    if not failed:
        return None
    n, written = len(failed), ", ".join(report["formats"])
    return "\n".join(
        [f"{n} of {n + len(report['formats'])} formats failed; {report['out']} has {written}."]
        + [text.replace("\n", "\n  ") for text in failed.values()]
    )


def _file_facts(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _compare(
    name: str, format_: Format, new: Path, images: Tensor, logits: Tensor
) -> dict[str, float]:
    """Compare the logits of the network read from the files in `new` with the run's `logits`.

    Raises Failure if a float32 format differs by more than rounding.
    """
    exported = predict(format_.read(new), images, HOST, BATCH)
    delta = (exported - logits).abs().max().item()
    bound = TOLERANCE * max(1.0, logits.abs().max().item())
    if format_.IS_FLOAT and not delta <= bound:  # true for NaN too
        raise Failure(
            f"--format {name}: the exported network does not compute the run's outputs: logits "
            f"differ by up to {delta:.2g}, more than {bound:.2g}. Its files were deleted.\n"
            "This is an error of this program or of the format's package: try another version of "
            "it, or another --format."
        )
    return {"max_logit_difference": delta, "same_predictions": _agreement(exported, logits)}


def _test_accuracy(finished: FinishedRun, format_: Format, new: Path) -> dict[str, float]:
    """Measure a quantised format on the test split, compared with the float network.

    Raises Failure if fewer than 90 % of the predictions are equal, or a logit is not finite.
    """
    test = test_split(finished.source, size=finished.image_size, progress=finished.progress)
    images, labels = torch.from_numpy(test.images), test.labels
    original = predict(finished.net, images, HOST, BATCH)
    exported = predict(format_.read(new), images, HOST, BATCH)
    agreement = _agreement(exported, original)
    if not (exported.isfinite().all() and agreement >= LEAST_AGREEMENT):
        raise Failure(
            f"the exported network agrees with the run on {percent(agreement)} of the test "
            f"images, less than {percent(LEAST_AGREEMENT)}, or its logits are not finite. Its "
            "files were deleted.\n"
            "This network is too inaccurate in 8 bits: choose --format onnx."
        )
    correct, float_correct = (is_correct(logits.numpy(), labels) for logits in (exported, original))
    top1, float_top1 = float(correct.mean()), float(float_correct.mean())
    return {
        "n_test": len(labels),
        "top1": top1,
        "float_top1": float_top1,
        "lost": float_top1 - top1,
        "p": count_pairs(correct, float_correct).p,  # McNemar's p-value
        "same_predictions_on_test": agreement,
    }


def _agreement(a: Tensor, b: Tensor) -> float:
    return float(is_same_prediction(a.numpy(), b.numpy()).mean())


def report_lines(report: dict[str, Any]) -> dict[str, Any]:
    """Return the report for the terminal: one line of text for each name."""
    hidden, size = ("formats", "weights", "failed", "image_size"), str(report["image_size"])
    lines = {key: value for key, value in report.items() if key not in hidden}
    written = report["formats"]
    use = {
        f"to use {name}": formats.use_of(name, written[name]).replace("{size}", size)
        for name in formats.USE
        if name in written
    }
    return lines | {name: _line(facts) for name, facts in written.items()} | use


def _line(compared: dict[str, Any]) -> str:
    files = ", ".join(f"{name} {file['bytes']:,} bytes" for name, file in compared["files"].items())
    facts = [
        files,
        f"max |Δlogit| {compared['max_logit_difference']:.1e}",
        f"same predictions {percent(compared['same_predictions'])}",
    ]
    if "top1" in compared:
        facts += [
            f"correct on {percent(compared['top1'])} of {compared['n_test']:,} test images, "
            f"the float network on {percent(compared['float_top1'])}: "
            f"{percent_number(abs(compared['lost']))} points "
            f"{'lost' if compared['lost'] > 0 else 'gained'} "
            f"(McNemar's {p_equation(compared['p'])}), "
            f"same predictions {percent(compared['same_predictions_on_test'])}"
        ]
    return "; ".join(facts)
