"""What a model card says was measured: exams, held-out rows, the proof of the files."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult

from toolkit.artifacts.markdown import interval, percent, table, whole

Rows = Sequence[Mapping[str, Any]]
HELD_OUT = {
    "eval_loss": "loss", "eval_mean_token_accuracy": "tokens predicted right",
    "eval_rewards/accuracies": "pairs ranked right",
}  # fmt: skip


def evaluation_part(
    manifest: Mapping[str, Any], exams: Rows, pictures: Mapping[str, str]
) -> list[str]:
    """What was found of a model, beside what it was trained from.

    Args:
        manifest: of its stage; {} where there is none.
        exams: rows of reports, its own last.
        pictures: as of `training_part`.
    """
    part = [*map(table, [[row_of(row, manifest) for row in exams]] if exams else [])]
    if exams:
        part.append(
            "Right are answers that say what is expected, and end. Sampled is the mean over all "
            "samples, with the 95 % interval over questions."
        )
    part += [f"![{alt}]({path})" for path, alt in pictures.items()]
    part += held_out(manifest)
    return ["## Evaluation", *part] if part else []


def row_of(row: Mapping[str, Any], manifest: Mapping[str, Any]) -> dict[str, Any]:
    """A line of an exam."""
    name = str(row["stage"])
    sampled = f"{percent(row['accuracy'])} ({interval(row['low'], row['high'])})"
    return {
        "model": f"**{name}**" if name == manifest.get("name") else name,
        "task": row["task"],
        "right, sampled": sampled if row["samples"] else "–",
        "right, greedy": percent(row.get("greedy")),
        "questions × samples": f"{row['n']} × {row['samples']}",
    }


def held_out(manifest: Mapping[str, Any]) -> Iterator[str]:
    """What was measured on rows that were kept out of the training."""
    metrics = manifest.get("metrics", {})
    if pairs := pairs_of(manifest):
        yield (
            f"Of {whole(pairs['pairs'])} pairs of answers to {whole(pairs['prompts'])} prompts that "
            f"were kept out of its training, it ranks {percent(pairs['accuracy'])} right (95 % "
            f"interval {interval(pairs['low'], pairs['high'])}, each prompt counting once)."
        )
        return
    found = [
        f"{word} {metrics[key]:.3f}" if key == "eval_loss" else f"{word} {percent(metrics[key])}"
        for key, word in HELD_OUT.items()
        if isinstance(metrics.get(key), int | float)
    ]
    if found:
        yield f"On rows that were kept out of its training: {', '.join(found)}."


def pairs_of(manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    """How well a reward model judges held-out pairs; {} for others."""
    found = manifest.get("metrics", {}).get("pairs")
    return found if isinstance(found, Mapping) and {"accuracy", "low", "high"} <= set(found) else {}


def results(manifest: Mapping[str, Any], exams: Rows) -> list[EvalResult]:
    """The same as the Hub's model-index has it: what was found of this model alone."""
    found = [exam_result(row) for row in exams if row["stage"] == manifest.get("name")]
    if pairs := pairs_of(manifest):
        (data, *_) = [*(manifest.get("data") or ()), {}]
        found.append(
            EvalResult(
                task_type="text-classification",
                dataset_type=str(data.get("dataset_name") or "preferences"),
                dataset_name="held-out pairs of answers",
                dataset_revision=data.get("revision"),
                metric_type="accuracy",
                metric_name=f"share of {pairs['pairs']:,} pairs ranked right, by prompt",
                metric_value=round(pairs["accuracy"], 4),
            )
        )
    return found


def exam_result(row: Mapping[str, Any]) -> EvalResult:
    """One line of an exam."""
    data = row.get("data") or {}
    how = f"mean of {row['samples']} sampled answers" if row["samples"] else "greedy answers"
    return EvalResult(
        task_type="text-generation",
        dataset_type=str(data.get("dataset_name") or row["task"]),
        dataset_name=str(row["task"]),
        dataset_revision=data.get("dataset_revision"),
        metric_type="accuracy",
        metric_name=f"accuracy ({how} to {row['n']} questions)",
        metric_value=round(row["accuracy"], 4),
    )


def proof_part(manifest: Mapping[str, Any]) -> list[str]:
    """What was checked of the files themselves."""
    found = manifest.get("verification") or {}
    if "largest_difference" not in found:
        return []
    how = "with a fresh base" if found["verified"] == "fresh_load" else "over the base in memory"
    return [
        "## Proof",
        f"After training, these weights were loaded again from disk {how}, and compared with the model "
        f"that was trained: of {found['sequences']} sequences, {found['tokens']} numbers differ by "
        f"{found['largest_difference']:.2g} at most (allowed: {found['tolerance']:.0e}).",
    ]
