"""What our steps promise on a CPU beside bare TRL's: `tests.benchmarks.cpu` measures it.

Every figure is the median over rounds; the least and the most are in the tables that are printed. The
promises of `ours` are those of a CPU with instructions for bfloat16.
"""

import statistics

import pytest

from tests.benchmarks import cpu

pytestmark = pytest.mark.benchmark
OURS = ("ours", "ours-fp32")


def measured(shape: str, stages: list[str], *stacks: str) -> cpu.Bench:
    bench = cpu.measure(shape, stages, list(stacks))
    print()
    cpu.show(bench)
    return bench


@pytest.fixture(scope="module")
def small() -> cpu.Bench:
    return measured("22M", ["sft"], *cpu.STACKS)


@pytest.fixture(scope="module")
def real() -> cpu.Bench:
    """At the shape of a model that people use: a narrow head, and less padding."""
    return measured("135M", ["sft"], "trl", *OURS)


@pytest.fixture(scope="module")
def sampled() -> cpu.Bench:
    return measured("22M", ["grpo", "ppo"], "trl", *OURS)


def test_all_stacks_train_the_same(small, real):
    for bench in (small, real):
        (theirs,) = set(bench.seen("sft", "trl", "loss"))
        for stage, stack in bench.rounds:
            assert bench.seen(stage, stack, "loss") == pytest.approx([theirs] * 5, abs=0.01)


@pytest.mark.parametrize("stack", OURS)
def test_a_step_of_sft(small, stack):
    assert small.gain("sft", stack, "trl") >= 3
    assert small.gain("sft", stack, "trl-best") >= 1.5


def test_a_step_of_sft_at_the_shape_of_smollm2(real):
    assert real.gain("sft", "ours", "trl") >= 2.5


@pytest.mark.parametrize("stack", OURS)
def test_memory(small, stack):
    assert small.gain("sft", stack, "trl-best", "peak") >= 1


@pytest.mark.parametrize("stack", OURS)
def test_from_the_start_to_the_end_of_the_first_step(small, stack):
    assert small.gain("sft", stack, "trl", "first") >= 2


@pytest.mark.parametrize("stack", OURS)
def test_a_step_of_grpo(sampled, stack):
    assert sampled.gain("grpo", stack, "trl") >= 1.5


@pytest.mark.parametrize("stack", OURS)
def test_a_step_of_ppo_beside_one_of_grpo(sampled, stack):
    assert statistics.median(sampled.of_grpo(stack)) <= 1.6
