"""The report of a run: what stands in it, and that nothing in a run can break out of it."""

import json
import os
import socket
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests import runs
from toolkit import pipeline
from toolkit.artifacts.manifest import outputs_of
from toolkit.cli import main
from toolkit.errors import UsageError
from toolkit.report.markdown_page import fenced
from toolkit.report.page import view_of, write_report
from toolkit.report.run_folder import read_run
from toolkit.report.tree import lanes_of, tree_of
from toolkit.report.words import shown

EVIL = '</pre></svg></style><script>alert(1)</script><img src="http://evil.example/x" onerror=a()>'
HARMLESS = {
    "a", "article", "b", "body", "br", "circle", "code", "dd", "details", "div", "dl", "dt",
    "figcaption", "figure", "footer", "g", "h1", "h2", "h3", "head", "header", "html", "i", "li",
    "main", "mark", "meta", "nav", "ol", "p", "path", "pre", "section", "span", "style", "summary",
    "svg", "table", "tbody", "td", "text", "th", "thead", "title", "tr", "u", "ul",
}  # fmt: skip


class Page(HTMLParser):
    """The tags, attributes and words of a page."""

    def __init__(self, path: Path):
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.words: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.words += data.split()

    @property
    def text(self) -> str:
        return " ".join(self.words)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return runs.write_run(tmp_path / "demo")


def page_of(folder: Path) -> Page:
    return Page(write_report(folder)[0])


def test_says_what_a_run_did(run: Path):
    page = page_of(run)
    assert "demo finished" in page.text
    assert "4 of 4" in page.text
    assert "4 min 4 s" in page.text  # four stages of 61 seconds
    assert "10.0 → 70.0 %" in page.text  # base, and the last model
    assert "grpo base 7 1 +60.0 [" in page.text  # gained, lost, points
    for title in (
        "Loss",
        "Reward against KL",
        "Reward against length",
        "Rewards of held-out pairs",
    ):
        assert title in page.text
    assert "1,200 rows of chats.jsonl" in page.text


def test_stands_by_itself(run: Path):
    page = page_of(run)
    policy = dict(page.attributes)
    assert "default-src 'none'" in next(
        v for n, v in page.attributes if n == "content" and "src" in v
    )
    assert "width=device-width, initial-scale=1" in [v for _, v in page.attributes]
    assert page.tags <= HARMLESS
    assert not {"src", "srcset", "action", "data"} & policy.keys()
    assert all(value.startswith("#") for name, value in page.attributes if name == "href")
    css = (run / "report.html").read_text(encoding="utf-8").split("</style>")[0]
    assert "url(" not in css
    assert "@import" not in css
    assert (run / "report.html").stat().st_size < 100_000


def test_nothing_breaks_out(run: Path):
    log = run / "grpo" / "log.jsonl"
    entries = [
        entry | {f"rewards/{EVIL}/mean": 0.5, "diagnosis": EVIL, "message": EVIL, "value": 1}
        for entry in map(json.loads, log.read_text(encoding="utf-8").splitlines())
    ]
    runs.lines(log, entries)
    (run / "grpo" / "stage.json").unlink()
    evil = {"text": EVIL, "asked": EVIL, "expected": EVIL, "task": EVIL, "stage": EVIL}
    answers = [runs.answer("base", q, q > 3) | evil for q in range(10)]
    runs.lines(run / "exam" / "completions-base.jsonl", answers)
    scores = [{"stage": EVIL, "task": EVIL, "score": at} for at in range(9)]
    runs.lines(run / "exam" / "scores-x.jsonl", scores)
    report = json.loads((run / "exam" / "report.json").read_text(encoding="utf-8"))
    report["exam"] = [row | {"stage": EVIL, "task": EVIL} for row in report["exam"]]
    runs.dump(run / "exam" / "report.json", report)
    sample = {"source": EVIL, "row": EVIL, "spans": [[EVIL, True], [EVIL, False]]}
    data = [{"dataset_name": EVIL, "split": EVIL, "rows": 1}]
    runs.change(run / "sft" / "stage.json", samples=[sample], data=data, device=EVIL)
    error = {"kind": EVIL, "message": EVIL}
    status = {"status": "failed", "stage": "grpo", "error": error, "log": EVIL}
    runs.dump(run / "status.json", status)
    page = page_of(run)
    assert page.tags <= HARMLESS
    assert not [name for name, _ in page.attributes if name.startswith("on") or name == "src"]
    assert page.text.count("<script>alert(1)</script>") > 12  # it is there, as words


