"""The pipeline as a picture: what was trained from what, and who made data and rewards for whom."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from markupsafe import Markup

from toolkit.artifacts.card_training import METHODS, rewards_of
from toolkit.artifacts.outgoing import is_local, last_part
from toolkit.report.run_folder import FINISHED, Run, Stage

ROW, LANE, EDGE = 64, 24, 18  # pixels: a row's height, a lane's width, what is left of the first
ARC = 13
RADIUS = 6
ADAPTER = "adapter:"
METHOD = {**METHODS, "evaluate": "exam"}


@dataclass
class Node:
    """A row of the picture.

    Attributes:
        name: of a stage, or of what is not made here: a base, an adapter of others.
        stage: None for what is not made here.
        depth: how many it was trained on from.
        parent: whose weights it continues.
        helped: the stages that made its data or score its answers, with what they do.
        row: its place from the top.
    """

    name: str
    stage: Stage | None
    depth: int
    parent: str | None
    helped: Mapping[str, str] = field(default_factory=dict)
    row: int = 0

    @property
    def label(self) -> str:
        """The name without a folder of this machine."""
        return last_part(self.name) if self.stage is None and is_local(self.name) else self.name

    @property
    def method(self) -> str:
        """What was done, in words."""
        if self.stage is None:
            return "base" if self.parent is None else "adapter"
        return METHOD.get(self.stage.kind, self.stage.kind)


@dataclass(frozen=True)
class Tree:
    """The picture.

    Attributes:
        nodes: its rows, from the top.
        svg: the dots and lines left of them, escaped.
        width: of those, in pixels.
        height: in pixels.
    """

    nodes: list[Node]
    svg: Markup
    width: int
    height: int


def tree_of(run: Run) -> Tree:
    """The picture of a run."""
    names = {stage.name for stage in run.stages}
    parents = {stage.name: parent_of(stage, names) for stage in run.stages}
    roots = dict.fromkeys(p for p in parents.values() if p is not None and p not in names)
    nodes: list[Node] = []

    def visit(name: str, depth: int, parent: str | None) -> None:
        if any(node.name == name for node in nodes):
            return
        stage = next((each for each in run.stages if each.name == name), None)
        nodes.append(Node(name, stage, depth, parent, helped_by(stage, names) if stage else {}))
        for child in run.stages:
            if parents[child.name] == name:
                visit(child.name, depth + 1, name)

    for root in roots:
        visit(root, 0, None)
    for stage in run.stages:  # exams, and what was made in a circle
        visit(stage.name, 0, None)
    for row, node in enumerate(nodes):
        node.row = row
    return drawn(nodes)


def parent_of(stage: Stage, names: set[str]) -> str | None:
    """Whose weights a stage continues: another stage, an adapter, or the base; None for an exam."""
    if stage.kind in ("evaluate", "pretrain"):
        return None
    for key in ("start_from", "model_name_or_path"):
        value = stage.recipe.get(key)
        if value:
            name = str(value)
            return Path(name).name if Path(name).name in names - {stage.name} else name
    base = stage.manifest.get("base") or {}
    return str(base["name"]) if base.get("name") else "base"


def helped_by(stage: Stage, names: set[str]) -> dict[str, str]:
    """The stages of the same run whose data or scores a stage uses."""
    found: dict[str, str] = {}
    if stage.kind == "evaluate":
        return found
    data = str(stage.recipe.get("dataset_name") or "")
    for name in (data, Path(data).parent.name):
        if name in names - {stage.name}:
            found[name] = "data"
    for reward in rewards_of({"recipe": stage.recipe}):
        name = Path(reward.removeprefix(ADAPTER)).name
        if reward.startswith(ADAPTER) and name in names - {stage.name}:
            found[name] = "reward"
    return found


def drawn(nodes: list[Node]) -> Tree:
    """The dots and lines of rows."""
    by_name = {node.name: node for node in nodes}
    deepest = max((node.depth for node in nodes), default=0)
    arcs = [
        (by_name[maker], node)
        for node in nodes
        for maker in node.helped
        if maker in by_name
    ]  # fmt: skip
    lanes = lanes_of([tuple(sorted((maker.row, node.row))) for maker, node in arcs])
    gutter = EDGE + deepest * LANE + 16
    width = gutter + (max(lanes, default=-1) + 1) * ARC + (4 if arcs else 0)
    parts: list[Markup] = []
    for node in nodes:
        if node.parent in by_name:
            (x0, y0), (x1, y1) = place(by_name[node.parent]), place(node)
            path = f"M{x0} {y0}V{y1 - 10}Q{x0} {y1} {x0 + 10} {y1}H{x1}"
            parts.append(Markup('<path class="edge" d="{}"/>').format(path))
    for (maker, node), lane in zip(arcs, lanes, strict=True):
        (x0, y0), (x1, y1) = place(maker), place(node)
        x, turn = gutter + lane * ARC + ARC // 2, 8 if y1 > y0 else -8
        path = (
            f"M{x0} {y0 + 3}H{x - 8}Q{x} {y0 + 3} {x} {y0 + 3 + turn}V{y1 - 3 - turn}"
            f"Q{x} {y1 - 3} {x - 8} {y1 - 3}H{x1 + RADIUS + 6}"
        )
        head = f"M{x1 + RADIUS + 9} {y1 - 6}l-5 3l5 3"
        words = f"{maker.name} → {node.name}: {node.helped[maker.name]}"
        parts.append(
            Markup('<g class="arc"><title>{}</title><path d="{}"/><path d="{}"/></g>').format(
                words, path, head
            )
        )
    for node in nodes:
        x, y = place(node)
        parts.append(
            Markup('<circle class="node {}" cx="{}" cy="{}" r="{}"/>').format(
                style_of(node), x, y, RADIUS
            )
        )
    height = ROW * len(nodes)
    svg = Markup(
        '<svg class="lanes" width="{0}" height="{1}" viewBox="0 0 {0} {1}" role="img" '
        'aria-label="what was trained from what">{2}</svg>'
    ).format(width, height, Markup("").join(parts))
    return Tree(nodes, svg, width, height)


def place(node: Node) -> tuple[int, int]:
    """Where the dot of a node is."""
    return EDGE + node.depth * LANE, node.row * ROW + 21


def style_of(node: Node) -> str:
    """The class of a dot."""
    if node.stage is None:
        return "given"
    if node.stage.state != FINISHED:
        return node.stage.state.replace(" ", "-")
    return "exam" if node.stage.kind == "evaluate" else "done"


def lanes_of(spans: list[tuple[int, ...]]) -> list[int]:
    """A lane for each span, so that no two of one lane overlap."""
    ends: list[int] = []
    lanes = [0] * len(spans)
    for at in sorted(range(len(spans)), key=lambda at: spans[at]):
        start, end = spans[at]
        lane = next((lane for lane, last in enumerate(ends) if last < start), len(ends))
        ends[lane : lane + 1] = [end]
        lanes[at] = lane
    return lanes
