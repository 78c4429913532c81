"""Terminal tables of an evaluation."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from distill.files.escape_text import visible
from distill.format import (
    UNKNOWN,
    as_typed,
    change_of_ece,
    counted,
    grouped,
    interval_text,
    nats,
    p_equation,
    percent,
)
from distill.terminal.progress import label_line
from distill.terminal.table_style import blank_table

Figures = Mapping[str, Any]
MOST_CLASSES = 100  # most classes shown; --json has all
CONFUSED_WITH = 2  # most classes listed as mistakes of a class


def evaluation_tables(results: Figures) -> RenderableType:
    """Show an evaluation: the main measures, the classes, and the optional measures if present.

    `results`: the result of `evaluation.evaluate_run.evaluate`.
    """
    blocks: list[RenderableType] = [
        Text("\n").join(head_lines(results)),
        headline_table(results),
        Text("\n").join(temperature_and_teacher_lines(results)),
        class_table(results["per_class"], results["confusion"]),
    ]
    for name, block in OPTIONAL.items():
        if name in results:
            blocks.append(block(results))
    spaced = [part for block in blocks for part in (block, Text())]
    return Group(*spaced[:-1])


def head_lines(results: Figures) -> Iterator[Text]:
    """Yield the lines that describe run, network and data."""
    size = f"{results['parameters']:,} parameters, {results['macs'] / 1e6:,.1f} M MACs per image"
    yield label_line("run", f"{results['run']}, {results['role']}")
    yield label_line("network", f"{results['network']}, {size}")
    yield label_line("data", f"{results['data']}, {results['n']:,} test images")


def headline_table(results: Figures) -> Table:
    """Show each measure with its interval, and its value after temperature scaling if known."""
    table = blank_table()
    table.add_column("", no_wrap=True)
    calibrated = results.get("temperature") is not None
    for heading in ("test", "95 % interval", *(["calibrated"] if calibrated else [])):
        table.add_column(heading, justify="right", no_wrap=True)
    for measure, (name, show) in MEASURES.items():
        if results[measure] is not None:
            after = results.get(f"{measure}_calibrated")
            table.add_row(
                Text(name, "bold"),
                Text(show(results[measure]), "bold" if measure == "top1" else ""),
                interval_text(results[f"{measure}_interval"], show),
                *([show(after) if after is not None else ""] if calibrated else []),
            )
    return table


def temperature_and_teacher_lines(results: Figures) -> Iterator[Text]:
    """Yield lines on temperature and agreement with the teacher, or on why they are unknown."""
    absent = results["absent"]
    if results["temperature"] is not None:
        temperature = f"temperature {results['temperature']:.3f}, fitted on held-out images"
        after = results.get("ece_calibrated")
        effect = "" if after is None else f", {change_of_ece(results['ece'], after)}"
        yield label_line("scaling", temperature + effect)
    else:
        yield missing_line("scaling", absent["temperature"])
    if results["teacher_kl"] is not None:
        agreement = f"same prediction on {percent(results['teacher_agreement'])}"
        kl = f"KL(teacher || student) {nats(results['teacher_kl'])}"
        yield label_line("teacher", f"{agreement}, {kl}")
    elif results["role"] == "student":
        yield missing_line("teacher", absent["teacher_agreement"])


def missing_line(label: str, reason: str) -> Text:
    """Return a line on an unknown value, with the reason."""
    return Text.assemble((f"{label:<9}", "bold cyan"), (f"{UNKNOWN}  {reason}", "dim"))


def class_table(classes: Sequence[Figures], confusion: Sequence[Sequence[int]]) -> Table:
    """Show each class with its accuracy and most frequent mistakes.

    Of more than MOST_CLASSES classes, those with the lowest accuracy are shown.
    """
    table = blank_table()
    by_accuracy = sorted(range(len(classes)), key=lambda label: _accuracy_or_1(classes[label]))
    shown = sorted(by_accuracy[:MOST_CLASSES])
    left_out = f", the worst {len(shown)} of {len(classes):,}" if len(shown) < len(classes) else ""
    table.add_column(f"class{left_out}", overflow="fold")
    for heading in ("images", "accuracy", "95 % interval"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("mistaken for", overflow="fold")
    names = [row["name"] for row in classes]
    for label, row in ((label, classes[label]) for label in shown):
        table.add_row(
            Text(visible(row["name"]), "bold"),
            grouped(row["n"]),
            percent(row["accuracy"]),
            interval_text(row["interval"]),
            Text(", ".join(frequent_mistakes(names, label, confusion[label]))),
        )
    return table


def _accuracy_or_1(row: Figures) -> float:
    """Return a class's accuracy, 0..1; 1 if it has no test images."""
    accuracy: float | None = row["accuracy"]
    return 1.0 if accuracy is None else accuracy