def test_a_group_that_a_stage_made_worse_is_named(run: Path):
    groups = [
        {"group": group, "n": 20, "before": 18, "after": after, "p": 0.004, "worse": after < 18}
        for group, after in (("harmless", 9), (EVIL, 18))
    ]
    asked = {"right": {"harmless": 9, EVIL: 18}, "margins": {}}
    runs.change(
        run / "grpo" / "stage.json",
        probes={"before": {"of": EVIL}, "after": asked, "groups": groups},
    )
    runs.change(run / "sft" / "stage.json", probes={"skipped": EVIL})
    page = page_of(run)
    assert page.tags <= HARMLESS
    assert page.text.count("grpo made harmless clearly worse: 18 of 20 → 9 of 20 (p = 0.004)") == 2
    assert "harmless 18 → 9 of 20 worse" in page.text
    assert "sft the probes were not asked" in page.text
    markdown = (run / "report.md").read_text(encoding="utf-8")
    assert "| `harmless` | **18 → 9 of 20** |" in markdown


def test_markdown_keeps_an_answer_inside_its_fence(run: Path):
    text = "``` and ````\n<script>alert(1)</script>"
    assert fenced(text) == f"`````text\n{text}\n`````"
    runs.lines(
        run / "exam" / "completions-grpo.jsonl",
        [runs.answer("grpo", q, True) | {"text": text} for q in range(10)],
    )
    markdown = write_report(run)[1].read_text(encoding="utf-8")
    outside = [part.split("\n", 1)[-1] for part in markdown.split("\n`````")[::2]]
    assert "<script>" in markdown
    assert not any("<script>" in part for part in outside)


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("a\x1b[31mb\x00", "a␛[31mb␀"),
        ("a\u202eb\u2066", "a<202e>b<2066>"),
        ("a\ud800b", "a?b"),
        ("two\nlines\tof", "two\nlines\tof"),
        ("x" * 8, "xxxxx … (3 characters more)"),
    ],
)
def test_text_of_others_shows_what_it_hides(text: str, seen: str):
    assert shown(text, 5 if text.startswith("x") else 100) == seen


def test_a_failed_run_says_so(run: Path):
    (run / "grpo" / "stage.json").unlink()
    with (run / "grpo" / "log.jsonl").open("a", encoding="utf-8") as log:
        log.write(
            '{"step": 44, "diagnosis": "kl_explodes", "message": "KL is 41", "value": 41.0}\n'
        )
        log.write('{"step": 48, "lo')
    for name in ("exam/stage.json", "exam/report.json"):
        (run / name).unlink()
    error = {"kind": "TrainingError", "message": "the loss is not finite"}
    status = {"status": "failed", "stage": "grpo", "error": error, "log": "failure.log"}
    runs.dump(run / "status.json", status)
    counts = {"answer": {"scored": 90, "unscored": 7, "failed": 3}}
    bad_rows = {"count": 2, "first": ["chats.jsonl:3"]}
    runs.change(run / "sft" / "stage.json", bad_rows=bad_rows, rewards=counts)
    runs.dump(run / "reward" / "proof.json", {"verified": "no", "failure": "lm_head differs"})
    view = view_of(read_run(run))
    said = [(found.level, found.where, found.what) for found in view["findings"]]
    assert said == [
        ("bad", "grpo", "ended"), ("bad", "reward", "unverified"), ("warning", "sft", "left out"),
        ("warning", "sft", "unscored"), ("warning", "sft", "failed"),
        ("warning", "grpo", "kl explodes"), ("note", "exam", "not started"),
        ("note", "", "unreadable"),
    ]  # fmt: skip
    page = page_of(run)
    assert "TrainingError: the loss is not finite (the traceback is in failure.log)" in page.text
    assert "KL is 41 (step 44, 41)" in page.text
    assert "3 of 4" not in page.text
    assert "2 of 4" in page.text


