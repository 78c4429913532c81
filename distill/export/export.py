"""Export a finished run: write, read back, compare, then name the files.

A folder that a command wrote before holds `export.json`, which names its files; it may be replaced
when that is asked for. A folder with anything else in it is left alone.
"""

import hashlib
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill.data.images import Progress
from distill.errors import Failure, UserError
from distill.evaluation.metrics import measures
from distill.evaluation.predict import check_finite, predict, test_split
from distill.export import atomic_folder, formats
from distill.export.finished_run import FinishedRun, load_finished
from distill.export.formats import Format
from distill.files import json_files
from distill.files.safe_text import is_utf8
from distill.format import p_equation, percent, percent_number
from distill.runs.run_folder import RunFolder, write_json
from distill.statistics import count_pairs

REPORT = "export.json"
# Of max |Δlogit|, in shares of the largest |logit|, at least 1. Float32 sums in another order
# differ by 1e-5 (measured: 9e-6 on a WRN-16-2); another network differs by far more.
TOLERANCE = 1e-4
LEAST_AGREEMENT = 0.9  # of a format that rounds, with the network: below, it is another one
BATCH = 100  # 256 images are two batches and a smaller one: the batch must be free
HOST = torch.device("cpu")


def export(
    run: RunFolder,
    names: Sequence[str],
    out: Path,
    data: str | None = None,
    *,
    replace: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write a run in these formats into the folder `out`; what was written and how it compares.

    A format that fails is left out; `failed` has the reason by its name, and is absent if none
    failed. Raises UserError for a format that is unknown or not installed, and where the folder may
    not be written. If no format is left, raises what the format raised: UserError if it is not for
    this run, Failure where what was written does not answer as the run does; nothing new lies under
    the final name then.
    """
    asked = formats.load_formats(names)
    out = out.absolute()
    check_out(out, replace)
    shipped = load_finished(run, data, progress)
    try:
        with atomic_folder.temporary_folder(out) as new:
            report, failed = _report(shipped, asked, new)
            write_json(new / REPORT, report)
            atomic_folder.rename(new, out, partial(check_out, out, replace))
    except OSError as fault:
        raise Failure(
            f"{out} could not be written: {fault.strerror or fault}. Nothing new was kept.\n"
            "Make room, or choose another --out."
        ) from fault
    known = {"out": str(out), "run": str(run.path), "data": shipped.source} | report
    return known | ({"failed": failed} if failed else {})


def check_out(out: Path, replace: bool) -> None:
    """Raises UserError where the folder holds anything, or an earlier export not to be replaced."""
    if not is_utf8(str(out)):  # safetensors takes no other path
        raise UserError(f"the name of {out} is not UTF-8.\nChoose another --out.")
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"{out} is a file, and an export is a folder.\nChoose another --out.")
    there = {
        path.relative_to(out).as_posix()
        for path in out.rglob("*")
        if not path.is_dir() and path.parent.name != "__pycache__"  # left by who imported the .py
    }
    foreign = sorted(there - _earlier_files(out))
    if foreign:
        more = f" and {len(foreign) - 3:,} more" if len(foreign) > 3 else ""
        raise UserError(
            f"{out} holds what no export wrote: {', '.join(foreign[:3])}{more}.\n"
            "Choose another --out."
        )
    if there and not replace:
        raise UserError(
            f"{out} already holds an export.\n"
            "Have it replaced with --replace, or choose another --out."
        )


def _earlier_files(out: Path) -> set[str]:
    """The files of the export that lies there, if one does."""
    try:
        report = json_files.read(out / REPORT)
        return {REPORT, *(name for each in report["formats"].values() for name in each["files"])}
    except (UserError, KeyError, TypeError, AttributeError):
        return set()


def _report(
    shipped: FinishedRun, asked: dict[str, Format], new: Path
) -> tuple[dict[str, Any], dict[str, str]]:
    """Every format written and compared, and why some failed, whose files are deleted.

    The first goes with the files: no path of this machine. Raises if all failed.
    """
    images, what = shipped.comparison_images()
    logits = predict(shipped.net, images, HOST, BATCH)
    check_finite(logits, shipped.folder)
    described, failed = dict[str, Any](), dict[str, Exception]()
    for name, format_ in asked.items():
        before = set(new.iterdir())
        try:
            described[name] = _write_and_compare(name, format_, shipped, new, images, logits)
        except OSError:  # a disk that takes one format's files takes no other's
            raise
        except Exception as fault:  # of a format's own package, anything
            failed[name] = fault
            _delete(set(new.iterdir()) - before)
    if not described:
        raise _all_failed(failed)
    report = {
        "network": shipped.result["network"],
        "parameters": shipped.n_parameters,
        "weights": shipped.result["weights"],
        "compared_on": f"{len(images)} {what}",
        "formats": described,
    }
    return report, {name: _reason(name, fault) for name, fault in failed.items()}


def _write_and_compare(
    name: str, format_: Format, shipped: FinishedRun, new: Path, images: Tensor, logits: Tensor
) -> dict[str, Any]:
    """One format written into `new` and compared; its files and how they compare."""
    before = set(new.iterdir())
    with formats.explain_missing_package(name):
        format_.write(shipped, new)
    files = sorted(set(new.iterdir()) - before)
    return {
        "files": {path.name: _file_facts(path) for path in files},
        **_compare(name, format_, new, images, logits),
        **({} if format_.IS_FLOAT else _test_accuracy(shipped, format_, new)),
    }


def _delete(paths: set[Path]) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _all_failed(failed: dict[str, Exception]) -> Exception:
    """What to raise if every format failed: the only error, or one message of all."""
    faults = list(failed.values())
    if len(faults) == 1:
        return faults[0]
    kind = UserError if all(isinstance(fault, UserError) for fault in faults) else Failure
    return kind("\n".join(_reason(name, fault) for name, fault in failed.items()))


def _reason(name: str, fault: Exception) -> str:
    """Why a format failed, which it names."""
    text = str(fault)
    if not isinstance(fault, UserError | Failure):
        first = (text.splitlines() or [""])[0]
        text = f"{type(fault).__name__}: {first}\nExport it alone for the whole traceback."
    return text if text.startswith("--format ") else f"--format {name}: {text}"


def failure_message(report: dict[str, Any]) -> str | None:
    """What to tell a person of the formats that failed; None if none did."""
    failed = report.get("failed", {})
    if not failed:
        return None
    n, kept = len(failed), ", ".join(report["formats"])
    return "\n".join(
        [f"{n} of {n + len(report['formats'])} formats failed; {report['out']} has {kept}."]
        + [text.replace("\n", "\n  ") for text in failed.values()]
    )


def _file_facts(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _compare(
    name: str, format_: Format, new: Path, images: Tensor, logits: Tensor
) -> dict[str, float]:
    """What is read from the files against the network. Raises Failure where it is another one."""
    answers = predict(format_.read(new), images, HOST, BATCH)
    delta = (answers - logits).abs().max().item()
    bound = TOLERANCE * max(1.0, logits.abs().max().item())
    if format_.IS_FLOAT and not delta <= bound:  # a NaN is not
        raise Failure(
            f"--format {name}: what was written does not answer as the run does: logits differ by "
            f"up to {delta:.2g}, more than {bound:.2g}. It is not kept.\n"
            "That is an error of this program or of the format's package: try another version of "
            "it, or another --format."
        )
    return {"max_logit_difference": delta, "same_predictions": _agreement(answers, logits)}


def _test_accuracy(shipped: FinishedRun, format_: Format, new: Path) -> dict[str, float]:
    """What a format that rounds costs: the test split's accuracy beside the network's own."""
    test = test_split(shipped.source, progress=shipped.progress)
    images, labels = torch.from_numpy(test.images), torch.from_numpy(test.labels)
    ours = predict(shipped.net, images, HOST, BATCH)
    theirs = predict(format_.read(new), images, HOST, BATCH)
    agreement = _agreement(theirs, ours)
    if not (theirs.isfinite().all() and agreement >= LEAST_AGREEMENT):
        raise Failure(
            f"what was written answers as the run does on {agreement:.1%} of the test images, less "
            f"than {LEAST_AGREEMENT:.0%}, or with no number at all. It is not kept.\n"
            "This network does not bear 8 bits: choose --format onnx."
        )
    pairs = count_pairs(*((each.argmax(-1) == labels).numpy() for each in (theirs, ours)))
    top1, float_top1 = (measures(each, labels)["top1"] for each in (theirs, ours))
    return {
        "n_test": len(labels),
        "top1": top1,
        "float_top1": float_top1,
        "lost": float_top1 - top1,
        "p": pairs.p,  # McNemar's, of "nothing is lost"
        "same_predictions_on_test": agreement,
    }


def _agreement(a: Tensor, b: Tensor) -> float:
    return (a.argmax(-1) == b.argmax(-1)).double().mean().item()


def report_lines(report: dict[str, Any]) -> dict[str, Any]:
    """The report a line a fact, for a person."""
    hidden = ("formats", "weights", "failed")
    lines = {key: value for key, value in report.items() if key not in hidden}
    known = report["formats"]
    use = {f"to use {name}": text for name, text in formats.USE.items() if name in known}
    return lines | {name: _line(known[name]) for name in known} | use


def _line(known: dict[str, Any]) -> str:
    files = ", ".join(f"{file} {each['bytes']:,} bytes" for file, each in known["files"].items())
    facts = [
        files,
        f"max |Δlogit| {known['max_logit_difference']:.1e}",
        f"same predictions {percent(known['same_predictions'])}",
    ]
    if "top1" in known:
        facts += [
            f"right on {percent(known['top1'])} of {known['n_test']:,} test images, "
            f"the float network on {percent(known['float_top1'])}: "
            f"{percent_number(abs(known['lost']))} points "
            f"{'lost' if known['lost'] > 0 else 'gained'} (McNemar's {p_equation(known['p'])}), "
            f"same predictions {percent(known['same_predictions_on_test'])}"
        ]
    return "; ".join(facts)
