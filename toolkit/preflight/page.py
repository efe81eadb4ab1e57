"""The report of a check, as a person reads it in a terminal."""

from typing import Any

from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from toolkit.preflight.findings import ERROR, OK, WARNING, Finding, Findings
from toolkit.stages.disk import in_units

MARKS = {OK: ("✓", "green"), WARNING: ("!", "yellow"), ERROR: ("✗", "bold red")}
BLOCKS = " ▏▎▍▌▋▊▉█"
PARTS = (
    ("base", "base"), ("adapters", "adapters"), ("optimizer", "optimizer"), ("gradients", "gradients"),
    ("activations", "activations"), ("logits", "logits"), ("working", "backward pass"),
    ("cache", "generation cache"), ("sampling", "sampling"), ("heap", "kept by the allocator"),
    ("files", "mapped files"), ("runtime", "Python, libraries"),
)  # fmt: skip


def show(found: Findings, console: Console) -> None:
    """Print everything that was found, stage by stage, and how it ends."""
    general = [one for one in found.found if not one.stage]
    console.print(lines(general))
    for stage in dict.fromkeys(one.stage for one in found.found if one.stage):
        console.print(f"\n[bold]━━ {stage}[/bold]")
        of_stage = found.of(stage)
        facts = found.facts.get(stage, {})
        for subject in dict.fromkeys(one.subject for one in of_stage):
            console.print(Text(f"   {subject}", "bold"))
            console.print(lines([one for one in of_stage if one.subject == subject]))
            drawn = DRAWN.get(subject)
            if drawn is not None and subject in facts:
                console.print(Padding(drawn(facts[subject], console.width), (0, 0, 0, 5)))
            if subject == "data":
                for sample in found.samples.get(stage, ()):
                    console.print(Padding(sample, (0, 0, 0, 5)))
    console.print(ending(found))


def lines(found: list[Finding]) -> Table:
    """Findings, each with its mark; what to do stands below."""
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_column(width=5, justify="right")
    table.add_column(overflow="fold")
    for one in found:
        mark, style = MARKS[one.level]
        text = Text(one.line, "" if one.level == OK else style.replace("bold ", ""))
        if one.fix:
            text.append(f"\n→ {one.fix}", "cyan")
        table.add_row(Text(mark, style), text)
    return table


def ending(found: Findings) -> Text:
    """The last line: what it comes to."""
    errors, warnings = found.count(ERROR), found.count(WARNING)
    if errors:
        return Text(
            f"\n✗ {errors} error(s), {warnings} warning(s): exit code {found.exit_code}", "bold red"
        )
    style = "yellow" if warnings else "green"
    return Text(f"\n✓ nothing stands in the way, {warnings} warning(s)", f"bold {style}")


def histogram(facts: dict[str, Any], width: int) -> Group:
    """Lengths as bars."""
    bars = facts.get("histogram", [])
    if not bars:
        return Group()
    most = max(bar["count"] for bar in bars)
    room = max(10, min(40, width - 35))
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    for bar in bars:
        label = f"{bar['from']:,}–{bar['to']:,}" if bar["to"] > bar["from"] else f"{bar['to']:,}"
        table.add_row(
            Text(label, "dim"),
            Text(drawn_bar(bar["count"] / most, room), "green"),
            f"{bar['count']:,}",
        )
    return Group(Text("tokens", "dim"), table)


def drawn_bar(share: float, room: int) -> str:
    """A bar of eighths of a character."""
    eighths = round(share * room * 8)
    if share and not eighths:
        eighths = 1
    return BLOCKS[8] * (eighths // 8) + (BLOCKS[eighths % 8] if eighths % 8 else "")


def memory(facts: dict[str, Any], width: int) -> Group:
    """Every part of the memory, as bars beside what the device has."""
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    most = max(facts["peak"], 1)
    room = max(10, min(40, width - 45))
    for key, name in PARTS:
        if facts.get(key):
            bar = drawn_bar(min(1.0, facts[key] / most), room)
            table.add_row(Text(name, "dim"), in_units(facts[key]), Text(bar, "blue"))
    for key, name in (("training", "peak of a step"), ("rollout", "peak of sampling")):
        if facts.get(key):
            fits = facts[key] <= facts["available"]
            table.add_row(
                Text(name, "bold"), in_units(facts[key]), Text("", "green" if fits else "red")
            )
    return Group(table)


DRAWN = {"data": histogram, "memory": memory}