def test_a_model_that_lost_is_named(tmp_path: Path):
    right = {"base": [0], "sft": [0, 1, 2, 3, 4, 5, 6, 7], "grpo": [0]}
    view = view_of(read_run(runs.write_run(tmp_path / "run", right=right)))
    (found,) = view["findings"]
    assert (found.where, found.what) == ("grpo", "worse")
    assert "7 questions of sums wrong that sft answers right, and 0 the other way" in found.message


def test_a_run_that_was_killed_is_not_running(run: Path):
    (run / "exam" / "stage.json").unlink()
    status = {
        "status": "running",
        "stage": "exam",
        "host": socket.gethostname(),
        "pid": os.getpid(),
    }
    runs.dump(run / "status.json", status)
    assert read_run(run).state == "running"
    runs.change(run / "status.json", pid=2**22 + 1)  # more than Linux gives out
    assert read_run(run).state == "stopped"


def test_one_stage_alone(run: Path, tmp_path: Path):
    spans = [["<|user|>Hi", False], ["Hello<|end|>", True]]
    sample = {"source": "chats.jsonl", "row": 3, "tokens": 9, "trained": 4, "spans": spans}
    runs.change(run / "sft" / "stage.json", samples=[sample])
    html, markdown = write_report(run / "sft", tmp_path / "elsewhere")
    assert html.parent == markdown.parent == tmp_path / "elsewhere"
    assert not (run / "sft" / "report.html").exists()
    assert "<mark>Hello&lt;|end|&gt;</mark>" in html.read_text(encoding="utf-8")
    assert "chats.jsonl, row 3: 4 of 9 tokens are trained" in Page(html).text


def test_a_stage_with_a_report_is_not_damaged(run: Path):
    before = outputs_of(run / "sft")
    write_report(run / "sft")
    assert outputs_of(run / "sft") == before


def test_an_empty_folder_is_no_run(tmp_path: Path):
    with pytest.raises(UsageError, match="expected a run"):
        write_report(tmp_path)
    with pytest.raises(UsageError, match="no such folder"):
        write_report(tmp_path / "nowhere")


def test_lineage(run: Path):
    tree = tree_of(read_run(run))
    assert [(node.label, node.depth, node.parent) for node in tree.nodes] == [
        (runs.BASE, 0, None), ("sft", 1, runs.BASE), ("reward", 2, "sft"), ("grpo", 2, "sft"),
        ("exam", 0, None),
    ]  # fmt: skip
    assert tree.nodes[3].helped == {"reward": "reward"}
    assert tree.svg.count('class="edge"') == 3
    assert tree.svg.count('class="arc"') == 1


def test_arcs_that_overlap_get_lanes_of_their_own():
    assert lanes_of([(0, 3), (1, 2), (4, 5), (2, 4)]) == [0, 1, 0, 2]


def test_answers_of_every_kind(run: Path):
    (part,) = view_of(read_run(run))["answers"]
    assert part["counts"] == {"gained": 7, "lost": 1, "unchanged": 2}
    assert [row["kind"] for row in part["rows"]] == ["lost", "gained", "gained", "unchanged"]
    assert [each["verdict"] for each in part["rows"][0]["answers"]] == ["right", "right", "wrong"]


def test_the_command(run: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["report", str(run)]) == 0
    assert str(run / "report.html") in capsys.readouterr().out
    assert main(["report", str(run / "nowhere")]) == 2


def test_a_report_that_fails_does_not_fail_the_run(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    pipeline.write_report(run)
    assert (run / "report.html").is_file()

    def broken(folder: Path) -> None:
        raise ValueError("a broken\nfile")

    monkeypatch.setattr(pipeline.report, "write_report", broken)
    pipeline.write_report(run)
    assert "no report (ValueError: a broken file)" in capsys.readouterr().out


def test_loads_no_torch(run: Path):
    heavy = "{'torch', 'transformers', 'trl', 'peft', 'datasets', 'pandas', 'matplotlib'}"
    script = (
        "import sys; from toolkit.cli import main; "
        f"main(['report', {str(run)!r}]); main(['compare', {str(run)!r}, {str(run)!r}]); "
        f"print('LOADED', sorted({heavy} & set(sys.modules)))"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=root, check=False
    )
    assert done.stdout.splitlines()[-1:] == ["LOADED []"], done.stdout[-500:] + done.stderr
