"""Terminal tables of an evaluation."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from distill.files.safe_text import visible
from distill.format import UNKNOWN, counted, grouped, interval_text, nats, p_equation, percent
from distill.terminal.progress import label_line
from distill.terminal.table_style import blank_table

Figures = Mapping[str, Any]
CONFUSED_WITH = 2  # classes named beside each


def evaluation_tables(figures: Figures) -> RenderableType:
    """What `evaluate` found: the headline, each class, then whatever else was asked for."""
    blocks: list[RenderableType] = [
        Text("\n").join(head_lines(figures)),
        headline_table(figures),
        Text("\n").join(remarks(figures)),
        class_table(figures["per_class"], figures["confusion"]),
    ]
    for name, block in OPTIONAL.items():
        if name in figures:
            blocks.append(block(figures))
    spaced = [each for block in blocks for each in (block, Text())]
    return Group(*spaced[:-1])


def head_lines(figures: Figures) -> Iterator[Text]:
    """Which run, which network, on what."""
    size = f"{figures['parameters']:,} parameters, {figures['macs'] / 1e6:,.1f} M MACs an image"
    yield label_line("run", f"{figures['run']}, {figures['role']}")
    yield label_line("network", f"{figures['network']}, {size}")
    yield label_line("data", f"{figures['data']}, {figures['n']:,} test images")


def headline_table(figures: Figures) -> Table:
    """Each measure with its interval, and what it is once calibrated."""
    table = blank_table()
    table.add_column("", no_wrap=True)
    calibrated = figures.get("temperature") is not None
    for heading in ("test", "95 % interval", *(["calibrated"] if calibrated else [])):
        table.add_column(heading, justify="right", no_wrap=True)
    for measure, (name, shown) in MEASURES.items():
        if figures[measure] is not None:
            after = figures.get(f"{measure}_calibrated")
            table.add_row(
                Text(name, "bold"),
                Text(shown(figures[measure]), "bold" if measure == "top1" else ""),
                interval_text(figures[f"{measure}_interval"], shown),
                *([shown(after) if after is not None else ""] if calibrated else []),
            )
    return table


def remarks(figures: Figures) -> Iterator[Text]:
    """How it was calibrated and how near the teacher is; or why that is not known."""
    absent = figures["absent"]
    if figures["temperature"] is not None:
        temperature = f"temperature {figures['temperature']:.3f}, fitted on the held-out part"
        yield label_line("scaling", temperature)
    else:
        yield missing_line("scaling", absent["temperature"])
    if figures["teacher_kl"] is not None:
        agreement = f"same answer on {percent(figures['teacher_agreement'])}"
        kl = f"KL(teacher || student) {nats(figures['teacher_kl'])}"
        yield label_line("teacher", f"{agreement}, {kl}")
    elif figures["role"] == "student":
        yield missing_line("teacher", absent["teacher_agreement"])


def missing_line(label: str, reason: str) -> Text:
    """A fact that is not known, and why."""
    return Text.assemble((f"{label:<9}", "bold cyan"), (f"{UNKNOWN}  {reason}", "dim"))


def class_table(classes: Sequence[Figures], confusion: Sequence[Sequence[int]]) -> Table:
    """Each class, and what it is most often mistaken for."""
    table = blank_table()
    table.add_column("class", overflow="fold")
    for heading in ("images", "accuracy", "95 % interval"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("mistaken for", overflow="fold")
    names = [each["name"] for each in classes]
    for label, each in enumerate(classes):
        table.add_row(
            Text(visible(each["name"]), "bold"),
            grouped(each["n"]),
            percent(each["accuracy"]),
            interval_text(each["interval"]),
            Text(", ".join(frequent_mistakes(names, label, confusion[label]))),
        )
    return table


def frequent_mistakes(names: Sequence[str], label: int, counts: Sequence[int]) -> Iterator[str]:
    """`dog 178`: the classes that a class is most often called, the most frequent first."""
    others = [(count, other) for other, count in enumerate(counts) if count and other != label]
    for count, other in sorted(others, key=lambda each: (-each[0], each[1]))[:CONFUSED_WITH]:
        yield f"{visible(names[other])} {count:,}"


def against_block(figures: Figures) -> RenderableType:
    """Two runs on the same images, and whether one is shown to be better."""
    other = figures["against"]
    table = blank_table()
    table.add_column("against", overflow="fold")
    for heading in ("accuracy", "95 % interval", "right alone", "both right"):
        table.add_column(heading, justify="right", no_wrap=True)
    for each, alone, both in (
        (figures, other["only_a"], grouped(other["both"])),
        (other, other["only_b"], ""),
    ):
        table.add_row(
            Text(each["run"], "bold"),
            percent(each["top1"]),
            interval_text(each["top1_interval"]),
            grouped(alone),
            both,
        )
    return Group(table, Text(mcnemar_text(figures["run"], other)))


def mcnemar_text(run: str, other: Figures) -> str:
    """McNemar's p in words."""
    p = f"McNemar's {p_equation(other['p'])}"
    if other["better"] is None:
        return f"No difference is shown: {p}, both may be right equally often."
    better = run if other["better"] == "a" else other["run"]
    return (
        f"On images like these the network of {better} is right more often: {p}.\n"
        "One run of each says nothing of the recipes: python cli.py seeds."
    )


def mirror_block(figures: Figures) -> RenderableType:
    """The same measures of the mean over an image and its mirror."""
    title = Text("With each image's mirror (test-time augmentation), not in the figures above")
    return Group(title, headline_table(figures["mirror"]))


def views_block(figures: Figures) -> RenderableType:
    """The same measures of the mean over several views, and the single view's accuracy."""
    found = figures["test_time_augmentation"]
    title = Text(
        f"With {found['views']} views of each image (test-time augmentation), not in the figures "
        "above:\nthe image and its mirror, each also shifted by a pixel up-left and down-right."
    )
    single = Text(f"A single view, for comparison: accuracy {percent(figures['top1'])}.")
    return Group(title, headline_table(found), single)


def latency_block(figures: Figures) -> RenderableType:
    """Milliseconds a call."""
    found = figures["latency_ms"]
    where = f"{found['device']}, {counted(found['threads'], 'thread')}, {found['precision']}"
    return Text("\n").join(
        [
            label_line("latency", f"{found['batch_1']:,.3g} ms for 1 image  ({where}, median)"),
            label_line("", f"{found['batch_128']:,.3g} ms for 128 images"),
        ]
    )


def robustness_block(figures: Figures) -> RenderableType:
    """Accuracy by corruption and severity."""
    found = figures["robustness"]
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
        f"{percent(1 - found['clean'])} on the same ones as they are.",
        "The plain mean: the paper divides each error by AlexNet's before.",
        f"Left out of the paper's corruptions: {', '.join(found['left_out'])}, which needs "
        "photographs.",
    )
    return Group(table, Text("\n".join(words)))


MEASURES: dict[str, tuple[str, Callable[[float], str]]] = {
    "top1": ("accuracy", percent),
    "top5": ("top 5", percent),
    "nll": ("NLL", nats),
    "ece": ("calibration error", percent),
}
OPTIONAL: dict[str, Callable[[Figures], RenderableType]] = {
    "against": against_block,
    "mirror": mirror_block,
    "test_time_augmentation": views_block,
    "latency_ms": latency_block,
    "robustness": robustness_block,
}