def frequent_mistakes(names: Sequence[str], label: int, counts: Sequence[int]) -> Iterator[str]:
    """Yield the most frequent wrong predictions of a class, most frequent first, as `dog 178`."""
    others = [(count, other) for other, count in enumerate(counts) if count and other != label]
    for count, other in sorted(others, key=lambda pair: (-pair[0], pair[1]))[:CONFUSED_WITH]:
        yield f"{visible(names[other])} {count:,}"


def against_block(results: Figures) -> RenderableType:
    """Show the comparison of two runs on the same images, with McNemar's test."""
    other = results["against"]
    table = blank_table()
    table.add_column("against", overflow="fold")
    for heading in ("accuracy", "95 % interval", "right alone", "both right"):
        table.add_column(heading, justify="right", no_wrap=True)
    for run, alone, both in (
        (results, other["only_a"], grouped(other["both"])),
        (other, other["only_b"], ""),
    ):
        table.add_row(
            Text(run["run"], "bold"),
            percent(run["top1"]),
            interval_text(run["top1_interval"]),
            grouped(alone),
            both,
        )
    return Group(table, Text(mcnemar_text(results["run"], other)))


def mcnemar_text(run: str, other: Figures) -> str:
    """Return the conclusion from McNemar's test, with its p-value."""
    p = f"McNemar's {p_equation(other['p'])}"
    if other["better"] is None:
        return f"No difference is shown: {p}, both may be correct equally often."
    better = run if other["better"] == "a" else other["run"]
    return (
        f"On images like these the network of {better} is correct more often: {p}.\n"
        f"One run of each does not compare the recipes: type {as_typed('python cli.py seeds')}."
    )


def mirror_block(results: Figures) -> RenderableType:
    """Show the measures of predictions averaged over each image and its mirror image."""
    title = Text("With each image's mirror (test-time augmentation), not in the table above")
    return Group(title, headline_table(results["mirror"]))


def views_block(results: Figures) -> RenderableType:
    """Show the measures of predictions averaged over several views of each image.

    For comparison, the accuracy of a single view is shown too.
    """
    averaged = results["test_time_augmentation"]
    title = Text(
        f"With {averaged['views']} views of each image (test-time augmentation), not in the table "
        "above:\nthe image and its mirror, each also shifted by a pixel up-left and down-right."
    )
    single = Text(f"A single view, for comparison: accuracy {percent(results['top1'])}.")
    return Group(title, headline_table(averaged), single)


def latency_block(results: Figures) -> RenderableType:
    """Show the latency in milliseconds per call."""
    latency = results["latency_ms"]
    threads = counted(latency["threads"], "thread")
    setup = f"{latency['device']}, {threads}, {latency['precision']}"
    return Text("\n").join(
        [
            label_line("latency", f"{latency['batch_1']:,.3g} ms for 1 image  ({setup}, median)"),
            label_line("", f"{latency['batch_128']:,.3g} ms for 128 images"),
        ]
    )


def robustness_block(results: Figures) -> RenderableType:
    """Show accuracy by corruption and severity."""
    found = results["robustness"]
    table = blank_table()
    table.add_column("accuracy at severity", no_wrap=True)
    for heading in (*map(str, found["severities"]), "mean"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, accuracies in found["accuracy"].items():
        mean = sum(accuracies) / len(accuracies)
        table.add_row(Text(name.replace("_", " "), "bold"), *map(percent, [*accuracies, mean]))
    rows = found["accuracy"].values()
    means = [sum(column) / len(column) for column in zip(*rows, strict=True)]
    table.add_section()
    table.add_row(Text("mean", "bold"), *map(percent, [*means, 1 - found["mean_error"]]))
    words = (
        f"Mean error {percent(found['mean_error'])} on {found['n']:,} images, "
        f"{percent(1 - found['clean'])} on the same ones uncorrupted.",
        "This is the plain mean: the paper first divides each error by AlexNet's.",
        f"Left out of the paper's corruptions: {', '.join(found['left_out'])}, which needs "
        "photographs.",
    )
    return Group(table, Text("\n".join(words)))


MEASURES: dict[str, tuple[str, Callable[[float], str]]] = {  # name and format, by key
    "top1": ("accuracy", percent),
    "top5": ("top 5", percent),
    "nll": ("NLL", nats),
    "ece": ("calibration error", percent),
}
OPTIONAL: dict[str, Callable[[Figures], RenderableType]] = {  # shown if the key is present
    "against": against_block,
    "mirror": mirror_block,
    "test_time_augmentation": views_block,
    "latency_ms": latency_block,
    "robustness": robustness_block,
}
